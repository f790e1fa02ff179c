"""Health checks: the worker regularly checks whether its application works.

A check requests a path of the application in this process (see `servo.apps.in_process`), or calls a
function. (The heartbeat has another purpose: it shows whether the worker's thread or loop runs.)
After `health_check_failures` failed checks in a row, the worker asks the arbiter for a replacement,
and serves until that is ready.

A check must not wait for the application's requests. So its thread depends on the worker class:

sync    the worker's only thread, between two requests
thread  a separate thread, because all others may be busy
async   a task of the event loop, or a separate thread if the code is not `async`

The first check runs before the worker is ready. If its response has a 4xx status, the application
probably does not have this path. Then the boot fails: a worker that can never pass its check must
not replace a worker that does.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, NamedTuple

from servo.errors import BootError

if TYPE_CHECKING:
    from collections.abc import Callable

    from servo.settings.sources import Settings

log = logging.getLogger("servo.error")


class Outcome(NamedTuple):
    """The outcome of one check.

    problem     the reason for the failure; "" if the check has passed
    not_served  whether the application has no such path
    """

    problem: str = ""
    not_served: bool = False


class HealthCheck:
    """Decides when to check, and when to ask for a replacement of the worker.

    settings    the settings that begin with `health_check`
    on_failing  called once, with the reason, when the worker should be replaced

    start       starts a check and passes its outcome to `done`. The worker sets this when it
                serves. A worker class that does not set it has no checks
    """

    def __init__(self, settings: Settings, on_failing: Callable[[str], None]) -> None:
        self._target: str = settings.health_check
        self._interval_ns = int(settings.health_check_interval * 1e9)
        self._timeout_s: float = settings.health_check_timeout
        self._limit: int = settings.health_check_failures
        self._on_failing = on_failing
        self.start: Callable[[], None] | None = None
        self._failures = 0
        self._next_ns = 0
        self._started_ns = 0  # the start of the running check; 0: none runs
        self._is_late = False
        self._outcome: Outcome | None = None

    @property
    def is_running(self) -> bool:
        """Whether a check runs, or its outcome is not yet handled."""
        return self._started_ns != 0

    @property
    def timeout_s(self) -> float:
        """How many seconds a check may take."""
        return self._timeout_s

    def first(self, outcome: Outcome) -> None:
        """Handle the outcome of the first check, which runs before the worker is ready.

        Raises BootError if the application does not serve the path.
        """
        if outcome.not_served:
            raise BootError(
                f"health_check: GET {self._target} {outcome.problem}; name a path that the app "
                "answers with 200 to 399, or a function (module:function)"
            )
        self._finish(outcome)

    def sweep(self, now_ns: int) -> None:
        """Handle the outcome or the timeout of a check, and start the next one when it is due.

        now_ns  monotonic nanoseconds; call this about once a second
        """
        if self.start is None:
            return
        if not self._next_ns:
            self._next_ns = now_ns + self._interval_ns
        if self._started_ns:
            self._look(now_ns)
        if not self._started_ns and now_ns >= self._next_ns:
            self._next_ns = now_ns + self._interval_ns
            self._started_ns, self._is_late, self._outcome = now_ns, False, None
            self.start()

    def done(self, outcome: Outcome) -> None:
        """Note the outcome of a check. Any thread may call this; the next `sweep` handles it."""
        self._outcome = outcome

    def _look(self, now_ns: int) -> None:
        outcome = self._outcome
        if outcome is not None:
            self._started_ns = 0
            if not self._is_late:
                self._finish(outcome)
        elif not self._is_late:
            if now_ns - self._started_ns > self._timeout_s * 1e9:
                self._is_late = True
                self._failed(f"no answer within {self._timeout_s:g} s")
        elif now_ns >= self._next_ns:
            # The thread still hangs in the last check, so it can't run another one.
            self._next_ns = now_ns + self._interval_ns
            self._failed("the check before has not ended")

    def _finish(self, outcome: Outcome) -> None:
        if outcome.problem:
            self._failed(outcome.problem)
        elif self._failures:
            log.info("Health check %s: passed again", self._target)
            self._failures = 0

    def _failed(self, problem: str) -> None:
        self._failures += 1
        log.warning(
            "Health check %s: %s (failure %d of %d)",
            self._target,
            problem,
            self._failures,
            self._limit,
        )
        if self._failures == self._limit:
            times = f", {self._failures} times in a row" if self._failures > 1 else ""
            self._on_failing(f"{self._target}: {problem}{times}")
