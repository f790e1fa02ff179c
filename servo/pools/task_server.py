"""Runs tasks in a pool process, one at a time: accept, run, answer.

All processes of a pool share one listening socket. A process that waits for a task waits for a
connection, so the kernel's queue of connections is the queue of tasks, and the kernel gives each
task to a process that is free. No other process takes part.

A task belongs to its connection. If the caller closes it before the task begins, the task is
skipped. If the caller closes it later, the task runs to its end (Python code can't be interrupted
from outside), and its result is dropped; a stream ends at its next item. With a lifeline, which is
a pipe from the caller, the kernel sends SIGIO when the caller closes the other end. SIGIO ends the
process at once, whatever it does.
"""

from __future__ import annotations

import fcntl
import logging
import os
import select
import signal
import traceback
from typing import TYPE_CHECKING, Any

from servo.pools import wire
from servo.pools.board import ABANDONED, DONE, FAILED
from servo.pools.errors import NotPicklable, RemoteError, TaskNotLoaded

if TYPE_CHECKING:
    import socket

    from servo.pools.board import Row
    from servo.pools.wire import Message, Packed

log = logging.getLogger("servo.error")

# How long a caller that has connected may take to send its task, in seconds. It sends it at once.
_TASK_S = 5.0
# How many characters of an exception and of its traceback always fit into a message.
_MAX_TEXT = 4000


class CallerGone(Exception):  # noqa: N818
    """Raised in a stream whose caller has closed the connection."""


class RemoteTraceback(Exception):  # noqa: N818
    """The traceback of a task, as the `__cause__` of its exception in the caller's process."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.text = text

    def __str__(self) -> str:
        return self.text


class TaskServer:
    """Accepts and runs tasks until it is asked to end.

    listener  the pool's listening socket; not blocking
    order_fd  a descriptor from the arbiter; the process ends when the other end is closed
    row       its row of the board
    """

    def __init__(self, listener: socket.socket, order_fd: int, row: Row) -> None:
        self._listener = listener
        self._order_fd = order_fd
        self._row = row
        self._uids = {0, os.geteuid()}

    def run(self) -> None:
        """Run tasks until the arbiter closes its end of the pipe. Raises OSError."""
        epoll = select.epoll()
        epoll.register(self._order_fd, select.EPOLLIN)
        # Without EPOLLEXCLUSIVE, each task would wake all idle processes of the pool.
        epoll.register(self._listener.fileno(), select.EPOLLIN | select.EPOLLEXCLUSIVE)
        self._row.ready()
        while True:
            ready = {fd for fd, _ in epoll.poll()}
            if self._order_fd in ready:
                epoll.close()
                return
            self.serve_waiting()

    def serve_waiting(self) -> None:
        """Accept one task, if one waits, and run it."""
        try:
            sock, _ = self._listener.accept()
        except (BlockingIOError, ConnectionAbortedError):
            return  # another process has taken it
        with sock:
            try:
                self._serve(sock)
            except (OSError, wire.WireError) as error:
                log.debug("A caller of the pool is gone: %s", error)

    def _serve(self, sock: socket.socket) -> None:
        sock.setblocking(True)
        pid, uid = wire.peer(sock)
        if uid not in self._uids:
            log.warning("Process %d of user %d may not use this pool; refusing it", pid, uid)
            return
        poller = select.poll()
        poller.register(sock, select.POLLIN | select.POLLRDHUP)
        if not poller.poll(_TASK_S * 1000):
            log.warning("Process %d has connected to the pool and sent no task; refusing it", pid)
            return
        task = wire.receive(sock)
        if task is None:
            return
        lifeline = Lifeline(task.fd)
        try:
            if task.kind != wire.TASK:
                raise wire.WireError(f"a message of kind {task.kind} instead of a task")
            # First write the key to the row, and then look whether the caller is still there. A
            # caller that cancels the task does the same in the other order. So one of the two
            # notices the other: a cancelled task never runs.
            self._row.begin(task.label, task.key)
            if lifeline.is_cut() or any(mask & select.POLLRDHUP for _, mask in poller.poll(0)):
                self._row.skip()
            else:
                self._perform(sock, task, lifeline)
        finally:
            lifeline.end()

    def _perform(self, sock: socket.socket, task: Message, lifeline: Lifeline) -> None:
        """Run a task, and send its result."""
        outcome = ABANDONED
        try:
            kind, packed = _Run(sock, task).answer()
            # Before the caller gets the result, because it closes its end then.
            lifeline.end()
            try:
                wire.send(sock, kind, packed)
            finally:
                packed.close()
            outcome = FAILED if kind == wire.ERROR else DONE
        except (CallerGone, ConnectionError):
            log.debug("The caller of %s is gone", task.label)
        except (OSError, wire.WireError) as error:
            outcome = FAILED
            self._send_failure(sock, error)
        self._row.end(outcome)

    def _send_failure(self, sock: socket.socket, error: Exception) -> None:
        """Tell the caller that the result can't be sent."""
        text = f"the result of the task can't be sent: {error}"
        try:
            wire.send(sock, wire.ERROR, pack_error(RemoteError(text), error))
        except ConnectionError:
            log.debug("The caller is gone")
        except OSError:
            # If the connection ended without an answer, the caller would send the task again. So
            # end this process while its row still has the task's key.
            log.exception("A pool process can't answer its caller, so it ends")
            os._exit(1)


class Lifeline:
    """The read end of a pipe whose other end the caller has; closing that ends this process.

    fd   the read end; -1 if the caller has sent none
    """

    def __init__(self, fd: int) -> None:
        self._fd = fd
        if fd < 0:
            return
        fcntl.fcntl(fd, fcntl.F_SETOWN, os.getpid())
        # The default action of SIGIO ends the process, even in code that never returns to the
        # interpreter. The application may have changed it.
        signal.signal(signal.SIGIO, signal.SIG_DFL)
        fcntl.fcntl(fd, fcntl.F_SETFL, fcntl.fcntl(fd, fcntl.F_GETFL) | os.O_ASYNC)

    def is_cut(self) -> bool:
        """Whether the caller has closed its end before this object existed."""
        if self._fd < 0:
            return False
        poller = select.poll()
        poller.register(self._fd, 0)
        return bool(poller.poll(0))

    def end(self) -> None:
        """From here on, the caller can't end this process."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


class _Run:
    """One run of a task: loads it, calls its function, and packs what the caller gets."""

    def __init__(self, sock: socket.socket, task: Message) -> None:
        self._sock = sock
        self._is_stream = bool(task.flags & wire.STREAM)
        self._credit = task.credit
        self._data = task.data

    def answer(self) -> tuple[int, Packed]:
        """Return the kind and the data of the last message. Raises CallerGone and OSError."""
        try:
            function, args, kwargs = wire.unpack(self._data)
        except BaseException as error:  # noqa: BLE001  the caller gets it
            text = f"the pool process can't load the task: {type(error).__name__}: {error}"
            return wire.ERROR, pack_error(TaskNotLoaded(text), error)
        try:
            value = function(*args, **kwargs)
            if self._is_stream:
                self._send_items(value)
                return wire.END, wire.NOTHING
        except CallerGone:
            raise
        except BaseException as error:  # noqa: BLE001  the caller gets it
            return wire.ERROR, pack_error(error, error)
        try:
            return wire.RESULT, wire.pack(value, "the result of the task")
        except (NotPicklable, OSError, MemoryError) as error:
            return wire.ERROR, pack_error(error, error)

    def _send_items(self, values: Any) -> None:
        """Send the items of an iterable, at most as many as the caller has room for."""
        try:
            for value in values:
                packed = wire.pack(value, "an item of the stream")
                del value
                try:
                    self._wait_for_credit()
                    wire.send(self._sock, wire.ITEM, packed)
                    self._credit -= 1
                except OSError as error:
                    raise CallerGone from error
                finally:
                    packed.close()
        finally:
            close = getattr(values, "close", None)
            if close is not None:
                close()  # runs the generator's `finally` clauses

    def _wait_for_credit(self) -> None:
        while self._credit <= 0:
            message = wire.receive(self._sock)
            if message is None:
                raise CallerGone
            self._credit += message.credit


def pack_error(error: BaseException, cause: BaseException) -> Packed:
    """Pack an exception, with its traceback as text.

    error   the exception that the caller gets
    cause   the exception with the traceback
    """
    text = "".join(traceback.format_exception(type(cause), cause, cause.__traceback__))
    report = f'\n"""\n{text}"""'
    error.__traceback__ = None  # its frames would keep the task's data alive
    try:
        packed = wire.pack((error, report), "the exception of the task")
    except NotPicklable:
        return _pack_replacement(error, report)
    except OSError as failure:  # no memory for a memfd, so what is sent must be short
        text = f"{_name(error)[:_MAX_TEXT]}: {failure}"
        return wire.pack((RemoteError(text), report[-_MAX_TEXT:]), "an error")
    if packed.fd >= 0:
        return packed
    try:
        # Some exceptions can be pickled, but not unpickled, because of their constructor.
        wire.unpack(memoryview(bytearray(packed.inline)))
    except Exception:  # noqa: BLE001  the class may raise anything
        return _pack_replacement(error, report)
    return packed


def _pack_replacement(error: BaseException, report: str) -> Packed:
    return wire.pack((RemoteError(_name(error)), report), "an error")


def _name(error: BaseException) -> str:
    try:
        return f"{type(error).__name__}: {error}"
    except Exception as failure:  # noqa: BLE001  `__str__` is the application's code
        return f"{type(error).__name__} (its text can't be made: {type(failure).__name__})"


def with_traceback(packed: Any) -> BaseException:
    """The exception from `pack_error`, with the traceback as its `__cause__`.

    packed   the unpickled value

    If the value is no exception, the result is a WireError.
    """
    if not (
        isinstance(packed, tuple) and len(packed) == 2 and isinstance(packed[0], BaseException)
    ):
        return wire.WireError("an error without an exception")
    error: BaseException = packed[0]
    error.__cause__ = RemoteTraceback(str(packed[1]))
    return error
