"""The guard: a process that ends the workers of a dead arbiter, whatever their applications do.

Workers notice the arbiter's death by themselves, finish what they have, and end. A worker that is
stuck in its application notices nothing: not one whose only thread computes, sleeps in a driver of
a database, or holds the interpreter's lock in a C extension. It would live on and keep the port, so
that the next server could not start. Nothing inside such a process is sure to run; SIGKILL from
another one is.

The arbiter tells the guard the pid of each worker over a socket. While the arbiter lives, the guard
sleeps in poll(2) and wakes only when a worker comes or goes. The end of the socket's stream is the
arbiter's end: each worker then has its `graceful_timeout`, and is killed after it.

The guard is forked twice, so that it is no child of the arbiter's: it is nobody's to wait for, and
the workers stay the arbiter's only lasting children.
"""

from __future__ import annotations

import logging
import os
import select
import signal
import socket
import struct
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from servo.arbiter import process_info
from servo.arbiter.core.backoff import Backoff
from servo.arbiter.processes import spawn

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

log = logging.getLogger("servo.error")

# A worker: its pid, and in how many seconds after the arbiter's death it is killed.
_RECORD = struct.Struct("=id")
# graceful_timeout = 0 still leaves a worker the time to notice by itself.
_LEAST_S = 0.1
# A guard that lived for so long did not fail at birth.
_PROVED_S = 5.0


@dataclass(frozen=True, slots=True)
class Watched:
    """A worker: its pid, and the seconds that it may outlive its arbiter by."""

    pid: int
    grace_s: float


class Guard:
    """The guard, as the arbiter sees it.

    close_inherited  closes, in the guard, what is the arbiter's or the workers' alone
    owner            the user that workers become, or None
    """

    def __init__(self, close_inherited: Callable[[], None], owner: int | None) -> None:
        self._close_inherited = close_inherited
        self._owner = owner
        self._sock: socket.socket | None = None
        self._started_at = 0.0
        self._backoff = Backoff()

    def fileno(self) -> int:
        """For a selector: readable when the guard has ended; -1 while there is none."""
        return self._sock.fileno() if self._sock is not None else -1

    def tick(self, workers: Iterable[Watched], now: float) -> bool:
        """Start the guard if there is none. True when a new one runs.

        workers   those that were forked before it
        now       monotonic seconds
        """
        if self._sock is not None or now < self._backoff.not_before:
            return False
        try:
            self._sock = self._start(list(workers))
        except OSError as error:
            log.error("The process that ends orphaned workers can't be started: %s", error)
            self._backoff.failed(now, now)
            return False
        self._started_at = now
        return True

    def watch(self, worker: Watched) -> None:
        """A worker was forked."""
        if self._sock is None:
            return
        try:
            self._sock.send(_RECORD.pack(worker.pid, worker.grace_s))
        except OSError as error:
            # It reads at once, or is gone; `tick` starts the next one, which is told of everybody.
            log.debug("The guard can't be told of worker process %d: %s", worker.pid, error)
            self.ended(time.monotonic())

    def ended(self, now: float) -> None:
        """The guard is gone, though the arbiter is not: `tick` starts another."""
        self.close()
        if now - self._started_at >= _PROVED_S:
            self._backoff.reset()
        self._backoff.failed(self._started_at, now)
        log.warning("The process that ends orphaned workers has ended; another follows")

    def close(self) -> None:
        """Close the arbiter's end; the guard ends when the last of its workers has."""
        if self._sock is not None:
            self._sock.close()
            self._sock = None

    def _start(self, workers: list[Watched]) -> socket.socket:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)

        def close() -> None:
            self._close_inherited()
            ours.close()

        try:
            pid = spawn.fork(lambda: _leave_behind(theirs, workers, self._owner), close)
        except OSError:
            ours.close()
            raise
        finally:
            theirs.close()
        # It only forks once more and exits. Waited for at once, as nobody is to take it for a
        # stranger; that takes a millisecond.
        os.waitpid(pid, 0)
        ours.setblocking(False)
        return ours


def _leave_behind(sock: socket.socket, workers: list[Watched], owner: int | None) -> int:
    """In the child: fork the guard itself, and exit."""
    if os.fork() == 0:
        process_info.set_title("servo: guard")
        guard_workers(sock, workers, owner)
    return 0


def guard_workers(sock: socket.socket, first: list[Watched], owner: int | None) -> None:
    """Watch workers until they and the arbiter have ended.

    sock    where the arbiter tells of further workers; its end is the arbiter's end
    first   the workers that there are already
    owner   the user that workers become, or None
    """
    workers: dict[int, Watched] = {}
    poller = select.poll()
    poller.register(sock, select.POLLIN)
    for worker in first:
        _add(workers, poller, worker)
    try:
        while True:
            for fd, _ in poller.poll():
                if fd != sock.fileno():
                    _forget(workers, poller, fd)
                    continue
                record = sock.recv(_RECORD.size)
                if not record:
                    poller.unregister(sock)
                    _end(workers, poller, owner)
                    return
                _add(workers, poller, Watched(*_RECORD.unpack(record)))
    finally:
        for fd in workers:
            os.close(fd)


def _add(workers: dict[int, Watched], poller: select.poll, worker: Watched) -> None:
    try:
        # By a descriptor: the number may mean another process once the worker has ended.
        fd = os.pidfd_open(worker.pid)
    except ProcessLookupError:
        return  # it has ended and was waited for already
    except OSError as error:
        log.error("Worker process %d can't be watched: %s", worker.pid, error)
        return
    workers[fd] = worker
    poller.register(fd, select.POLLIN)


def _forget(workers: dict[int, Watched], poller: select.poll, fd: int) -> None:
    del workers[fd]
    poller.unregister(fd)
    os.close(fd)


def _end(workers: dict[int, Watched], poller: select.poll, owner: int | None) -> None:
    """The arbiter is gone: kill each worker that has outlived it by its grace."""
    gone_at = time.monotonic()
    while workers:
        grace_s = {fd: max(worker.grace_s, _LEAST_S) for fd, worker in workers.items()}
        due = gone_at + min(grace_s.values())
        for fd, _ in poller.poll(max(due - time.monotonic(), 0.0) * 1000):
            _forget(workers, poller, fd)
        over_s = time.monotonic() - gone_at
        for fd in [fd for fd in workers if grace_s[fd] <= over_s]:
            pid = workers[fd].pid
            text = "Worker process %d is still there %.3g s after its arbiter's end; killing it"
            log.error(text, pid, grace_s[fd])
            process_info.send_signal(pid, signal.SIGKILL, owner)
            _forget(workers, poller, fd)
