"""Jobs that run at intervals or at times of the day, once per server, for applications.

    @cluster.every(60)
    def refresh(): ...

    @cluster.cron("0 3 * * *", tz="Europe/Berlin")
    async def clean_up(): ...

Each worker has the same jobs, because each has imported the application. All of them watch the
clock, and one runs the job: servo.workers.schedules decides which, and how. This module has the
times. The moment at which a job was last due is a counter in the shared memory, so a new worker
goes on where the last one ended.

Outside a server, in a shell or a test, no job runs.
"""

from __future__ import annotations

import hashlib
import inspect
import os
import time
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, Final, TypeVar

from servo.cluster.counters import Counter
from servo.errors import ClusterError

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import tzinfo

    Function = TypeVar("Function", bound=Callable[[], Any])

MAX_NAME_BYTES: Final = 150
INSTALL: Final = "pip install 'servo-server[cron]'"
# The shortest interval. Other workers look once a second whether a job is overdue.
_SHORTEST_S = 0.1
NS_PER_S: Final = 1_000_000_000
# If the clock was set back by more than this, a job that was due later starts again from now. cron
# draws the line at the same number of hours.
_CLOCK_STEP_NS = 3 * 3600 * NS_PER_S
# The counter of the moment when a job was last due; it is not on /metrics.
DUE: Final = "servo_schedule_due"
_SHORTCUTS = {
    "@hourly": "0 * * * *",
    "@daily": "0 0 * * *",
    "@midnight": "0 0 * * *",
    "@weekly": "0 0 * * 0",
    "@monthly": "0 0 1 * *",
    "@yearly": "0 0 1 1 *",
    "@annually": "0 0 1 1 *",
}
# The locks of jobs lie below those of names (see servo.cluster.locks).
_FIRST_PLACE = 1 << 61


class Job(ABC):
    """A function and the times at which it is due. Times are in nanoseconds.

    name      its name in the log and on /metrics
    function  the function, which takes no arguments; may be a coroutine function

    due, runs, skipped, failures  counters of the server
    claim_place, run_place        the bytes to lock for deciding about the job, and for running it
    """

    def __init__(self, name: str, function: Callable[[], Any]) -> None:
        self.name = name
        self.function = function
        self.due = Counter(DUE, {"job": name})
        self.runs = Counter("servo_schedule_runs", {"job": name})
        self.skipped = Counter("servo_schedule_skipped", {"job": name})
        self.failures = Counter("servo_schedule_failures", {"job": name})
        digest = hashlib.blake2b(name.encode(), digest_size=8).digest()
        self.claim_place = _FIRST_PLACE + (int.from_bytes(digest, "little") >> 4) * 2
        self.run_place = self.claim_place + 1

    @abstractmethod
    def now(self) -> int:
        """The present time on the job's clock."""

    @abstractmethod
    def after(self, last: int) -> int | None:
        """When the job is due next, after the moment `last`; None: never."""

    @abstractmethod
    def covered(self, last: int, now: int) -> int:
        """The moment up to which a run now is enough: missed times don't run one by one.

        last  when the job was last due
        now   the present time
        """


class IntervalJob(Job):
    """A job that is due at regular intervals on the monotonic clock, which all processes share."""

    def __init__(self, name: str, function: Callable[[], Any], seconds: float) -> None:
        super().__init__(name, function)
        self._interval = int(seconds * NS_PER_S)

    def now(self) -> int:
        """See Job.now."""
        return time.monotonic_ns()

    def after(self, last: int) -> int:
        """See Job.after."""
        return last + self._interval

    def covered(self, last: int, now: int) -> int:
        """See Job.covered."""
        return last + (now - last) // self._interval * self._interval


class CronJob(Job):
    """A job that is due at times of the day.

    zone  the time zone of the expression
    """

    def __init__(
        self, name: str, function: Callable[[], Any], expression: str, zone: tzinfo
    ) -> None:
        super().__init__(name, function)
        self._expression = expression
        self._zone = zone
        cron_sim, error = _cronsim()
        self._cron_sim = cron_sim
        try:
            soon = self.after(self.now())
        except error as wrong:
            raise ValueError(f"{expression!r} is no cron expression: {wrong}") from wrong
        if soon is None:
            raise ValueError(f"the cron expression {expression!r} is never due")

    def now(self) -> int:
        """See Job.now."""
        return time.time_ns()

    def after(self, last: int) -> int | None:
        """See Job.after."""
        from datetime import datetime  # few applications have such jobs

        if last > self.now() + _CLOCK_STEP_NS:
            last = self.now()
        try:
            due = next(
                self._cron_sim(
                    self._expression, datetime.fromtimestamp(last // NS_PER_S, self._zone)
                )
            )
        except StopIteration:
            return None
        return int(due.timestamp()) * NS_PER_S

    def covered(self, last: int, now: int) -> int:
        """See Job.covered."""
        return now


def every(seconds: float, *, name: str | None = None) -> Callable[[Function], Function]:
    """Decorate a function that one worker of the server calls at regular intervals.

    seconds  the interval, at least 0.1 s. The first call is one interval after the server's start
    name     the job's name; default: the module's and the function's

    The function takes no arguments, and may be a coroutine function. If the last call still runs,
    the next one is skipped and counted. Raises TypeError or ValueError.
    """
    if isinstance(seconds, bool) or not isinstance(seconds, (int, float)):
        raise TypeError(f"an interval must be a number of seconds, not {seconds!r}")
    if not _SHORTEST_S <= seconds < 1e9:
        raise ValueError(f"an interval must be {_SHORTEST_S} s or more, not {seconds}")

    def register(function: Function) -> Function:
        _add(IntervalJob(_name_of(name, function), function, seconds))
        return function

    return register


def cron(
    expression: str, *, tz: str | tzinfo | None = None, name: str | None = None
) -> Callable[[Function], Function]:
    """Decorate a function that one worker of the server calls at times of the day.

    expression  five fields as in crontab(5) (minute, hour, day of the month, month, day of the
                week), six with seconds before them, or @hourly, @daily, @weekly, @monthly, @yearly
    tz          the time zone: a name such as "Europe/Berlin" or a tzinfo; default: the system's
    name        the job's name; default: the module's and the function's

    The rest is as for `every`. When clocks change, a job at a fixed time runs once, as in Debian's
    cron. Raises ClusterError if cronsim is not installed.
    """
    if not isinstance(expression, str):
        raise TypeError(f"a cron expression must be text, not {expression!r}")
    fields = _SHORTCUTS.get(expression.strip().lower(), expression)
    zone = _zone(tz)

    def register(function: Function) -> Function:
        _add(CronJob(_name_of(name, function), function, fields, zone))
        return function

    return register


_jobs: dict[str, Job] = {}


def jobs() -> list[Job]:
    """The jobs of the application."""
    return list(_jobs.values())


def forget_jobs() -> None:
    """Remove all jobs, because an application is about to be imported again."""
    _jobs.clear()


def _add(job: Job) -> None:
    known = _jobs.get(job.name)
    if known is not None and _origin(known.function) != _origin(job.function):
        raise ValueError(f"two jobs have the name {job.name!r}: give one of them another name=")
    _jobs[job.name] = job  # a module that is imported again replaces its jobs


def _origin(function: Any) -> tuple[Any, Any]:
    function = inspect.unwrap(function)
    return getattr(function, "__module__", None), getattr(function, "__qualname__", repr(function))


def _name_of(name: str | None, function: Any) -> str:
    if not callable(function):
        raise TypeError(f"a job must be a function, not {function!r}")
    if name is None:
        name = ".".join(map(str, _origin(function)))
    elif not isinstance(name, str):
        raise TypeError(f"a job's name must be text, not {name!r}")
    if not 0 < len(name.encode()) <= MAX_NAME_BYTES:
        raise ValueError(f"a job's name must have 1 to {MAX_NAME_BYTES} bytes: {name[:40]!r}")
    return name


def _cronsim() -> tuple[Any, type[Exception]]:
    try:
        from cronsim import CronSim, CronSimError
    except ImportError as error:
        raise ClusterError(f"cluster.cron needs cronsim: {INSTALL}") from error
    return CronSim, CronSimError


def _zone(tz: str | tzinfo | None) -> tzinfo:
    import zoneinfo  # few applications have such jobs

    if tz is not None and not isinstance(tz, str):
        return tz
    name = tz if tz is not None else os.environ.get("TZ", "").lstrip(":")
    try:
        if name:
            return zoneinfo.ZoneInfo(name)
        with open("/etc/localtime", "rb") as file:
            return zoneinfo.ZoneInfo.from_file(file)
    except FileNotFoundError as error:
        if not name:  # a system without a zone has UTC
            from datetime import timezone

            return timezone.utc
        raise ValueError(_zone_missing(name)) from error
    except (KeyError, ValueError, OSError) as error:
        raise ValueError(_zone_missing(name)) from error


def _zone_missing(name: str) -> str:
    return (
        f"the time zone {name!r} is not known: give another tz=, or install the system's package "
        "tzdata (or pip install tzdata)"
    )
