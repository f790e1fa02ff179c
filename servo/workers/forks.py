"""Processes that an application forks, by `os.fork` or by multiprocessing.

Such a child is a copy of the worker, but must not act as one. This module prevents three errors:

* Signals. A signal to the new child, such as that of `Process.terminate()`, would be written to the
  worker's wake-up descriptor, and the worker would act on it. So all signals that a worker handles
  are blocked during the fork, and the child unblocks them after it has reset their handlers.
* Descriptors. The child shares the worker's epoll instance: a socket that the child removes would
  be removed for the worker, too. So the child gets its own instance under the same number
  (`replace_wakers`), and closes its copies of the listeners and the channel.
* Return. A child that returns to the worker's event loop would run the loop a second time, and
  serve the worker's clients. So the child ends when it returns to the worker's code
  (`end_on_return`).
"""

from __future__ import annotations

import faulthandler
import logging
import os
import select
import signal
import socket
import sys
import threading
from typing import TYPE_CHECKING, Any, NoReturn

from servo.logs import error_log as log_module
from servo.logs.entry_counts import count_log
from servo.workers.query_signals import STACK_SIGNAL

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from types import CodeType, FrameType

    from servo.ipc.channel import Channel
    from servo.net.listeners import Listener
    from servo.workers.messages.mailbox import Mailbox

log = logging.getLogger("servo.error")

# The signals that the arbiter handles. Its children ignore them until they set their own handlers.
IGNORED = (
    signal.SIGTERM,
    signal.SIGINT,
    signal.SIGQUIT,
    signal.SIGHUP,
    signal.SIGTTIN,
    signal.SIGTTOU,
    signal.SIGUSR1,
    signal.SIGUSR2,
    signal.SIGWINCH,
)


def do_nothing(_signum: int, _frame: FrameType | None) -> None:
    """Handle a signal that means nothing to a worker.

    SIG_IGN is no substitute: a program that the application starts would inherit it, and then
    neither Ctrl-C nor `Popen.send_signal` would end that program.
    """


class Forks:
    """Separates the child processes of an application from the worker.

    listeners, channel, mailbox  those of the worker; a child closes them

    in_child  called in each child, in the thread that forked it; None until there is a worker
    """

    in_child: Callable[[], None] | None = None

    def __init__(self, listeners: list[Listener], channel: Channel, mailbox: Mailbox) -> None:
        self._listeners = listeners
        self._channel = channel
        self._mailbox = mailbox
        self._handlers: dict[int, Any] = {}  # by signal
        # The signal mask before the fork, for each thread: several threads may fork at a time.
        self._masks = threading.local()
        self._is_over = False
        for signum in IGNORED:
            if signal.getsignal(signum) == signal.SIG_IGN:
                signal.signal(signum, do_nothing)
                signal.siginterrupt(signum, False)
        self.own(*IGNORED, signal.SIGABRT)
        os.register_at_fork(
            before=self._before, after_in_parent=self._restore, after_in_child=self._after_in_child
        )

    def own(self, *signums: int) -> None:
        """Note that the present handlers of these signals are the worker's: children reset them.

        signums  the signals' numbers; 0 for a signal that this system does not have

        Call this after the worker has set its handlers, and before the application's code runs.
        """
        for signum in signums:
            if signum:
                self._handlers[signum] = signal.getsignal(signum)

    def forget(self) -> None:
        """In a mold that this worker has forked: leave its children alone.

        They become workers, which have their own `Forks`. `os.register_at_fork` can't remove hooks,
        so the hooks of this object check a flag.
        """
        self._is_over = True

    def _before(self) -> None:
        if self._is_over:
            return
        self._masks.mask = signal.pthread_sigmask(signal.SIG_BLOCK, self._handlers)

    def _restore(self) -> None:
        if self._is_over:
            return
        signal.pthread_sigmask(signal.SIG_SETMASK, self._masks.mask)

    def _after_in_child(self) -> None:
        if self._is_over:
            return
        try:
            signal.set_wakeup_fd(-1)
            for signum, handler in self._handlers.items():
                # Keep a handler that the application has set.
                if signal.getsignal(signum) is handler:
                    signal.signal(signum, signal.SIG_DFL)
            if STACK_SIGNAL:
                faulthandler.unregister(STACK_SIGNAL)
            self._forget()
            if self.in_child is not None:
                self.in_child()
        finally:
            self._restore()

    def _forget(self) -> None:
        """In a child: give up the port, the arbiter's channel, and the worker's identity."""
        for listener in self._listeners:
            # `close` would wait until the event loop no longer watches the socket. The child runs
            # no loop, so this would never happen.
            fd = listener.socket.detach()
            if fd >= 0:  # a draining worker has already closed its listeners
                os.close(fd)
        self._mailbox.disable_in_child()
        self._channel.close()
        log_module.set_tap(None)
        count_log(None)


def open_fds() -> set[int]:
    """The descriptors that this process has open."""
    listed = os.listdir("/proc/self/fd")
    # Leave out the descriptor that `listdir` itself used: it is closed by now.
    return {int(name) for name in listed if os.path.lexists(f"/proc/self/fd/{name}")}


def replace_wakers(fds: Iterable[int]) -> None:
    """In a child: put new descriptors in place of those that wake the worker.

    fds  descriptors of the worker: epoll instances, eventfds, pipes and socket pairs

    The numbers stay the same, so code of the child that still uses them does not reach the worker.
    """
    for fd in fds:
        try:
            is_epoll = os.readlink(f"/proc/self/fd/{fd}") == "anon_inode:[eventpoll]"
        except OSError:
            continue  # already closed
        if is_epoll:
            with select.epoll() as epoll:
                os.dup2(epoll.fileno(), fd, inheritable=False)
        else:
            fresh = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
            os.dup2(fresh, fd, inheritable=False)
            os.close(fresh)


def replace_sockets(fds: Iterable[int]) -> None:
    """In a child: replace the sockets of the worker's clients by a disconnected one.

    fds  the descriptors of those sockets

    Then the child can't write into a response of the worker, and can't keep a connection open after
    the worker has closed it.
    """
    dead, other = socket.socketpair()
    other.close()
    with dead:
        for fd in fds:
            os.dup2(dead.fileno(), fd, inheritable=False)


def end_on_return(loop_frame: FrameType | None) -> bool:
    """In a child: end the process when the application's code returns to the worker's code.

    loop_frame  the frame that runs the worker's event loop, if this thread runs it

    Returns whether the child can return to the worker's code. A child of multiprocessing can't: it
    ends by itself.

    The application's outermost frame may be a coroutine (which returns or awaits), a plain
    callback, or a job in an executor's thread. A trace function on that frame is called when the
    frame returns, even if its caller is compiled code.
    """
    handle_run = _code("asyncio.events", "Handle", "_run")
    job_run = _code("concurrent.futures.thread", "_WorkItem", "run")
    frame: FrameType | None = sys._getframe(1)
    inner: FrameType | None = None
    while frame is not None:
        code = frame.f_code
        if code.co_filename.endswith(_MULTIPROCESSING):
            return False
        if frame is loop_frame or (loop_frame is not None and code is handle_run):
            _end_when_over(inner)
            return True
        if loop_frame is None and code is job_run:
            _end_when_over(frame)
            return True
        inner = frame
        frame = frame.f_back
    return False


_MULTIPROCESSING = os.path.join("multiprocessing", "popen_fork.py")


def _code(module: str, owner: str, name: str) -> CodeType | None:
    """The code object of a method; None if its module isn't loaded, as in a `sync` worker."""
    loaded = sys.modules.get(module)
    method = getattr(getattr(loaded, owner, None), name, None)
    return getattr(method, "__code__", None)


def _end_when_over(frame: FrameType | None) -> None:
    assert frame is not None
    frame.f_trace = _on_return
    frame.f_trace_lines = False
    sys.settrace(_trace_nothing)


def _trace_nothing(_frame: FrameType, _event: str, _argument: Any) -> None:
    """Trace function for all other frames: it asks for no events."""


def _on_return(_frame: FrameType, event: str, _argument: Any) -> Any:
    if event == "return":
        sys.settrace(None)
        end_child()
    return _on_return


def end_child() -> NoReturn:
    """End a child that has returned to the worker's code, and log it."""
    log.warning(
        "Process %d, which the application has forked, has returned to the worker's own code, so it"
        " ends here. For work in another process, use multiprocessing or subprocess",
        os.getpid(),
    )
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            stream.flush()
    os._exit(0)
