"""Runs cases over real sockets, hundreds at once: one thread, non-blocking sockets, epoll.

Each turn sends one piece on each connection. So without any waiting, the server has usually read a
piece before the next one arrives.
"""

from __future__ import annotations

import json
import select
import socket
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice

from conformance.cases import Case, Outcome, Seen, judge, statuses, warm_ups

from integration.load import read_response

AT_ONCE = 200
# After a correct response, wait this long for further bytes that would make it wrong, s.
QUIET_S = 0.15
DEADLINE_S = 15.0


@dataclass
class Play:
    """One case on one connection.

    way     how the bytes are cut, for error messages
    warm    a request that is sent, and answered, twice before the case; b"" for a cold connection
    fault   what was wrong with the outcome; None if it was right
    codes   the statuses of the responses
    """

    case: Case
    way: str
    pieces: Sequence[bytes]
    warm: bytes = b""
    fault: str | None = None
    codes: tuple[int, ...] = ()
    seen: tuple[Seen, ...] = ()
    closed: bool = False
    reset: bool = False
    _sock: socket.socket | None = None
    _sent: int = 0
    _response: bytes = b""
    _late: bytes = b""
    _since: float = 0.0
    _probing: bool = False

    def __str__(self) -> str:
        return f"{self.case} ({self.way}): {self.fault}"


@dataclass
class Player:
    """Plays cases. environ_headers: the app is WSGI, so repeated headers are joined."""

    port: int
    environ_headers: bool
    deadline_s: float = DEADLINE_S
    _open: dict[int, Play] = field(default_factory=dict)
    _epoll: select.epoll = field(default_factory=select.epoll)

    def run(self, plays: Iterable[Play]) -> list[Play]:
        """Play all cases; return them with their faults."""
        waiting: Iterator[Play] = iter(plays)
        done: list[Play] = []
        while True:
            for play in islice(waiting, AT_ONCE - len(self._open)):
                self._begin(play)
            if not self._open:
                break
            busy = self._send_pieces()
            self._receive(0.0 if busy else 0.02)
            done += self._sort_out()
        self._epoll.close()
        return done

    def _begin(self, play: Play) -> None:
        sock = socket.create_connection(("127.0.0.1", self.port), timeout=DEADLINE_S)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if play.warm:
            for _ in range(2):
                sock.sendall(play.warm)
                try:
                    head, _ = read_response(sock)
                except (OSError, ValueError) as error:
                    raise AssertionError(f"{play.case} {play.way} {play.warm!r}") from error
                assert head.startswith(b"HTTP/1.1 200"), (play.case, play.warm, head)
        sock.setblocking(False)
        play._sock = sock
        play._since = time.monotonic()
        self._open[sock.fileno()] = play
        self._epoll.register(sock.fileno(), select.EPOLLIN)

    def _send_pieces(self) -> bool:
        """Send the next piece of each connection; return whether any had one left."""
        busy = False
        for play in self._open.values():
            if play._sent >= len(play.pieces) or play.closed:
                continue
            busy = True
            assert play._sock is not None
            try:
                piece = play.pieces[play._sent]
                sent = play._sock.send(piece)
                assert sent == len(piece), "no case is that long"
                play._sent += 1
                if play._sent == len(play.pieces) and play.case.half_close:
                    play._sock.shutdown(socket.SHUT_WR)
            except (BrokenPipeError, ConnectionResetError):
                play._sent = len(play.pieces)  # already refused; the response tells
            play._since = time.monotonic()
        return busy

    def _receive(self, timeout: float) -> None:
        for fd, _ in self._epoll.poll(timeout, AT_ONCE):
            play = self._open[fd]
            assert play._sock is not None
            try:
                data = play._sock.recv(1 << 20)
            except ConnectionResetError:
                data = b""
                play.reset = True
            except BlockingIOError:
                continue
            play._since = time.monotonic()
            if data and play._probing:
                play._late += data
            elif data:
                play._response += data
            else:
                play.closed = True
                self._epoll.unregister(fd)

    def _sort_out(self) -> list[Play]:
        """Remove and return the plays that are over."""
        now = time.monotonic()
        over = []
        for fd, play in list(self._open.items()):
            if not play.closed:
                if play._sent < len(play.pieces) or now - play._since < QUIET_S:
                    continue
                late = now - play._since > self.deadline_s
                if not late and (play._probing or self._judge(play) is not None):
                    continue
                if not late:
                    self._probe(play)
                    continue
            self._finish(fd, play)
            over.append(play)
        return over

    def _probe(self, play: Play) -> None:
        """The response is right so far: shut down the client's side and watch the server."""
        assert play._sock is not None
        play._probing = True
        play._since = time.monotonic()
        try:
            play._sock.shutdown(socket.SHUT_WR)
        except OSError:
            play.reset = True

    def _finish(self, fd: int, play: Play) -> None:
        assert play._sock is not None
        if not play.closed:
            self._epoll.unregister(fd)
        del self._open[fd]
        play._sock.close()
        if play._probing and not play.closed:
            play.fault = "the connection outlived its client"
        elif b"HTTP/1.1 2" in play._late:
            play.fault = f"answered late: {play._late[:200]!r}"
        else:
            play.closed = play.closed and not play._probing
            play.fault = self._judge(play)

    def _judge(self, play: Play) -> str | None:
        case = play.case
        if self.environ_headers:
            case = _as_environ(case)
        try:
            play.codes = tuple(statuses(play._response))
            play.seen = tuple(_seen(play._response))
        except ValueError:
            play.codes = play.seen = ()
        return judge(case, Outcome(play.seen, play._response, play.closed))


def ways(case: Case, every_split: bool) -> Iterator[Play]:
    """The case as a whole and byte by byte; with every_split, also split at each position."""
    data = case.data
    yield Play(case, "whole", [data])
    yield Play(case, "byte by byte", [data[i : i + 1] for i in range(len(data))])
    if every_split:
        for i in range(1, len(data)):
            yield Play(case, f"split at {i}", [data[:i], data[i:]])


def warm_ways(case: Case, every_split: bool) -> Iterator[Play]:
    """The same on connections that remember the fields of the case, or the last of them."""
    data = case.data
    for number, warm_up in enumerate(warm_ups(case)):
        yield Play(case, f"warm {number}", [data], warm_up)
        single = [data[i : i + 1] for i in range(len(data))]
        yield Play(case, f"warm {number}, byte by byte", single, warm_up)
        if every_split and not number:
            for i in range(1, len(data)):
                yield Play(case, f"warm, split at {i}", [data[:i], data[i:]], warm_up)


def _seen(response: bytes) -> Iterator[Seen]:
    """The requests in the responses of the echo app."""
    while response:
        head, _, rest = response.partition(b"\r\n\r\n")
        code = int(head.split(b" ", 2)[1])
        if code < 200:
            response = rest
            continue
        lines = head.lower().split(b"\r\n")
        (length,) = [int(line[15:]) for line in lines if line.startswith(b"content-length:")]
        if code == 200:
            answer = json.loads(rest[:length])
            headers = [(name, value) for name, value in answer["headers"]]
            # An environ joins repeated fields: give the parts first, then the fields as they are.
            parts = [(n, p.strip()) for n, v in headers for p in v.split(",")]
            yield Seen(
                answer["method"],
                answer["path"],
                answer["body"].encode("latin-1"),
                answer["query"],
                (*parts, *headers),
            )
        response = rest[length:]


def _as_environ(case: Case) -> Case:
    """The case as a WSGI app sees it: without the transfer coding and its field, and with names in
    which "_" and "-" can't be told apart."""
    requests = [
        {
            **request,
            "headers": [
                (name.replace("_", "-"), value)
                for name, value in request.get("headers", ())
                if name.lower() != "transfer-encoding"
            ],
        }
        for request in case.requests
    ]
    return replace(case, requests=requests)
