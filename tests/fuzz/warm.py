"""Invariant: a connection that remembers earlier requests treats each message as a new connection
would: it finds the same requests, with the same fields, bodies and trailers, refuses with the same
status, and ends at the same place.

A kept connection remembers the fields of its last requests (servo.http.h1.known_fields). If it
recognised them by anything less than all their bytes, a client could hide a Content-Length before
them, and the body would run as a request.

An input builds a sequence of messages, most of them alike. Its first byte chooses the limits, the
second a base message, the third the length of the program that follows. If the second byte chooses
no built-in base message, the rest of the input is the base message. The bytes of the program choose
the changes from message to message, the bodies, and the division of the stream into reads. After
its end, each choice is 0: the base message again, in a separate read.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import product

from conformance.cases import framing_cases
from fuzz import harness
from fuzz.harness import SMALL, Outcome, Player

from servo.http import headers
from servo.http.events import Refused, Request
from servo.http.h1.connection import H1Connection
from servo.http.limits import Limits

PARSERS = ("httptools", "h11")

BASES = [
    b"GET / HTTP/1.1\r\nHost: a\r\n\r\n",
    b"GET /p?q HTTP/1.1\r\nHost: a\r\nAccept: */*\r\nCookie: a=b\r\n\r\n",
    b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 32\r\n\r\n",
    b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n",
    b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n",
    b"GET / HTTP/1.0\r\nHost: a\r\nConnection: keep-alive\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n",
    b"GET / HTTP/1.1\r\nX: HTTP/1.1\r\nHost: a\r\n\r\n",
    b"PUT / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n",
]
# A request that must not run if it is a body, and must run if no body was declared.
INNER = b"GET /inner HTTP/1.1\r\nHost: a\r\n\r\n"
METHODS = [b"GET", b"POST", b"HEAD", b"PUT", b"OPTIONS", b"CONNECT", b"BREW", b"get", b"GE(T", b""]
TARGETS = [
    b"/",
    b"/x?y=1",
    b"*",
    b"http://other/p",
    b"a:80",
    b"p",
    b"/a b",
    b"/\0",
    b"/#",
    b"/?<",
    b"",
]
VERSIONS = [
    b"HTTP/1.1",
    b"HTTP/1.0",
    b"HTTP/1.2",
    b"HTTP/2.0",
    b"http/1.1",
    b"HTTP/1.1 ",
    b"",
    b"x",
]
LINES = [
    b"Content-Length:32",
    b"Content-Length: 32",
    b"Content-Length: 0",
    b"Content-Length: 2",
    b"Content-Length: +2",
    b"Transfer-Encoding:chunked",
    b"Transfer-Encoding: chunked",
    b"Transfer-Encoding: x",
    b"Host:b",
    b"Host: a",
    b"Host: a@b",
    b"Connection: close",
    b"Connection: keep-alive, upgrade",
    b"Upgrade: websocket",
    b"Expect: 100-continue",
    b"X: y",
    b"X: y \t",
    b"X : y",
    b" folded",
    b"",
]
# Bytes that make the rest of a line, or of a head, part of another line.
GLUES = [b"", b"X:", b"X: ", b"X: a b ", b"X", b"\0", b" ", b"\n", b"\r", b"\t", b"\r\n", b"foo "]


class Choices:
    """The bytes of a program, one for each choice; 0 after the last."""

    def __init__(self, program: bytes) -> None:
        self.program = program
        self.used = 0

    def byte(self) -> int:
        self.used += 1
        return self.program[self.used - 1] if self.used <= len(self.program) else 0

    def of(self, table: list[bytes]) -> bytes:
        return table[self.byte() % len(table)]

    def place(self, data: bytes) -> int:
        return self.byte() * (len(data) + 1) // 256

    def raw(self) -> bytes:
        return bytes(self.byte() for _ in range(1 + self.byte() % 4))


def change_bytes(message: bytes, choices: Choices) -> bytes:
    """Insert, delete or replace a few bytes anywhere."""
    at = choices.place(message)
    kind = choices.byte() % 4
    if kind == 0:
        return message[:at] + choices.of(GLUES) + message[at:]
    if kind == 1:
        return message[:at] + choices.raw() + message[at:]
    gone = at + 1 + choices.byte() % 4
    return message[:at] + (choices.raw() if kind == 2 else b"") + message[gone:]


def change_lines(message: bytes, choices: Choices) -> bytes:
    """Repeat, drop, swap or add a line."""
    lines = message.split(b"\r\n")
    at = choices.byte() % len(lines)
    kind = choices.byte() % 4
    if kind == 0:
        lines.insert(at, lines[at])
    elif kind == 1:
        del lines[at]
    elif kind == 2:
        lines.append(lines.pop(at))
    else:
        lines.insert(at, choices.of(LINES))
    return b"\r\n".join(lines)


def change_request_line(message: bytes, choices: Choices) -> bytes:
    """Another method, target or version."""
    line, crlf, fields = message.partition(b"\r\n")
    words = line.split(b" ")
    at = choices.byte() % 3
    words[at : at + 1] = [choices.of((METHODS, TARGETS, VERSIONS)[at])]
    return b" ".join(words) + crlf + fields


def hide_before_fields(message: bytes, choices: Choices) -> bytes:
    """Put another line before the fields, joined to the first of them or not."""
    line, crlf, fields = message.partition(b"\r\n")
    return line + crlf + choices.of(LINES) + crlf + choices.of(GLUES) + fields


def hide_before_version(message: bytes, choices: Choices) -> bytes:
    """Put a version and a line between target and version: the head then ends with a whole head."""
    line, crlf, fields = message.partition(b"\r\n")
    start, space, version = line.rpartition(b" ")
    inner = choices.of(VERSIONS) + crlf + choices.of(LINES) + crlf + choices.of(GLUES)
    return start + space + inner + version + crlf + fields


def junk_before_version(message: bytes, choices: Choices) -> bytes:
    line, crlf, fields = message.partition(b"\r\n")
    start, space, version = line.rpartition(b" ")
    return start + space + choices.of(GLUES) + version + crlf + fields


CHANGES: list[Callable[[bytes, Choices], bytes]] = [
    change_request_line,
    hide_before_version,
    hide_before_fields,
    change_lines,
    change_bytes,
    junk_before_version,
]


def body_for(message: bytes, limits: Limits, choices: Choices) -> bytes:
    """Bytes to send after a head: the body that it declares, or too much, or too little of it."""
    kind = choices.byte() % 8
    if kind == 7:
        return INNER
    event = H1Connection(limits).receive_data(message)
    if not isinstance(event, Request) or not event.more_body:
        return b""
    if event.content_length is None:
        body = b"%x\r\n%b\r\n0\r\n\r\n" % (len(INNER), INNER)
        missing = len(body)
    else:
        missing = min(event.content_length - len(event.body), 256)
        body = INNER * (missing // len(INNER) + 1)
    return body[: missing - (kind == 6)]


def sequence(data: bytes) -> tuple[Limits, list[bytes]]:
    """The limits that an input chooses, and its stream, divided into reads."""
    limits = replace(SMALL if data[0] & 1 else Limits(), strict_targets=bool(data[0] & 2))
    choices = Choices(data[3 : 3 + data[2]])
    number = data[1] % (len(BASES) + 1)
    base = BASES[number] if number < len(BASES) else data[3 + data[2] :]
    reads: list[bytes] = []
    held = b""
    message = base
    for _ in range(3 + choices.byte() % 4):
        plan = choices.byte()
        message = message if plan & 1 else base
        for _ in range((0, 0, 1, 2)[plan >> 1 & 3]):
            message = CHANGES[choices.byte() % len(CHANGES)](message, choices)
        way = plan >> 3 & 7
        whole = message + body_for(message, limits, choices)
        held += whole
        if way == 7:  # pipelined: in one read with the next
            continue
        cut = choices.place(held) if way >= 5 else len(held) - len(whole) + len(message) * (way & 1)
        reads += [held[:cut], held[cut:]]
        held = b""
    return limits, [read for read in [*reads, held] if read]


def remembering(parser: str, limits: Limits, reads: list[bytes]) -> tuple[Outcome, bool]:
    """The outcome of all reads on one connection, and whether it ended before the client did."""
    player = Player(parser, limits)
    outcome = player.play(reads)
    return outcome, player.closed


def forgetting(parser: str, limits: Limits, stream: bytes) -> tuple[Outcome, bool]:
    """The same with a new connection for each message, which finds the message's end by itself."""
    whole: list[object] = []
    while True:
        headers.VALID_HOSTS.clear()
        probe = H1Connection(limits, parser=parser)
        event = probe.receive_data(stream)
        player = Player(parser, limits)
        if event is None or isinstance(event, Refused) or event.more_body:
            _, status = player.play([stream])
            return (whole, status), player.closed
        rest = probe.take_over()
        player.act(player.connection.receive_data(stream[: len(stream) - len(rest)]))
        whole += player.whole
        if player.connection.close_after:
            return (whole, None), True
        stream = rest


def target(data: bytes) -> None:
    if len(data) < 3:
        return
    limits, reads = sequence(data)
    right = forgetting("httptools", limits, b"".join(reads))
    assert forgetting("h11", limits, b"".join(reads)) == right
    for parser in PARSERS:
        assert remembering(parser, limits, reads) == right


def seeds() -> Iterator[bytes]:
    """The seeds of the other targets, and each base and conformance case, repeated and changed."""
    yield from harness.seeds()
    chosen = random.Random(0)
    for number in range(len(BASES)):
        for change in range(len(CHANGES)):
            # Three times the base message, then one with a single change.
            program = bytes((1, *[0] * 6, 4, change))
            yield bytes((0, number, len(program))) + program
            program += chosen.randbytes(6)
            yield bytes((0, number, len(program))) + program
    # A request as a body, declared before the remembered fields in every possible way. Such a head
    # must not be taken for the remembered one.
    for number, line, glue, way in product((0, 1, 2), range(9), range(5), (0, 1)):
        program = bytes((1, *[0] * 6, 4 | way << 3, 1, 0, line, glue))
        yield bytes((0, number, len(program))) + program
    for case in framing_cases():
        yield bytes((0, len(BASES), 0)) + case.data
        program = bytes((3, *[0] * 6)) + chosen.randbytes(16)
        yield bytes((chosen.randrange(2), len(BASES), len(program))) + program + case.data
