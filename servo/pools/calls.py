"""The tasks of this process that run, or wait, in pools: one thread receives their results.

`submit` connects and sends the task in the caller's thread, because both are done at once or fail
at once: a full queue refuses the connection. One thread for all pools, which starts with the first
task, waits for the answers, as in `ProcessPoolExecutor`. It also

* connects again, while the queue is full and `queue_timeout` allows it;
* connects again if a process ended after it had accepted a task and before it began it. The pool's
  board tells whether the task has begun, so it can't run twice;
* looks for the reason on the board if a process ended while it ran the task.

After a fork, the child has no tasks: the futures of its parent's tasks fail in the child.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
import select
import socket
import threading
import time
from collections import deque
from typing import TYPE_CHECKING, Any, Final

from servo.pools import wire
from servo.pools.board import TIMED_OUT
from servo.pools.errors import (
    NotPicklable,
    PoolError,
    PoolUnavailable,
    ProcessDied,
    QueueFull,
    TaskTimeout,
)
from servo.pools.task_server import with_traceback

if TYPE_CHECKING:
    from collections.abc import Callable

    from servo.pools.board import Board
    from servo.pools.wire import Message, Packed

log = logging.getLogger("servo.error")

# How often to try again while the queue is full, and to look for the reason of an exit, in seconds.
_RETRY_S = 0.01
# How long the arbiter may take to record the reason of an exit, in seconds. It does so as soon as
# the kernel reports the exit, unless the machine is overloaded.
_REASON_S = 5.0
# How often a task is sent again because its process ended before it began the task.
_MAX_RETRIES: Final = 5


class Pool:
    """One pool, as its callers need it.

    name           its name
    path           its socket's file
    board          its board; None if there is none
    workers        the number of its processes
    queue          how many tasks may wait
    queue_timeout  how long to wait for a place in a full queue, in seconds; 0: not at all
    is_local       whether to wait for the socket, because a local process will make it
    """

    def __init__(
        self,
        name: str,
        path: str,
        board: Board | None = None,
        *,
        workers: int = 1,
        queue: int = 100,
        queue_timeout: float = 0.0,
        is_local: bool = False,
    ) -> None:
        self.name = name
        self.is_local = is_local
        self.path = path
        self.workers = workers
        self.queue = queue
        self.queue_timeout = queue_timeout
        self.board = board

    def is_running(self, key: int) -> bool:
        """Whether the task with this key runs, or has died with its process just now."""
        return self.board is not None and self.board.is_running(key)

    def reason_of(self, key: int) -> ProcessDied | None:
        """The error for a task whose process ended; None if it is not known (yet)."""
        found = self.board.exit_of(key) if self.board is not None else None
        if found is None:
            return None
        kind = TaskTimeout if found.kind == TIMED_OUT else ProcessDied
        return kind(found.pid, found.reason)


class Receiver:
    """What a call reports to; the base class does nothing. Called in the thread of `Calls`."""

    def on_value(self, value: Any) -> None:
        """Handle an item of a stream."""

    def on_end(self, value: Any) -> None:
        """Handle the result, or the end of the stream."""

    def on_error(self, error: BaseException) -> None:
        """Handle the exception of the task, or the reason why there is none."""

    def on_fork(self, error: BaseException) -> None:
        """Handle that this is the copy of a call in a forked child.

        Threads of the parent may have held any lock at the fork.
        """


class Call:
    """One task, from `submit` to its answer.

    pool      the pool
    packed    the function and its arguments
    label     the function's name
    receiver  gets the answers
    flags     STREAM
    credit    how many items of a stream the receiver takes
    leash     whether the task's process ends if this process closes the call
    """

    def __init__(
        self,
        pool: Pool,
        packed: Packed,
        label: str,
        receiver: Receiver,
        *,
        flags: int = 0,
        credit: int = 0,
        leash: bool = False,
    ) -> None:
        self.pool = pool
        self.receiver = receiver
        self.sock: socket.socket | None = None
        self.key = 0
        self.retries = 0
        self.due = 0.0
        self.is_over = False
        self._packed: Packed | None = packed
        self._label = label
        self._flags = flags
        self._credit = credit
        self._leash = leash
        self._leash_fd = -1

    def connect(self) -> None:
        """Connect, and send the task. Raises QueueFull, PoolUnavailable and OSError."""
        assert self._packed is not None
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)
        ends: list[int] = []
        try:
            sock.setblocking(False)
            self._connect(sock)
            flags = self._flags
            if self._leash:
                ends = list(os.pipe2(os.O_CLOEXEC))
                flags |= wire.LIFELINE
            wire.send(
                sock,
                wire.TASK,
                self._packed,
                credit=self._credit,
                key=self.key,
                label=self._label,
                flags=flags,
                lifeline=ends[0] if ends else -1,
            )
        except BaseException:
            sock.close()
            for fd in ends:
                os.close(fd)
            raise
        if ends:
            os.close(ends[0])
            self._leash_fd = ends[1]
        self.sock = sock

    def _connect(self, sock: socket.socket) -> None:
        pool = self.pool
        try:
            sock.connect(pool.path)
        except BlockingIOError:
            raise QueueFull(
                f"the queue of the pool {pool.name} is full: {pool.queue} tasks wait"
            ) from None
        except (FileNotFoundError, ConnectionRefusedError):
            if pool.is_local:
                raise QueueFull("the local process does not listen yet") from None
            raise PoolUnavailable(
                f"the pool {pool.name} has ended, because its server has ended or its "
                "configuration no longer has this pool"
            ) from None
        pid, uid = wire.peer(sock)
        if uid not in (0, os.geteuid()):
            raise PoolUnavailable(
                f"the socket of the pool {pool.name} belongs to process {pid} of user {uid}, not "
                "to this server"
            )

    def close(self) -> None:
        """Close the connection."""
        if self.sock is not None:
            self.sock.close()
            self.sock = None
        if self._leash_fd >= 0:
            os.close(self._leash_fd)
            self._leash_fd = -1

    def finish(self) -> None:
        """Close everything."""
        self.is_over = True
        self.close()
        self._forget_task()

    def _forget_task(self) -> None:
        packed, self._packed = self._packed, None
        if packed is not None:
            packed.close()


class Calls:
    """All calls of this process, and the thread that receives their answers."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        # The keys of this process's tasks must differ from those of other processes.
        self._keys = itertools.count(int.from_bytes(os.urandom(8), "little"))
        self._epoll = select.epoll()
        self._wake_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._epoll.register(self._wake_fd, select.EPOLLIN)
        self._by_fd: dict[int, Call] = {}
        # The calls that wait for a place in the queue, and those that wait for a reason.
        self._waiting: deque[Call] = deque()
        self._broken: list[Call] = []
        self._done = threading.Condition(self._lock)
        self._thread: threading.Thread | None = None

    def start(self, call: Call) -> None:
        """Send a task. Raises QueueFull, PoolUnavailable and OSError; the call is over then."""
        pool = call.pool
        call.key = next(self._keys) % (1 << 64) or next(self._keys)
        try:
            call.connect()
        except QueueFull:
            with self._lock:
                waiting = sum(each.pool is pool for each in self._waiting)
                if pool.queue_timeout <= 0 or waiting >= pool.queue:
                    call.finish()
                    raise
                call.due = time.monotonic() + pool.queue_timeout
                self._waiting.append(call)
                self._ensure_thread()
            self._wake()
        except BaseException:
            call.finish()
            raise
        else:
            with self._lock:
                self._watch(call)
                self._ensure_thread()

    def close(self, call: Call) -> None:
        """Give up a call. Its receiver gets nothing more."""
        with self._lock:
            self._drop(call)

    def has_begun(self, call: Call) -> bool:
        """Whether a task has begun. If this returns False, it will never begin."""
        with self._lock, contextlib.suppress(OSError):
            if call.sock is None:
                return False
            # First tell the process that the task is given up, and then look whether it has begun:
            # see `TaskServer`.
            call.sock.shutdown(socket.SHUT_WR)
        return call.pool.is_running(call.key)

    def grant(self, call: Call, count: int) -> None:
        """Take further items of a stream. Does nothing after the call's end."""
        # With the lock: otherwise the descriptor could be closed, and used again, meanwhile.
        with self._lock, contextlib.suppress(OSError):  # the thread notices the end
            if call.sock is not None:
                wire.send(call.sock, wire.CREDIT, credit=count)

    def fail(self, call: Call, error: BaseException) -> None:
        """Give up a call, and pass an error to its receiver. Does nothing after the call's end."""
        with self._lock:
            if call.is_over:
                return
        self._fail(call, error)

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until no call is left. Returns False if that takes too long."""
        with self._lock:
            return self._done.wait_for(lambda: not self._count(), timeout)

    def after_fork(self) -> list[Call]:
        """In a forked child: close the copies of the parent's connections. Returns its calls."""
        # The lock and the thread belong to the parent, so neither is used here.
        calls = [*self._by_fd.values(), *self._waiting, *self._broken]
        for call in calls:
            call.finish()
        self._epoll.close()
        os.close(self._wake_fd)
        return calls

    # --- the thread -------------------------------------------------------------------------------

    def _ensure_thread(self) -> None:
        if self._thread is None:
            # A daemon: `wait_at_exit` decides how long the process waits for its tasks.
            self._thread = threading.Thread(target=self._run, name="servo-pools", daemon=True)
            self._thread.start()

    def _run(self) -> None:
        while True:
            timed = self._waiting or self._broken
            for fd, _ in self._epoll.poll(_RETRY_S if timed else None):
                if fd == self._wake_fd:
                    with contextlib.suppress(BlockingIOError):
                        os.eventfd_read(fd)
                    continue
                call = self._by_fd.get(fd)
                if call is not None:
                    self._receive(call)
            if timed:
                self._retry(time.monotonic())

    def _receive(self, call: Call) -> None:
        """Handle the messages that have arrived for a call."""
        while True:
            try:
                # With the lock: otherwise another thread could close the descriptor between
                # reading its number and the system call, and this would read another call's.
                with self._lock:
                    if call.sock is None:
                        return
                    message = wire.receive(call.sock)
            except BlockingIOError:
                return
            except ConnectionError:
                message = None
            except (OSError, wire.WireError) as error:
                text = f"the answer of the pool process can't be received: {error}"
                self._fail(call, PoolError(text))
                return
            if message is None:
                self._on_close(call)
                return
            self._on_message(call, message)

    def _on_message(self, call: Call, message: Message) -> None:
        receiver = call.receiver
        try:
            value = wire.unpack(message.data) if len(message.data) else None
        except BaseException as error:  # noqa: BLE001  the caller gets it
            self._fail(
                call,
                NotPicklable(f"the result can't be unpickled: {type(error).__name__}: {error}"),
            )
            return
        if message.kind == wire.ITEM:
            receiver.on_value(value)
        elif message.kind == wire.ERROR:
            self._fail(call, with_traceback(value))
        else:
            self.close(call)
            receiver.on_end(value)

    def _on_close(self, call: Call) -> None:
        """Handle the end of a connection before the answer."""
        with self._lock:
            if call.is_over:
                return
            self._unwatch(call)
            call.close()
            call.due = time.monotonic() + _REASON_S
            self._broken.append(call)
        self._find_reason(call, time.monotonic())

    def _find_reason(self, call: Call, now: float) -> None:
        """Find out why a connection ended before the answer."""
        # In this order: the arbiter writes the exit before it frees the row.
        is_running = call.pool.is_running(call.key)
        error = call.pool.reason_of(call.key)
        if error is None and now >= call.due:
            error = ProcessDied(0, "the reason is not known")
        if error is not None:
            self._fail(call, error)
        elif not is_running and not call.pool.is_local:
            # The process ended before it began the task, perhaps while it accepted it.
            self._send_again(call, now)

    def _send_again(self, call: Call, now: float) -> None:
        call.retries += 1
        if call.retries > _MAX_RETRIES:
            text = f"{_MAX_RETRIES + 1} processes in turn ended before they began the task"
            self._fail(call, ProcessDied(0, text))
            return
        with self._lock:
            if not call.is_over:
                call.due = now + max(call.pool.queue_timeout, _REASON_S)
                self._broken.remove(call)
                self._waiting.append(call)

    def _retry(self, now: float) -> None:
        """Connect the calls that wait for a place in the queue, and look for reasons of exits."""
        for call in list(self._broken):
            self._find_reason(call, now)
        full: set[Pool] = set()
        for call in list(self._waiting):
            if call.pool in full and now < call.due:
                continue  # keep the order of the calls
            try:
                self._connect_again(call)
            except QueueFull as error:
                full.add(call.pool)
                if now >= call.due:
                    self._fail(call, error)
            except (OSError, PoolUnavailable) as error:
                self._fail(call, error)

    def _connect_again(self, call: Call) -> None:
        with self._lock:
            if call.is_over:
                return
            call.connect()
            self._waiting.remove(call)
            self._watch(call)

    def _fail(self, call: Call, error: BaseException) -> None:
        self.close(call)
        call.receiver.on_error(error)

    # --- with the lock ----------------------------------------------------------------------------

    def _watch(self, call: Call) -> None:
        assert call.sock is not None
        fd = call.sock.fileno()
        self._by_fd[fd] = call
        self._epoll.register(fd, select.EPOLLIN)

    def _unwatch(self, call: Call) -> None:
        if call.sock is not None and self._by_fd.get(call.sock.fileno()) is call:
            fd = call.sock.fileno()
            del self._by_fd[fd]
            self._epoll.unregister(fd)

    def _drop(self, call: Call) -> None:
        if call.is_over:
            return
        self._unwatch(call)
        call.finish()
        if call in self._waiting:
            self._waiting.remove(call)
        if call in self._broken:
            self._broken.remove(call)
        if not self._count():
            self._done.notify_all()

    def _count(self) -> int:
        return len(self._by_fd) + len(self._waiting) + len(self._broken)

    def _wake(self) -> None:
        os.eventfd_write(self._wake_fd, 1)


_calls: Calls | None = None
# Reentrant: the garbage collector may close a stream in the middle of `calls`.
_calls_lock = threading.RLock()


def calls() -> Calls:
    """The calls of this process."""
    global _calls
    with _calls_lock:
        if _calls is None:
            _calls = Calls()
            _register_once()
        return _calls


_registered: list[Callable[..., Any]] = []


def _register_once() -> None:
    if _registered:
        return
    _registered.append(_after_fork_in_child)
    os.register_at_fork(after_in_child=_after_fork_in_child)
    # As the executors of the standard library do: an ordinary `atexit` function would run too late,
    # after the threads have ended. There is no public function for this.
    register: Callable[..., Any] = threading._register_atexit  # type: ignore[attr-defined]
    register(wait_at_exit)


def _after_fork_in_child() -> None:
    global _calls, _calls_lock
    _calls_lock = threading.RLock()
    parent, _calls = _calls, None
    for call in parent.after_fork() if parent is not None else ():
        text = "the task belongs to the process that has forked this one"
        call.receiver.on_fork(ProcessDied(0, text))


def wait_at_exit() -> None:
    """Wait for the tasks of this process, as Python waits for those of other executors."""
    if _calls is not None:
        _calls.wait()
