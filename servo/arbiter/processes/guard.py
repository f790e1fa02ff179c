"""The guard: a process that kills workers if they outlive their arbiter.

When an arbiter dies, its workers notice, finish their requests, and end. But a worker may be stuck
in its application: its only thread computes, sleeps in a database driver, or holds the
interpreter's lock in a C extension. Such a worker does not notice. It would keep running and hold
the port, so the next server could not start. Code inside the stuck process may never get to run, so
another process must kill it.

The arbiter sends the guard the pid of each worker over a socket. While the arbiter lives, the guard
sleeps in poll(2), and wakes only when a worker starts or ends. When the arbiter dies, the kernel
closes its end of the socket, and the guard reads the end of the stream. It then kills each worker
after its `graceful_timeout`. The guard itself ends with the last worker.

An intermediate process forks the guard and exits at once. So the guard is not a child of the
arbiter, and the arbiter never has to reap it.
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

# One message from the arbiter: a worker's pid, and its grace in seconds.
_RECORD = struct.Struct("=id")
# This message makes the guard end without killing workers, because the arbiter has a new guard.
_DISMISSED = _RECORD.pack(0, 0.0)
# The least grace in seconds. Even with graceful_timeout = 0, a worker needs time to notice the
# arbiter's death.
_LEAST_S = 0.1


@dataclass(frozen=True, slots=True)
class GuardedWorker:
    """A worker that the guard kills if it outlives the arbiter.

    pid       its process id
    grace_s   seconds that it may outlive the arbiter
    """

    pid: int
    grace_s: float


class Guard:
    """The arbiter's side of the guard. If the guard ends, `tick` starts another.

    table     forks the process
    workers   returns all workers that were forked and not yet reaped
    owner     the user that workers run as, or None
    """

    def __init__(
        self,
        table: ChildTable,
        workers: Callable[[], list[GuardedWorker]],
        owner: int | None,
    ) -> None:
        self.pid = 0  # the intermediate process; the guard's own pid is not known
        self._table = table
        self._workers = workers
        self._owner = owner
        self._is_wanted = True
        self._sock: socket.socket | None = None
        self._predecessor: socket.socket | None = None
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
        """Report a newly forked worker to the guard."""
        if self._sock is None:
            return
        try:
            self._sock.send(_RECORD.pack(worker.pid, worker.grace_s))
        except OSError as error:
            # The guard always reads at once, so the socket can't be full: the guard has ended. The
            # next one gets a list of all workers.
            log.debug("The guard can't be told about worker process %d: %s", worker.pid, error)
            self._on_end()

    def to_state(self, pass_on: Callable[[int], int]) -> int:
        """Return the arbiter's end of the socket, for `succeed`; -1 without a guard.

        pass_on  keeps a descriptor open for the next program, and returns it
        """
        return pass_on(self.fileno())

    def succeed(self, fd: int) -> None:
        """Replace the guard of this process's previous program.

        The old guard runs until the new one knows all workers, so the workers always have a guard.

        fd  the result of that guard's `to_state`
        """
        if fd >= 0:
            self._predecessor = socket.socket(fileno=fd)
            self._predecessor.setblocking(False)

    def fileno(self) -> int:
        """The arbiter's end of the socket, readable after the guard has ended; -1 without one."""
        return self._sock.fileno() if self._sock is not None else -1

    def on_ready(self, _mask: int) -> None:
        """Note that the guard has ended, because its end of the socket is closed."""
        self._on_end()

    def on_exit(self, code: int) -> None:
        """Ignore the exit of the intermediate process. If it failed, `on_ready` follows."""
        log.debug("Process %d has forked the guard and exited with code %d", self.pid, code)

    def reopen_logs(self) -> None:
        """Do nothing: the guard logs only after the arbiter has died."""

    def stop(self) -> None:
        """Close the arbiter's end. The guard then ends with the last worker."""
        self._is_wanted = False
        self._close()
        self.close_in_child()

    def close_in_child(self) -> None:
        """Close this process's copies of the arbiter's sockets to the guard and its predecessor."""
        for sock in (self._sock, self._predecessor):
            if sock is not None:
                sock.close()
        self._sock = self._predecessor = None

    def _start(self) -> None:
        self._sock, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._sock.setblocking(False)
        try:
            self._table.start(self, partial(_fork_guard, theirs, self._workers(), self._owner))
        finally:
            theirs.close()
        # Reap the intermediate process now, which takes a millisecond. Later, other code might find
        # its pid in the table after another process has got the same pid.
        self._table.wait(self)
        self._dismiss_predecessor()

    def _dismiss_predecessor(self) -> None:
        if self._predecessor is None:
            return
        try:
            self._predecessor.send(_DISMISSED)
        except OSError as error:
            log.debug("The former guard has ended already: %s", error)
        self._predecessor.close()
        self._predecessor = None

    def _close(self) -> None:
        if self._sock is not None:
            self._table.remove(self)
            self._sock.close()
            self._sock = None

    def _on_end(self) -> None:
        self._close()
        self._delay.ended(time.monotonic())
        log.warning("The process that ends orphaned workers has ended; another follows")


def _fork_guard(sock: socket.socket, workers: list[GuardedWorker], owner: int | None) -> int:
    """Run the intermediate process: fork the guard, and exit."""
    if os.fork() == 0:
        process_info.set_title("servo: guard")
        guard_workers(sock, workers, owner)
    return 0


def guard_workers(sock: socket.socket, first: list[GuardedWorker], owner: int | None) -> None:
    """Run the guard's process until the arbiter and all workers have ended.

    sock    the arbiter sends a record for each new worker; the end of the stream means that the
            arbiter has died
    first   the workers that already run
    owner   the user that workers run as, or None
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
                if record == _DISMISSED:
                    return
                _add(workers, poller, GuardedWorker(*_RECORD.unpack(record)))
    finally:
        for fd in workers:
            os.close(fd)


def _add(workers: dict[int, GuardedWorker], poller: select.poll, worker: GuardedWorker) -> None:
    try:
        # Use a pidfd: after the worker's end, its pid may belong to another process.
        fd = os.pidfd_open(worker.pid)
    except ProcessLookupError:
        return  # it has ended, and was already reaped
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
    """After the arbiter's death: kill each worker at the end of its grace, until none is left."""
    gone_at = time.monotonic()
    while workers:
        grace_s = {fd: max(worker.grace_s, _LEAST_S) for fd, worker in workers.items()}
        due = gone_at + min(grace_s.values())
        for fd, _ in poller.poll(max(due - time.monotonic(), 0.0) * 1000):
            _forget(workers, poller, fd)
        over_s = time.monotonic() - gone_at
        for fd in [fd for fd in workers if grace_s[fd] <= over_s]:
            pid = workers[fd].pid
            text = "Worker process %d still runs %.3g s after its arbiter's end; killing it"
            log.error(text, pid, grace_s[fd])
            process_info.send_signal(pid, signal.SIGKILL, owner)
            _forget(workers, poller, fd)
