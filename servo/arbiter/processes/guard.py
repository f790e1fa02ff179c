"""The guard: a process that kills workers which outlive their arbiter.

When an arbiter dies, its workers notice it, finish their requests, and end. A worker that is stuck
in its application can't notice: its only thread computes, sleeps in a database driver, or holds the
interpreter's lock in a C extension. Such a worker would live on and keep the port, so that the next
server could not start. No code inside such a process is sure to run, so another process has to send
it SIGKILL.

The arbiter sends the guard the pid of each worker over a socket. While the arbiter lives, the guard
sleeps in poll(2), and wakes only when a worker starts or ends. When the arbiter dies, the kernel
closes its end of the socket and the guard reads the end of the stream. Each worker then has its
`graceful_timeout` before the guard kills it. The guard itself ends with the last worker.

The guard is forked by a process in between, which exits at once. So the guard is no child of the
arbiter's, the arbiter never waits for it, and the workers stay the arbiter's only lasting children.
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
from functools import partial
from typing import TYPE_CHECKING

from servo.arbiter import process_info
from servo.arbiter.processes.child import RestartDelay

if TYPE_CHECKING:
    from collections.abc import Callable

    from servo.arbiter.processes.child_table import ChildTable

log = logging.getLogger("servo.error")

# One message of the arbiter's, a worker: its pid, and its grace in seconds.
_RECORD = struct.Struct("=id")
# graceful_timeout = 0 still leaves a worker the time to notice the arbiter's death.
_LEAST_S = 0.1


@dataclass(frozen=True, slots=True)
class GuardedWorker:
    """A worker that the guard kills if it outlives the arbiter.

    pid       its process id
    grace_s   for how many seconds it may outlive the arbiter
    """

    pid: int
    grace_s: float


class Guard:
    """The guard, seen from the arbiter, which starts another one if it ends.

    table     forks the process
    workers   returns all workers that were forked so far and not reaped
    owner     the user that workers become, or None
    """

    def __init__(
        self,
        table: ChildTable,
        workers: Callable[[], list[GuardedWorker]],
        owner: int | None,
    ) -> None:
        self.pid = 0  # of the process in between
        self._table = table
        self._workers = workers
        self._owner = owner
        self._is_wanted = True
        self._sock: socket.socket | None = None
        self._delay = RestartDelay()

    def tick(self, now: float) -> None:
        """Start the guard if there is none and its restart is due; see `Helper`."""
        if not self._is_wanted or self._sock is not None or not self._delay.is_over(now):
            return
        try:
            self._start()
        except OSError as error:
            log.error("The process that ends orphaned workers can't be started: %s", error)
            self._close()
            self._delay.start_failed(now)
        else:
            self._delay.started(now)

    def add(self, worker: GuardedWorker) -> None:
        """Report a worker that was just forked to the guard."""
        if self._sock is None:
            return
        try:
            self._sock.send(_RECORD.pack(worker.pid, worker.grace_s))
        except OSError as error:
            # The guard reads at once, so it has ended. The next one gets a list of all workers.
            log.debug("The guard can't be told of worker process %d: %s", worker.pid, error)
            self._on_end()

    def fileno(self) -> int:
        """The arbiter's end of the socket, readable once the guard has ended; -1 without one."""
        return self._sock.fileno() if self._sock is not None else -1

    def on_ready(self, _mask: int) -> None:
        """The guard has closed its end of the socket: it has ended."""
        self._on_end()

    def on_exit(self, code: int) -> None:
        """The process in between has exited. If it could not fork the guard, `on_ready` follows."""
        log.debug("Process %d has forked the guard and exited with code %d", self.pid, code)

    def reopen_logs(self) -> None:
        """Do nothing: the guard logs only after the arbiter's end."""

    def stop(self) -> None:
        """Close the arbiter's end, as its death would. The guard ends with its last worker."""
        self._is_wanted = False
        self._close()

    def close_in_child(self) -> None:
        """Close this process's copy of the arbiter's end."""
        if self._sock is not None:
            self._sock.close()
            self._sock = None

    def _start(self) -> None:
        self._sock, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._sock.setblocking(False)
        try:
            self._table.start(self, partial(_fork_guard, theirs, self._workers(), self._owner))
        finally:
            theirs.close()
        # Reaped at once, or its pid could stand for another process later. It takes a millisecond.
        self._table.wait(self)

    def _close(self) -> None:
        if self._sock is not None:
            self._table.remove(self)
            self.close_in_child()

    def _on_end(self) -> None:
        self._close()
        self._delay.ended(time.monotonic())
        log.warning("The process that ends orphaned workers has ended; another follows")


def _fork_guard(sock: socket.socket, workers: list[GuardedWorker], owner: int | None) -> int:
    """The process in between: fork the guard itself, and exit."""
    if os.fork() == 0:
        process_info.set_title("servo: guard")
        guard_workers(sock, workers, owner)
    return 0


def guard_workers(sock: socket.socket, first: list[GuardedWorker], owner: int | None) -> None:
    """Run in the guard's process until the arbiter and all workers have ended.

    sock    brings a record of each further worker; its end of stream is the arbiter's death
    first   the workers that run already
    owner   the user that workers become, or None
    """
    workers: dict[int, GuardedWorker] = {}
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
                _add(workers, poller, GuardedWorker(*_RECORD.unpack(record)))
    finally:
        for fd in workers:
            os.close(fd)


def _add(workers: dict[int, GuardedWorker], poller: select.poll, worker: GuardedWorker) -> None:
    try:
        # A descriptor, because the pid may belong to another process once the worker has ended.
        fd = os.pidfd_open(worker.pid)
    except ProcessLookupError:
        return  # it has ended and was reaped already
    except OSError as error:
        log.error("Worker process %d can't be watched: %s", worker.pid, error)
        return
    workers[fd] = worker
    poller.register(fd, select.POLLIN)


def _forget(workers: dict[int, GuardedWorker], poller: select.poll, fd: int) -> None:
    del workers[fd]
    poller.unregister(fd)
    os.close(fd)


def _end(workers: dict[int, GuardedWorker], poller: select.poll, owner: int | None) -> None:
    """The arbiter is dead: kill each worker whose grace is over, until none is left."""
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
