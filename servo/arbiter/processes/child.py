"""The interface that all kinds of child processes share, seen from the arbiter.

The arbiter has children of several kinds: workers, the check of a configuration, the watcher of
source files, the metrics process, the guard. Each kind is a class that satisfies `ChildProcess`.
`ChildTable` forks, watches and reaps them all, and the arbiter's loop deals with the table only.
A new kind of child is a new class in this package; neither the table nor the loop needs a line for
it. A child that must always run, such as the guard, is a `Helper` as well.
"""

from __future__ import annotations

from typing import Protocol

from servo.arbiter.core.backoff import Backoff

# A helper process that has lived for 5 s did not fail at birth: its next failure starts a new
# series of delays.
PROVED_S = 5.0


class ChildProcess(Protocol):
    """One child process, as the arbiter sees it.

    pid   the process id; 0 before the fork. The table sets it.
    """

    pid: int

    def fileno(self) -> int:
        """The descriptor on which the child reports to the arbiter; -1 if it has none."""
        ...

    def on_ready(self, mask: int) -> None:
        """epoll reports events of that descriptor.

        mask   the events, as bits of `select.EPOLLIN`, `EPOLLOUT`, `EPOLLHUP` and `EPOLLERR`
        """
        ...

    def on_exit(self, code: int) -> None:
        """The process has ended and was reaped.

        code   its exit code, or the negative number of the signal that ended it
        """
        ...

    def close_in_child(self) -> None:
        """In a child that was just forked, this one or another: close the arbiter's descriptors.

        A child that kept them would keep the other side from noticing the arbiter's end.
        """
        ...


class Helper(ChildProcess, Protocol):
    """A child that the server should always have: one that ends is started again."""

    def tick(self, now: float) -> None:
        """Start the process if it is wanted, does not run, and its restart is due.

        now   monotonic seconds
        """
        ...

    def reopen_logs(self) -> None:
        """Have the process reopen its log files, if it has any."""
        ...

    def stop(self) -> None:
        """End the process, and start no other."""
        ...


class RestartDelay:
    """When a helper process that has ended may be started again: at once, then at longer delays."""

    def __init__(self) -> None:
        self._backoff = Backoff()
        self._started_at = 0.0

    def is_over(self, now: float) -> bool:
        """Whether the process may be started. `now` is in monotonic seconds, as everywhere here."""
        return now >= self._backoff.not_before

    def started(self, now: float) -> None:
        """The process was forked."""
        self._started_at = now

    def start_failed(self, now: float) -> None:
        """The process could not be forked."""
        self._backoff.failed(now, now)

    def ended(self, now: float) -> None:
        """The process has ended although nobody asked it to."""
        if now - self._started_at >= PROVED_S:
            self._backoff.reset()
        self._backoff.failed(self._started_at, now)
