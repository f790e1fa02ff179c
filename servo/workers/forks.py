"""Processes that an application forks, by `os.fork` or by multiprocessing.

Such a child is a copy of the worker, but must not act as one. Without care three things go wrong:

* Signals. Until the child has handlers of its own, one that is sent to it (`Process.terminate()`)
  would be written to the worker's wake-up descriptor, so the worker would take it for its own. All
  signals that a worker handles are blocked around the fork, and have their default effect in the
  child before they are let through.
* Descriptors. An epoll instance is shared over a fork: what the child removes from it is removed
  for the worker, too. So the child gets an instance of its own under the same number
  (`replace_wakers`), and its copies of the listeners and the channel are closed.
* The way back. A child that returns to the worker's event loop would run it a second time, and
  serve the worker's clients. It ends where it comes back (`end_on_return`).
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
_IGNORED = (
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

    Not SIG_IGN: a program that the application starts would inherit that, and no Ctrl-C or
    `Popen.send_signal` would end it.
    """


class Forks:
    """Keeps the processes that an application forks apart from the worker.

    listeners, channel, mailbox  the worker's; a child closes them, and uses none of them

    in_child  called in each child, in the thread that has forked; None until there is a worker
    """

    in_child: Callable[[], None] | None = None

    def __init__(self, listeners: list[Listener], channel: Channel, mailbox: Mailbox) -> None:
        self._listeners = listeners
        self._channel = channel
        self._mailbox = mailbox
        self._handlers: dict[int, Any] = {}  # by signal
        # By thread: several may fork at a time.
        self._masks = threading.local()
        for signum in _IGNORED:
            if signal.getsignal(signum) == signal.SIG_IGN:
                signal.signal(signum, do_nothing)
                signal.siginterrupt(signum, False)
        self.own(*_IGNORED, signal.SIGABRT)
        os.register_at_fork(
            before=self._before, after_in_parent=self._restore, after_in_child=self._after_in_child
        )

    def own(self, *signums: int) -> None:
        """Take the present handlers of these signals for the worker's own, not its children's.

        To be called when the worker has set them, before code of the application runs.
        """
        for signum in signums:
            if signum:  # 0: this system has no such signal
                self._handlers[signum] = signal.getsignal(signum)

    def _before(self) -> None:
        self._masks.mask = signal.pthread_sigmask(signal.SIG_BLOCK, self._handlers)

    def _restore(self) -> None:
        signal.pthread_sigmask(signal.SIG_SETMASK, self._masks.mask)

    def _after_in_child(self) -> None:
        try:
            signal.set_wakeup_fd(-1)
            for signum, handler in self._handlers.items():
                # One that the application has set is its own, as it is without a server.
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
        """Hold neither the port nor the arbiter's channel, nor count as this worker."""
        for listener in self._listeners:
            # Not `close`: that would wait for a loop that watches the socket, for ever in here.
            fd = listener.socket.detach()
            if fd >= 0:  # a draining worker has closed its own
                os.close(fd)
        self._mailbox.disable_in_child()
        self._channel.close()
        log_module.set_tap(None)
        count_log(None)


def open_fds() -> set[int]:
    """The descriptors that this process has open."""
    listed = os.listdir("/proc/self/fd")
    # One of them is that of the listing itself, and is free again.
    return {int(name) for name in listed if os.path.lexists(f"/proc/self/fd/{name}")}


def replace_wakers(fds: Iterable[int]) -> None:
    """In a child: put new epoll instances and eventfds in place of those that wake the worker.

    fds  descriptors of the worker: epoll instances, eventfds, pipes and socket pairs

    The numbers stay in use, so nothing that the child still does with them reaches the worker.
    """
    for fd in fds:
        try:
            is_epoll = os.readlink(f"/proc/self/fd/{fd}") == "anon_inode:[eventpoll]"
        except OSError:
            continue  # it is closed
        if is_epoll:
            with select.epoll() as epoll:
                os.dup2(epoll.fileno(), fd, inheritable=False)
        else:
            fresh = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
            os.dup2(fresh, fd, inheritable=False)
            os.close(fresh)


def replace_sockets(fds: Iterable[int]) -> None:
    """In a child: put a dead socket in place of those of the worker's clients.

    fds  the descriptors of those sockets

    So the child can't write into the worker's response, and a client sees the end of its connection
    when the worker closes it.
    """
    dead, other = socket.socketpair()
    other.close()
    with dead:
        for fd in fds:
            os.dup2(dead.fileno(), fd, inheritable=False)


def end_on_return(loop_frame: FrameType | None) -> bool:
    """In a child: end it when the code that has forked comes back to the worker's own.

    loop_frame  the frame that runs the worker's event loop, if that is in this thread

    Returns whether there is a place to come back to. There is none for multiprocessing, whose
    children end by themselves.

    The place is the outermost frame that is not the loop's: a coroutine that returns or awaits, or
    a plain callback that returns; in a thread of an executor, the job. A trace function is told of
    each return from a frame, even where compiled code is what it returns to.
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
    """A method's code; None where its module isn't loaded: a `sync` worker needs neither."""
    loaded = sys.modules.get(module)
    method = getattr(getattr(loaded, owner, None), name, None)
    return getattr(method, "__code__", None)


def _end_when_over(frame: FrameType | None) -> None:
    assert frame is not None
    frame.f_trace = _on_return
    frame.f_trace_lines = False
    sys.settrace(_trace_nothing)


def _trace_nothing(_frame: FrameType, _event: str, _argument: Any) -> None:
    """For the frames that are entered from now on."""


def _on_return(_frame: FrameType, event: str, _argument: Any) -> Any:
    if event == "return":
        sys.settrace(None)
        end_child()
    return _on_return


def end_child() -> NoReturn:
    """End a child that has come back to the worker's code, and say so."""
    log.warning(
        "Process %d, which the application has forked, has come back to the worker's own code: it"
        " ends here. Work that is to go on belongs in multiprocessing or subprocess",
        os.getpid(),
    )
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            stream.flush()
    os._exit(0)
