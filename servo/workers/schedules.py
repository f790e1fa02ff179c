"""Runs the jobs of `cluster.every` and `cluster.cron`: each once per server, in one worker.

Each worker with jobs has a thread that sleeps until a job is due. The leader runs the job: the
ready worker with the lowest slot. If it does not, because it is stopped, the next worker takes over
after STANDBY_S, and so on. There is no election: each worker reads its rank from the scoreboard.

Two locks of the kernel keep this safe, even if two workers believe that they lead. A worker decides
about a job under the job's first lock: if the shared counter says that the job is still due, it
writes there that it is not, and then starts the job. The second lock is held while the job runs. A
worker that can't take it skips the run, and counts that. So a job never runs twice at once, not
even in two generations during a reload, and never twice for the same moment. A run that is cut off
by the end of its process is not repeated.

A function runs in a thread of its own. Python waits for the thread when the worker ends, within
`graceful_timeout`. A coroutine runs on the worker's event loop if it has one, which waits for it as
for a request; otherwise on a loop of its own in the thread.
"""

from __future__ import annotations

import inspect
import logging
import threading
from typing import TYPE_CHECKING, Any

from servo.cluster.counters import installed
from servo.cluster.schedules import NS_PER_S
from servo.errors import ClusterError
from servo.workers.threads import WorkerThread

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Awaitable, Callable

    from servo.cluster.schedules import Job
    from servo.shared_memory.scoreboard import Scoreboard

log = logging.getLogger("servo.error")

# After so many seconds, the second worker runs what the first one should have, and after twice as
# many the third one.
STANDBY_S = 5.0
# A worker looks at each job at least this often: the clock may be set, and a leader may end.
_LOOK_S = 30.0
_STANDBY_LOOK_S = 1.0
# If another worker is just deciding about the job, look again after this many seconds.
_CLAIMED_S = 0.05
_AFTER_ERROR_S = 10.0


def rank_of(scoreboard: Scoreboard, serial: int) -> int | None:
    """The number of ready workers in lower slots; 0: this worker leads, None: it is not ready.

    scoreboard  the rows of all workers
    serial      this worker's serial

    If a slot has two ready workers, only the newer one counts.
    """
    newest: dict[int, int] = {}
    for row in scoreboard.snapshot():
        if row.state == "ready":
            newest[row.slot] = max(row.serial, newest.get(row.slot, 0))
    for rank, slot in enumerate(sorted(newest)):
        if newest[slot] == serial:
            return rank
    return None


class ScheduleRunner:
    """Runs the jobs in one worker.

    jobs     the application's jobs
    rank     returns this worker's rank, see `rank_of`
    loop     the worker's event loop, if it has one
    on_idle  called in the loop's thread after each job; None without a loop
    """

    def __init__(
        self,
        jobs: list[Job],
        rank: Callable[[], int | None],
        loop: asyncio.AbstractEventLoop | None = None,
        on_idle: Callable[[], None] | None = None,
    ) -> None:
        self._jobs = jobs
        self._rank = rank
        self._loop = loop
        self._on_idle = on_idle
        self._thread = WorkerThread("servo-schedules", self._watch)
        self._ended = threading.Event()
        self._mutex = threading.Lock()
        self._running: set[str] = set()
        # asyncio itself has only weak references to tasks.
        self._tasks: set[Any] = set()

    def start(self) -> None:
        """Begin to watch the clock."""
        self._thread.start()

    def stop(self) -> None:
        """Start no more jobs, because the worker drains. Running ones go on."""
        with self._mutex:
            self._ended.set()

    def join(self) -> None:
        """Wait for the end of this object's thread, after `stop`."""
        if self._thread.is_alive():
            self._thread.join()

    @property
    def is_running(self) -> bool:
        """Whether a job runs in this worker."""
        return bool(self._running)

    def _watch(self) -> None:
        pause_s = 0.0
        while not self._ended.wait(pause_s):
            pause_s = self._look_at_all()

    def _look_at_all(self) -> float:
        try:
            return min(self.look(job) for job in self._jobs)
        except (ClusterError, OSError) as error:
            log.error("Scheduled jobs don't run in this worker: %s", error)
            return _AFTER_ERROR_S

    def look(self, job: Job) -> float:
        """Start a job if it is due and this worker's turn. Returns seconds until the next look."""
        last = job.due.value()
        now = job.now()
        if last == 0:
            return self._begin(job)
        due = job.after(last)
        if due is None:
            return _LOOK_S
        if due > now:
            return min((due - now) / NS_PER_S, _LOOK_S)
        rank = self._rank()
        if rank is None:
            return _STANDBY_LOOK_S
        early_s = rank * STANDBY_S - (now - due) / NS_PER_S
        if early_s > 0:
            return min(early_s, _STANDBY_LOOK_S)
        return self._claim(job, last)

    def _begin(self, job: Job) -> float:
        """Note when the server has first seen a job: from then on it is due."""
        locks = installed().locks
        if not locks.try_lock(job.claim_place):
            return _CLAIMED_S
        try:
            if job.due.value() == 0:
                job.due.change(job.now())
                for counter in (job.runs, job.skipped, job.failures):
                    counter.change(0)  # /metrics shows it from now on
        finally:
            locks.unlock(job.claim_place)
        return 0.0

    def _claim(self, job: Job, last: int) -> float:
        """Start a job that is due since some time after `last`, unless another worker does."""
        locks = installed().locks
        if not locks.try_lock(job.claim_place):
            return _CLAIMED_S
        try:
            if job.due.value() != last:
                return 0.0  # another worker was faster
            with self._mutex:
                if self._ended.is_set():
                    return _LOOK_S
                # First write that it is no longer due: it must not run twice if this process dies.
                job.due.change(job.covered(last, job.now()) - last)
                starts = job.name not in self._running and locks.try_lock(job.run_place)
                if starts:
                    self._running.add(job.name)
        finally:
            locks.unlock(job.claim_place)
        if starts:
            job.runs.change(1)
            self._start(job)
        else:
            job.skipped.change(1)
            log.warning("The job %r is skipped, because its last run has not ended", job.name)
        return 0.0

    def _start(self, job: Job) -> None:
        loop = self._loop
        try:
            if loop is not None and inspect.iscoroutinefunction(job.function):
                loop.call_soon_threadsafe(self._start_task, job)
            else:
                threading.Thread(
                    target=self._run, args=(job,), name=f"job {job.name}", daemon=False
                ).start()
        except RuntimeError as error:  # the loop is closed, or there can be no more threads
            self._failed(job, error)
            self._finished(job)

    def _start_task(self, job: Job) -> None:
        assert self._loop is not None
        task = self._loop.create_task(self._run_on_loop(job))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _run_on_loop(self, job: Job) -> None:
        try:
            await job.function()
        except (Exception, SystemExit) as error:  # noqa: BLE001  it is logged
            self._failed(job, error)
        finally:
            self._finished(job)

    def _run(self, job: Job) -> None:
        try:
            result = job.function()
            if hasattr(result, "__await__"):
                self._await(result)
        except (Exception, SystemExit) as error:  # noqa: BLE001  it is logged
            self._failed(job, error)
        finally:
            self._finished(job)

    def _await(self, awaitable: Awaitable[Any]) -> None:
        import asyncio  # imported here: a worker without coroutines need not load it

        async def wait() -> None:
            await awaitable

        if self._loop is None:
            asyncio.run(wait())
        else:
            asyncio.run_coroutine_threadsafe(wait(), self._loop).result()

    def _failed(self, job: Job, error: BaseException) -> None:
        log.error("The job %r failed", job.name, exc_info=error)
        job.failures.change(1)

    def _finished(self, job: Job) -> None:
        with self._mutex:
            installed().locks.unlock(job.run_place)
            self._running.discard(job.name)
        if self._loop is not None and self._on_idle is not None and self._ended.is_set():
            try:
                self._loop.call_soon_threadsafe(self._on_idle)
            except RuntimeError:
                log.debug("The job %r has outlived the event loop", job.name)
