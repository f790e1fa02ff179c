"""The control socket's server: non-blocking, polled by its owner's own epoll loop, no thread.

Nobody on the other side is trusted to read, to write, or to make sense: every buffer, count and
silence has a bound, and whoever exceeds one is dropped.
"""

from __future__ import annotations

import logging
import os
import select
import socket
import struct
from collections import deque
from typing import TYPE_CHECKING, Any

from servo.accept_errors import AcceptErrors
from servo.control import protocol
from servo.control.protocol import LineReader, RequestError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

log = logging.getLogger("servo.error")

# Connections at a time. Past it, the one that has been idle for longest makes room.
MAX_CALLERS = 128
BACKLOG = 128
# What may wait for a caller that does not read: notes past the first bound are counted instead of
# kept; a result is the last thing that it gets.
MAX_NOTES_BYTES = 1 << 19
MAX_RESULT_BYTES = 2 << 20
# ... and for all callers together.
MAX_TOTAL_BYTES = 16 << 20
# A caller may say nothing, or leave half a request, for this long.
IDLE_S = 30.0
# One that has an answer waiting has to read some of it within this time (a follower needn't).
STALLED_S = 15.0
# During a long answer it hears from us at least this often.
SIGN_OF_LIFE_S = 1.0
_ACCEPTS_PER_TURN = 16
_READ_BYTES = 16_384

# Further requests of connections that have had an answer: so long at a time, then a pause of so
# many times what they took.
SLICE_S = 0.002
SLICES_OFF = 4

FULL = "full"
READ = "read"

_UCRED = struct.Struct("3i")


class Caller:
    """One connection. The owner answers a request by `note` and then `done` or `fail`.

    uid, pid   of the process that has connected, by the kernel's word
    access     FULL or READ
    gone       nobody is there any more; answers go nowhere
    following  it reads an endless answer, at its own pace
    """

    def __init__(
        self, server: ControlServer, sock: socket.socket, uid: int, access: str, now: float
    ) -> None:
        self._server = server
        self.sock = sock
        self.fd = sock.fileno()
        self.uid = uid
        self.access = access
        self.gone = False
        self.following = False
        self.busy = False
        self.queued = False
        self.serving = False
        self.served = 0
        self.closing = False
        self.lines = LineReader()
        self.out = bytearray()
        self.lost = 0
        self.eof = False
        self.mask = 0
        self.active_at = self.sent_at = now

    def note(self, note: dict[str, Any]) -> None:
        """Send a part of a long answer; it is counted instead where the caller doesn't read."""
        self.notes((note,))

    def notes(self, notes: Iterable[dict[str, Any]]) -> None:
        """Send several at once."""
        data = bytearray()
        for note in notes:
            if len(self.out) + len(data) > MAX_NOTES_BYTES:
                self.lost += 1
                continue
            if self.lost:
                data += protocol.lost_line(self.lost)
                self.lost = 0
            data += protocol.note_line(note)
        if data:
            self._server.send(self, data)

    def done(self, result: dict[str, Any]) -> None:
        """End the answer well."""
        self._end(protocol.result_line(result))

    def fail(self, kind: str, error: str, details: str = "") -> None:
        """End the answer with the reason why it is not what was asked for."""
        self._end(protocol.failure_line(kind, error, details))

    def _end(self, line: bytes) -> None:
        self.busy = self.following = False
        if self.lost:
            line = protocol.lost_line(self.lost) + line
            self.lost = 0
        self._server.send(self, line)
        self._server.go_on(self)


class ControlServer:
    """Serves a listening Unix socket.

    sock    listening; it is made non-blocking
    epoll   the owner's; `on_ready` is to be called for the descriptors that `owns` says yes to
    access  a uid's access: FULL, READ or None
    handle  takes a request; answers it now or later
    clock   monotonic seconds
    """

    def __init__(
        self,
        sock: socket.socket,
        epoll: select.epoll,
        access: Callable[[int], str | None],
        handle: Callable[[Caller, protocol.Request], None],
        clock: Callable[[], float],
    ) -> None:
        self._epoll = epoll
        self._access = access
        self._handle = handle
        self._clock = clock
        self._callers: dict[int, Caller] = {}
        self._first: deque[Caller] = deque()
        self._more: deque[Caller] = deque()
        self._more_at = 0.0
        self._errors = AcceptErrors()
        self._has_complained = False
        self.listen(sock)

    def __len__(self) -> int:
        return len(self._callers)

    def listen(self, sock: socket.socket) -> None:
        """Accept connections of this socket."""
        sock.setblocking(False)
        self._sock = sock
        self._accepting = True
        self._epoll.register(sock.fileno(), select.EPOLLIN)

    def unlisten(self) -> None:
        """Forget the listening socket, which is about to be closed."""
        if self._sock.fileno() >= 0:
            self._epoll.unregister(self._sock.fileno())
        self._accepting = True  # there is none to take up again

    def owns(self, fd: int) -> bool:
        """Whether a descriptor that epoll has named is one of ours."""
        return fd in self._callers or fd == self._sock.fileno()

    def on_ready(self, fd: int, mask: int) -> None:
        """Serve a descriptor that epoll has named."""
        caller = self._callers.get(fd)
        if caller is None:
            self._accept()
            return
        if mask & select.EPOLLOUT:
            self._flush(caller)
            self._settle(caller)
        if caller.gone:
            return
        if caller.mask & select.EPOLLIN:
            # An end comes with EPOLLIN too. Without it, the news is of an older connection whose
            # number this one has got since epoll told of it.
            if mask & select.EPOLLIN:
                self._read(caller)
        elif mask & (select.EPOLLHUP | select.EPOLLERR):
            self._drop(caller)

    def turn(self) -> None:
        """To be called after `on_ready`, in each turn of the owner's loop: answer who waits.

        The first request of each connection is answered at once; the others get a part of the time,
        so that who asks without end keeps neither the owner nor other callers from their work.
        """
        while self._first:
            self._answer(self._first.popleft())
        if not self._more or self._clock() < self._more_at:
            return
        began = now = self._clock()
        while self._more and now - began < SLICE_S:
            self._answer(self._more.popleft())
            now = self._clock()
        self._more_at = now + SLICES_OFF * (now - began)

    def wake_at(self) -> float:
        """When the next `turn` has something to do; infinity for nothing."""
        return self._more_at if self._more else float("inf")

    def tick(self) -> None:
        """To be called about once a second: silences are noticed, signs of life given."""
        if not self._accepting:
            self._accepting = True
            self._epoll.modify(self._sock.fileno(), select.EPOLLIN)
        now = self._clock()
        for caller in list(self._callers.values()):
            stalled = bool(caller.out) and now - caller.sent_at > STALLED_S
            if stalled and not caller.following:
                self._drop(caller)
            elif caller.busy:
                if not caller.out and now - caller.sent_at >= SIGN_OF_LIFE_S:
                    self.send(caller, b"\n")
            elif not caller.out and now - caller.active_at > IDLE_S:
                self._drop(caller)

    def close(self) -> None:
        """Close everything; what was answered last is sent as far as the sockets take it."""
        for caller in list(self._callers.values()):
            self._drop(caller)
        self._sock.close()

    def close_in_child(self) -> None:
        """In a forked child: close this process's copies."""
        self._sock.close()
        for caller in self._callers.values():
            caller.sock.close()

    # --- what callers use -------------------------------------------------------------------------

    def send(self, caller: Caller, data: bytes | bytearray) -> None:
        """Send, or keep what the socket doesn't take now, within the bounds."""
        if caller.gone:
            return
        caller.out += data
        self._flush(caller)
        if len(caller.out) > MAX_RESULT_BYTES:
            self._drop(caller)
        elif len(caller.out) > _READ_BYTES:
            callers = self._callers.values()
            if sum(len(each.out) for each in callers) > MAX_TOTAL_BYTES:
                self._drop(max(callers, key=lambda each: len(each.out)))

    def go_on(self, caller: Caller) -> None:
        """An answer has ended: the next request, if one waits."""
        caller.active_at = self._clock()
        self._settle(caller)

    # --- connections ------------------------------------------------------------------------------

    def _accept(self) -> None:
        for _ in range(_ACCEPTS_PER_TURN):
            try:
                sock, _ = self._sock.accept()
            except BlockingIOError:
                self._errors.lost = 0
                return
            except OSError as error:
                if self._errors.must_pause(error):
                    self._pause(error)
                    return
                continue
            self._errors.lost = 0
            self._has_complained = False
            self._greet(sock)

    def _pause(self, error: OSError) -> None:
        """Accept nothing until the next tick."""
        if not self._has_complained:
            self._has_complained = True
            log.warning(
                "No control connection can be accepted: %s; trying again each second", error
            )
        self._accepting = False
        self._epoll.modify(self._sock.fileno(), 0)

    def _greet(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        uid, pid = peer_of(sock)
        access = self._access(uid)
        refusal, kind = "", protocol.DENIED
        if access is None:
            log.warning("Control connection of user %d (pid %d) refused", uid, pid)
            refusal = f"user {uid} may not control this server (control_allow)"
        elif len(self._callers) >= MAX_CALLERS and not self._make_room():
            refusal = f"{MAX_CALLERS} control connections are open already"
            kind = protocol.REFUSED
        caller = Caller(self, sock, uid, access or READ, self._clock())
        if refusal:
            _say(sock, protocol.failure_line(kind, refusal))
            sock.close()
            return
        try:
            self._epoll.register(caller.fd, select.EPOLLIN)
        except OSError as error:
            log.warning("A control connection can't be watched: %s", error)
            sock.close()
            return
        self._callers[caller.fd] = caller
        caller.mask = select.EPOLLIN

    def _make_room(self) -> bool:
        idle = [caller for caller in self._callers.values() if not caller.busy]
        if idle:
            self._drop(min(idle, key=lambda caller: (caller.queued, caller.active_at)))
        return bool(idle)

    def _drop(self, caller: Caller) -> None:
        if caller.gone:
            return
        caller.gone = True
        del self._callers[caller.fd]
        self._epoll.unregister(caller.fd)
        caller.sock.close()
        caller.out.clear()

    # --- reading ----------------------------------------------------------------------------------

    def _read(self, caller: Caller) -> None:
        try:
            data = caller.sock.recv(_READ_BYTES)
        except BlockingIOError:
            return
        except OSError:
            self._drop(caller)
            return
        if not data:
            caller.eof = True
        elif not caller.closing:
            try:
                caller.lines.feed(data)
            except RequestError as error:
                self._reject(caller, error)
        self._settle(caller)

    def _settle(self, caller: Caller) -> None:
        """Decide what comes next for this caller: its next request, more to read, or its end."""
        if caller.gone or caller.serving:
            return
        free = not (caller.busy or caller.out or caller.closing or caller.queued)
        if free and caller.lines.complete:
            caller.queued = True
            (self._more if caller.served else self._first).append(caller)
        elif free and caller.eof:
            self._drop(caller)
            return
        self._watch(caller)

    def _answer(self, caller: Caller) -> None:
        """Handle one request of a caller whose turn it is."""
        caller.queued = False
        if caller.gone:
            return
        caller.serving = True
        caller.served += 1
        try:
            line = caller.lines.take()
            if line is not None and line.strip():
                self._on_request(caller, protocol.parse_request(line))
        except RequestError as error:
            self._reject(caller, error)
        caller.serving = False
        self._settle(caller)

    def _on_request(self, caller: Caller, request: protocol.Request) -> None:
        if request.changes and caller.access != FULL:
            text = f"user {caller.uid} has only read access to this server (control_allow)"
            caller.fail(protocol.DENIED, text)
            return
        caller.busy = True
        self._handle(caller, request)

    def _reject(self, caller: Caller, error: RequestError) -> None:
        """It does not speak our language: say so, and hear no more of it."""
        caller.closing = True
        self.send(caller, protocol.failure_line(protocol.USAGE, str(error)))
        if not caller.out:
            self._drop(caller)

    # --- writing ----------------------------------------------------------------------------------

    def _flush(self, caller: Caller) -> None:
        while caller.out:
            try:
                sent = caller.sock.send(caller.out)
            except BlockingIOError:
                break
            except OSError:
                self._drop(caller)
                return
            del caller.out[:sent]
            caller.sent_at = self._clock()
        if not caller.out and caller.closing:
            self._drop(caller)
            return
        self._watch(caller)

    def _watch(self, caller: Caller) -> None:
        mask = select.EPOLLOUT if caller.out else 0
        # While it is answered it is not read: so its requests wait in its own socket.
        if not (caller.busy or caller.queued or caller.eof or caller.closing or caller.out):
            mask |= select.EPOLLIN
        if mask != caller.mask:
            caller.mask = mask
            self._epoll.modify(caller.fd, mask)


def peer_of(sock: socket.socket) -> tuple[int, int]:
    """The uid and pid of the process at the other end of a Unix socket.

    Where the kernel does not tell (it does on Linux), the socket file's mode is what guards it.
    """
    if not hasattr(socket, "SO_PEERCRED"):
        return os.geteuid(), 0
    data = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
    pid, uid, _ = _UCRED.unpack(data)
    return uid, pid


def _say(sock: socket.socket, data: bytes) -> None:
    try:
        sock.send(data)
    except OSError as error:
        log.debug("A refused control connection was gone already: %s", error)
