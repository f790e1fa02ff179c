"""The arbiter's interface to all kinds of child processes.

The arbiter has children of several kinds: workers, the check of a configuration, the watcher of
source files, the metrics process, the guard. Each kind is a class that satisfies `ChildProcess`.
`ChildTable` forks, watches and reaps them all, and the arbiter's loop uses only the table. To add a
kind of child, add a class to this package; the table and the loop stay as they are. A child that
must always run, such as the guard, is also a `Helper`.
"""

from __future__ import annotations

from typing import Protocol

from servo.arbiter.core.backoff import Backoff

# A helper that has run for this many seconds has started well. If it ends later than that, the
# restart delays begin with the shortest one again.
PROVED_S = 5.0


class ChildProcess(Protocol):
    """One child process.

    pid   the process id; 0 before the fork. The table sets it.
    """

    pid: int

    def fileno(self) -> int:
        """The descriptor on which the child reports to the arbiter; -1 if it has none."""
        ...

    def on_ready(self, mask: int) -> None:
        """Handle events of the descriptor.

        mask   the events, as bits of `select.EPOLLIN`, `EPOLLOUT`, `EPOLLHUP` and `EPOLLERR`
        """
        ...

    def on_exit(self, code: int) -> None:
        """Handle the exit of the process, which was reaped.

        code   its exit code; minus the signal's number if a signal ended it
        """
        ...

    def close_in_child(self) -> None:
        """Close the arbiter's descriptors of this child. Called in every newly forked process.

        As long as any process has an open copy, this child would not notice the arbiter's end.
        """
        ...


class Helper(ChildProcess, Protocol):
    """A child that should always run: the table starts it again if it ends."""

    def tick(self, now: float) -> None:
        """Start the process if it is needed, does not run, and its restart is due.

        now   monotonic seconds
        """
        ...

    def reopen_logs(self) -> None:
        """Make the process reopen its log files, if it has any."""
        ...

    def stop(self) -> None:
        """End the process, and don't start it again."""
        ...


class RestartDelay:
    """Decides when to restart a helper process: at once, and then after increasing delays."""

    def __init__(self) -> None:
        self._backoff = Backoff()
        self._started_at = 0.0

    def is_over(self, now: float) -> bool:
        """Whether the process may be started.

        now  monotonic seconds (in every method here)
        """
        return now >= self._backoff.not_before

    def started(self, now: float) -> None:
        """Note that the process was forked."""
        self._started_at = now

    def start_failed(self, now: float) -> None:
        """Note that the process could not be forked."""
        self._backoff.failed(now, now)

    def ended(self, now: float) -> None:
        """Note that the process has ended, although nobody asked it to."""
        if now - self._started_at >= PROVED_S:
            self._backoff.reset()
        self._backoff.failed(self._started_at, now)
