"""The server's end of the control socket. It never blocks: the owner's epoll loop runs it.

No client may stop the server from working. So there are limits on buffers, on numbers and on the
time without data, and a connection that exceeds a limit is closed.
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

# The most connections. A further one replaces the one that has been idle for longest.
MAX_CALLERS = 128
BACKLOG = 128
# How many bytes may wait for a caller that doesn't read. Above the first limit, notes are only
# counted. A result is always kept, but above the second limit the connection is closed.
MAX_NOTES_BYTES = 1 << 19
MAX_RESULT_BYTES = 2 << 20
# How many bytes may wait for all callers together.
MAX_TOTAL_BYTES = 16 << 20
# A caller that sends nothing, or leaves a request incomplete, is disconnected after this many
# seconds.
IDLE_S = 30.0
# A caller that reads nothing of its answer is disconnected after this many seconds, unless it
# follows events or logs.
STALLED_S = 15.0
# The interval of signs of life during a long answer.
SIGN_OF_LIFE_S = 1.0
_ACCEPTS_PER_TURN = 16
_READ_BYTES = 16_384

# A connection's first request is answered at once. Further requests of all connections share slices
# of SLICE_S seconds. After each slice, there is a pause of SLICES_OFF times its length.
SLICE_S = 0.002
SLICES_OFF = 4

FULL = "full"
READ = "read"

_UCRED = struct.Struct("3i")


class Caller:
    """A connection. The owner answers a request with any number of `note` and one `done` or `fail`.

    server   the server that has accepted it
    sock     the connection's socket
    uid      the user at the other end, as the kernel reports it
    access   FULL or READ
    now      the time, in seconds of the server's clock
    name     the process at the other end, for the log and the events
    commands the only commands that it may use; None: all that its access allows

    gone       whether the connection has ended; if so, answers are discarded
    following  set by the owner while the caller follows events or logs
    """

    def __init__(
        self,
        server: ControlServer,
        sock: socket.socket,
        uid: int,
        access: str,
        now: float,
        name: str = "servoctl",
        commands: frozenset[str] | None = None,
    ) -> None:
        self._server = server
        self.sock = sock
        self.fd = sock.fileno()
        self.uid = uid
        self.access = access
        self.name = name
        self.commands = commands
        # A child of the server, whose connection stays open without requests.
        self.is_child = commands is not None
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
        """Send a part of a long answer, or count it as lost if the caller doesn't read."""
        self.notes((note,))

    def notes(self, notes: Iterable[dict[str, Any]]) -> None:
        """Send several notes at once."""
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
        """End the answer with a result."""
        self._end(protocol.result_line(result))

    def fail(self, kind: str, error: str, details: str = "") -> None:
        """End the answer with a failure.

        kind      one of the protocol's kinds, such as REFUSED
        error     what happened, in one line
        details   a traceback, or ""
        """
        self._end(protocol.failure_line(kind, error, details))

    def _end(self, line: bytes) -> None:
        self.busy = self.following = False
        if self.lost:
            line = protocol.lost_line(self.lost) + line
            self.lost = 0
        self._server.send(self, line)
        self._server.answer_ended(self)


class ControlServer:
    """Serves a listening Unix socket, and connections to children of the server.

    sock     the listening socket; this makes it non-blocking. None: only children are served
    epoll    the owner's epoll object; the owner calls `on_ready` for each descriptor that `owns`
             accepts
    access   returns a user's access by uid: FULL, READ or None
    handle   handles a request, and answers it at once or later
    clock    returns monotonic seconds
    """

    def __init__(
        self,
        sock: socket.socket | None,
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
        self._first_requests: deque[Caller] = deque()
        self._further_requests: deque[Caller] = deque()
        self._further_at = 0.0
        self._errors = AcceptErrors()
        self._has_warned = False
        self._sock: socket.socket | None = None
        self._accepting = True
        if sock is not None:
            self.listen(sock)

    def __len__(self) -> int:
        return len(self._callers)

    def listen(self, sock: socket.socket) -> None:
        """Accept connections from a listening socket."""
        sock.setblocking(False)
        self._sock = sock
        self._accepting = True
        self._epoll.register(sock.fileno(), select.EPOLLIN)

    def attach(self, sock: socket.socket, name: str, commands: frozenset[str]) -> Caller:
        """Serve a connection to a child of the server. Raises OSError if epoll can't watch it.

        sock      the server's end
        name      the child, for the log and the events
        commands  the only commands that the child may use
        """
        sock.setblocking(False)
        caller = Caller(self, sock, os.geteuid(), FULL, self._clock(), name, commands)
        self._epoll.register(caller.fd, select.EPOLLIN)
        self._callers[caller.fd] = caller
        caller.mask = select.EPOLLIN
        return caller

    def detach(self, caller: Caller) -> None:
        """Close a connection to a child of the server. Does nothing if it has ended."""
        self._drop(caller)

    def unlisten(self) -> None:
        """Stop using the listening socket, which the owner is about to close."""
        if self._sock is not None and self._sock.fileno() >= 0:
            self._epoll.unregister(self._sock.fileno())
        self._accepting = True  # so that `tick` doesn't try to resume

    def owns(self, fd: int) -> bool:
        """Whether a descriptor that epoll has reported belongs to this server."""
        return fd in self._callers or (self._sock is not None and fd == self._sock.fileno())

    def on_ready(self, fd: int, mask: int) -> None:
        """Handle epoll's event for a descriptor of this server.

        fd     the descriptor
        mask   the event's mask
        """
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
            # epoll reports a closed connection with EPOLLIN, too. An event without EPOLLIN belongs
            # to an older connection with the same descriptor number, which was closed after the
            # report.
            if mask & select.EPOLLIN:
                self._read(caller)
        elif mask & (select.EPOLLHUP | select.EPOLLERR):
            self._drop(caller)

    def turn(self) -> None:
        """Answer waiting requests. The owner calls this in each turn of its loop, after `on_ready`.

        The first request of each connection is answered at once. Further requests get only a share
        of the time. So a caller that sends requests without end delays neither the owner nor other
        callers.
        """
        while self._first_requests:
            self._answer(self._first_requests.popleft())
        if not self._further_requests or self._clock() < self._further_at:
            return
        start = now = self._clock()
        while self._further_requests and now - start < SLICE_S:
            self._answer(self._further_requests.popleft())
            now = self._clock()
        self._further_at = now + SLICES_OFF * (now - start)

    def wake_at(self) -> float:
        """When to call `turn` next, in seconds of the clock; infinity for never."""
        return self._further_at if self._further_requests else float("inf")

    def tick(self) -> None:
        """Close silent connections and send signs of life. The owner calls this once a second."""
        if not self._accepting and self._sock is not None:
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
            elif not (caller.out or caller.is_child) and now - caller.active_at > IDLE_S:
                self._drop(caller)

    def close(self) -> None:
        """Close all connections and the socket. Unsent data is lost."""
        for caller in list(self._callers.values()):
            self._drop(caller)
        if self._sock is not None:
            self._sock.close()

    def close_in_child(self) -> None:
        """Close a forked child's copies of the descriptors."""
        if self._sock is not None:
            self._sock.close()
        for caller in self._callers.values():
            caller.sock.close()

    # --- called by Caller -------------------------------------------------------------------------

    def send(self, caller: Caller, data: bytes | bytearray) -> None:
        """Send data to a caller. Keeps the part that its socket doesn't take, within the limits.

        caller   the connection
        data     whole lines of an answer
        """
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

    def answer_ended(self, caller: Caller) -> None:
        """Note that an answer has ended, and handle the caller's next request."""
        caller.active_at = self._clock()
        self._settle(caller)

    # --- connections ------------------------------------------------------------------------------

    def _accept(self) -> None:
        assert self._sock is not None
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
            self._has_warned = False
            self._admit(sock)

    def _pause(self, error: OSError) -> None:
        """Accept no connection until the next tick."""
        if not self._has_warned:
            self._has_warned = True
            log.warning("Can't accept control connections: %s; trying again each second", error)
        assert self._sock is not None
        self._accepting = False
        self._epoll.modify(self._sock.fileno(), 0)

    def _admit(self, sock: socket.socket) -> None:
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
            _try_to_send(sock, protocol.failure_line(kind, refusal))
            sock.close()
            return
        try:
            self._epoll.register(caller.fd, select.EPOLLIN)
        except OSError as error:
            log.warning("Closed a control connection that epoll can't watch: %s", error)
            sock.close()
            return
        self._callers[caller.fd] = caller
        caller.mask = select.EPOLLIN

    def _make_room(self) -> bool:
        idle = [each for each in self._callers.values() if not (each.busy or each.is_child)]
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
        """Handle a caller's next request, read more, or end the connection."""
        if caller.gone or caller.serving:
            return
        free = not (caller.busy or caller.out or caller.closing or caller.queued)
        if free and caller.lines.complete:
            caller.queued = True
            (self._further_requests if caller.served else self._first_requests).append(caller)
        elif free and caller.eof:
            self._drop(caller)
            return
        self._watch(caller)

    def _answer(self, caller: Caller) -> None:
        """Handle one waiting request of a caller."""
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
        if caller.commands is not None and request.command not in caller.commands:
            text = f"the {caller.name} may not use the command {request.command}"
            caller.fail(protocol.DENIED, text)
            return
        caller.busy = True
        self._handle(caller, request)

    def _reject(self, caller: Caller, error: RequestError) -> None:
        """Answer an invalid request, and close the connection after the answer is sent."""
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
        # Don't read during an answer: further requests then wait in the caller's socket.
        if not (caller.busy or caller.queued or caller.eof or caller.closing or caller.out):
            mask |= select.EPOLLIN
        if mask != caller.mask:
            caller.mask = mask
            self._epoll.modify(caller.fd, mask)


def peer_of(sock: socket.socket) -> tuple[int, int]:
    """The uid and pid of the process at the other end of a Unix socket.

    On systems without SO_PEERCRED it returns this process's uid, and 0 as the pid. There, only the
    permission bits of the socket file keep other users out.
    """
    if not hasattr(socket, "SO_PEERCRED"):
        return os.geteuid(), 0
    data = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
    pid, uid, _ = _UCRED.unpack(data)
    return uid, pid


def _try_to_send(sock: socket.socket, data: bytes) -> None:
    try:
        sock.send(data)
    except OSError as error:
        log.debug("A refused control connection was closed before its answer: %s", error)
