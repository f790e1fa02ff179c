"""The clients of the chaos run, and the count of their requests' outcomes.

For each request, even a failed one, the client port of its connection is recorded. With this port,
the run can prove that a lost request was on a connection of a killed worker.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import math
import random
import re
import socket
import ssl
import time
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from typing import Any

import anyio
import httpcore
import httpx
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake

# After this time, a request counts as lost, even if a response arrives later.
PATIENCE_S = 40.0
PAUSE_S = 0.3
BLOCK = bytes(range(256)) * 64
# The servers that speak TLS, HTTP/2 and WebSocket.
SECURE = ("async", "preload")
# The clients of each server: 32.
PLAIN_CLIENTS = {
    "kept": 10,
    "fresh": 6,
    "pipelined": 5,
    "uploaded": 5,
    "downloaded": 4,
    "read_slowly": 2,
}
SECURE_CLIENTS = {
    "kept": 6,
    "fresh": 3,
    "pipelined": 3,
    "uploaded": 3,
    "downloaded": 3,
    "read_slowly": 2,
    "streamed": 4,
    "http2": 4,
    "websocket": 4,
}
# How many requests an HTTP/2 client has open at a time.
HTTP2_TASKS = 2
# Bytes that a slow reader reads at a time, and its pause afterwards: 0.8 MB take 1 s.
SLOW_BUFFER = 16_384
SLOW_REST_S = 0.02


@dataclass(frozen=True)
class Line:
    """A connection: the client's own port, and when it was opened."""

    port: int
    opened: float


class Lost(Exception):  # noqa: N818
    """A request without a response. `line` is None if the request was on no connection."""

    def __init__(self, line: Line | None, what: str) -> None:
        super().__init__(what)
        self.line = line


class Failing(Exception):  # noqa: N818
    """A request was answered with 500, by an application."""

    def __init__(self, release: int) -> None:
        super().__init__(f"release {release} answers 500")
        self.release = release


class Again(Exception):  # noqa: N818
    """The server has refused a request before it was processed, and allows the client to resend."""


class ClientFault(Exception):  # noqa: N818
    """A client has failed by a known fault of its own."""


class Tally:
    """The outcomes of all requests to one server.

    failing  the releases that answer 500, and when the last of their workers had ended
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.right: Counter[str] = Counter()
        self.excused: Counter[str] = Counter()
        self.lost: Counter[str] = Counter()
        self.again: Counter[str] = Counter()
        self.faulty: Counter[str] = Counter()
        self.errors: Counter[str] = Counter()
        self.failing: dict[int, float] = {}
        self.wrong = 0
        self.failed: list[str] = []
        self.pending: list[tuple[float, str, Lost]] = []
        # Client port -> when a worker that held a connection from it was stopped, to be killed.
        self.stops: defaultdict[int, list[float]] = defaultdict(list)

    async def watch(self, kind: str, ask: Callable[[], Awaitable[None]]) -> None:
        """Make one request of this kind and count its outcome."""
        began = time.monotonic()
        try:
            await asyncio.wait_for(ask(), PATIENCE_S)
        except Lost as lost:
            self.pending.append((time.monotonic(), kind, lost))
        except (asyncio.TimeoutError, TimeoutError):
            self.note_lost(kind, f"no answer within {PATIENCE_S:g} s")
        except Again:
            self.again[kind] += 1
        except ClientFault:
            self.faulty[kind] += 1
        except Failing as error:
            self.errors[kind] += 1
            if began > self.failing.get(error.release, -math.inf):
                self.note_wrong(kind, error)
        except AssertionError as error:
            self.note_wrong(kind, error)
        except Exception as error:  # noqa: BLE001 - one client's fault must not end a long run
            self.note_lost(kind, f"the client failed: {error!r}")
        else:
            self.right[kind] += 1

    def note_wrong(self, kind: str, error: BaseException) -> None:
        self.wrong += 1
        self.failed.append(f"{self.name} {kind}: WRONG: {error}")

    def note_lost(self, kind: str, what: str) -> None:
        # Leave out numbers and details, so that equal causes are counted together.
        self.lost[re.sub(r"\(.*|\d+", "", what, flags=re.DOTALL).strip()] += 1
        self.failed.append(f"{self.name} {kind}: {what}")

    def settle(self) -> None:
        """Judge the lost requests, now that the connections of every killed worker are known.

        Ports are reused. So a lost request is excused only if its connection was open when the
        worker was stopped, and the request failed after that.
        """
        ago = time.time() - time.monotonic()
        for when, kind, lost in self.pending:
            line = lost.line
            if line and any(line.opened <= stop <= when for stop in self.stops.get(line.port, ())):
                self.excused[kind] += 1
                continue
            stamp = time.strftime("%H:%M:%S", time.localtime(when + ago))
            where = f"from port {line.port}" if line else "on no connection"
            self.note_lost(kind, f"{lost} ({where} at {stamp})")
        self.pending.clear()


class Http1:
    """A client with one HTTP/1.1 connection at a time. Each method except `exchange` and its parts
    is one kind of request."""

    def __init__(self, port: int, chance: random.Random, tls: ssl.SSLContext | None) -> None:
        self.port = port
        self.chance = chance
        self.tls = tls
        self.line: Line | None = None
        self.slow = False
        self.reader: asyncio.StreamReader | None = None
        self.writer: asyncio.StreamWriter | None = None

    async def open(self) -> None:
        if self.reader is not None and not self.reader.at_eof():
            return
        self.close()
        sock, self.line = await connected(self.port, SLOW_BUFFER if self.slow else 0)
        try:
            self.reader, self.writer = await asyncio.open_connection(
                sock=sock,
                ssl=self.tls,
                server_hostname="localhost" if self.tls else None,
                limit=SLOW_BUFFER if self.slow else 1 << 20,
            )
        except OSError as error:
            raise Lost(self.line, f"no TLS connection: {error!r}") from error

    def close(self) -> None:
        if self.writer is not None:
            self.writer.close()
        self.reader = self.writer = None

    async def end(self) -> None:
        """Close the connection and wait until it is closed: the loop may end right after this."""
        writer = self.writer
        self.close()
        if writer is not None:
            with contextlib.suppress(OSError, asyncio.TimeoutError):
                await writer.wait_closed()

    async def exchange(self, *requests: bytes) -> list[bytes]:
        """Send all requests at once, and read all responses."""
        await self.open()
        assert self.writer is not None
        line = self.line
        answers: list[bytes] = []
        failing: Failing | None = None
        try:
            self.writer.write(b"".join(requests))
            for _ in requests:
                status, body, closes = await self.read()
                answers.append(body)
                if status == 500:
                    failing = Failing(int(body.split()[0]))
                if closes:
                    self.close()
                    break
        except (OSError, EOFError, ValueError, asyncio.LimitOverrunError) as error:
            self.close()
            partial = getattr(error, "partial", b"")
            raise Lost(line, f"{error!r} {partial[:120]!r}") from error
        except BaseException:
            # The next bytes would be taken for another request's response.
            self.close()
            raise
        if len(answers) < len(requests):
            # The server has announced that it closes this connection: send the rest on a new one.
            answers += await self.exchange(*requests[len(answers) :])
        if failing is not None:
            raise failing
        return answers

    async def read(self) -> tuple[int, bytes, bool]:
        assert self.reader is not None
        head = await self.reader.readuntil(b"\r\n\r\n")
        if not head.startswith((b"HTTP/1.1 200", b"HTTP/1.1 500")):
            raise ValueError(f"answered {head[:40]!r}")
        fields = dict(
            line.lower().split(b": ", 1) for line in head.split(b"\r\n")[1:] if b": " in line
        )
        if b"content-length" in fields:
            body = await self.reader.readexactly(int(fields[b"content-length"]))
        else:
            assert fields.get(b"transfer-encoding") == b"chunked", head
            blocks = []
            while size := int(await self.reader.readuntil(b"\r\n"), 16):
                blocks.append((await self.reader.readexactly(size + 2))[:-2])
                if self.slow:
                    await asyncio.sleep(SLOW_REST_S)
            await self.reader.readexactly(2)
            body = b"".join(blocks)
        return int(head[9:12]), body, fields.get(b"connection") == b"close"

    def token(self) -> bytes:
        return b"%08x" % self.chance.getrandbits(32)

    async def kept(self) -> None:
        token = self.token()
        path = self.chance.choice([b"/", b"/", b"/", b"/slow"])
        (body,) = await self.exchange(get(path + b"?" + token))
        assert body.endswith(b" " + token), body

    async def fresh(self) -> None:
        self.close()
        token = self.token()
        (body,) = await self.exchange(get(b"/?" + token, b"Connection: close\r\n"))
        assert body.endswith(b" " + token), body
        self.close()

    async def pipelined(self) -> None:
        tokens = [self.token() for _ in range(4)]
        bodies = await self.exchange(*(get(b"/?" + token) for token in tokens))
        assert [body.split(b" ")[2] for body in bodies] == tokens, bodies

    async def uploaded(self) -> None:
        body = self.chance.randbytes(self.chance.choice([10, 5_000, 200_000]))
        pieces = [body[i : i + 50_000] for i in range(0, len(body), 50_000)]
        chunks = b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces)
        head = b"POST /upload HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
        (answer,) = await self.exchange(head + chunks + b"0\r\n\r\n")
        assert answer.endswith(hashlib.sha256(body).hexdigest().encode()), answer

    async def downloaded(self) -> None:
        blocks = self.chance.choice([1, 20, 200])
        (body,) = await self.exchange(get(b"/big?%d" % blocks))
        assert body == BLOCK * blocks, f"{len(body)} bytes of {len(BLOCK) * blocks}"

    async def read_slowly(self) -> None:
        self.slow = True
        (body,) = await self.exchange(get(b"/big?50"))
        assert body == BLOCK * 50, f"{len(body)} bytes of {len(BLOCK) * 50}"

    async def streamed(self) -> None:
        count = self.chance.choice([3, 20])
        (body,) = await self.exchange(get(b"/events?%d" % count))
        assert body.count(b"data: ") == count + 1, body
        assert body.endswith(b"data: end\n\n"), body


async def connected(port: int, receive_buffer: int = 0) -> tuple[socket.socket, Line]:
    """Open a connection. The client's port is known even if no request succeeds on it."""
    opened = time.monotonic()
    sock = socket.socket()
    sock.setblocking(False)
    if receive_buffer:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    try:
        await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", port))
    except OSError as error:
        sock.close()
        raise Lost(None, f"not connected: {error!r}") from error
    return sock, Line(sock.getsockname()[1], opened)


def get(target: bytes, fields: bytes = b"") -> bytes:
    return b"GET %b HTTP/1.1\r\nHost: x\r\n%b\r\n" % (target, fields)


class Noting(httpcore.AsyncNetworkBackend):
    """Notes the connection on which each task sent last: a failed request was on that one."""

    def __init__(self) -> None:
        self.backend = httpcore.AnyIOBackend()
        self.lines: dict[asyncio.Task[Any] | None, Line] = {}
        # The streams that httpcore has not closed. It drops some failed ones without closing them.
        self.streams: set[httpcore.AsyncNetworkStream] = set()

    async def close(self) -> None:
        for stream in self.streams:
            with contextlib.suppress(OSError, anyio.BrokenResourceError):
                await stream.aclose()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        opened = time.monotonic()
        stream = await self.backend.connect_tcp(host, port, timeout, local_address, socket_options)
        line = Line(stream.get_extra_info("client_addr")[1], opened)
        self.lines[asyncio.current_task()] = line
        self.streams.add(stream)
        return NotingStream(stream, line, self)

    async def sleep(self, seconds: float) -> None:
        await self.backend.sleep(seconds)


class NotingStream(httpcore.AsyncNetworkStream):
    def __init__(
        self,
        stream: httpcore.AsyncNetworkStream,
        line: Line,
        noting: Noting,
        raw: httpcore.AsyncNetworkStream | None = None,
    ) -> None:
        self.stream = stream
        self.line = line
        self.noting = noting
        self.raw = raw or stream

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        return await self.stream.read(max_bytes, timeout)

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self.noting.lines[asyncio.current_task()] = self.line
        await self.stream.write(buffer, timeout)

    async def aclose(self) -> None:
        await self.stream.aclose()
        self.noting.streams.discard(self.raw)

    async def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,
    ) -> httpcore.AsyncNetworkStream:
        stream = await self.stream.start_tls(ssl_context, server_hostname, timeout)
        return NotingStream(stream, self.line, self.noting, self.raw)

    def get_extra_info(self, info: str) -> Any:
        return self.stream.get_extra_info(info)


class Http2:
    """httpx over HTTP/2, with several requests at a time on one connection.

    After a failure it begins anew, because some failures leave httpcore's pool in a state in which
    no later request ends.
    """

    def __init__(self, port: int, chance: random.Random, tls: ssl.SSLContext) -> None:
        self.port = port
        self.chance = chance
        self.tls = tls
        self.noting = Noting()
        # Another request may still use an older one, so all are closed at the end.
        self.clients = [self.new_client()]

    def new_client(self) -> httpx.AsyncClient:
        transport = httpx.AsyncHTTPTransport()
        transport._pool = httpcore.AsyncConnectionPool(
            self.tls, max_connections=1, http1=False, http2=True, network_backend=self.noting
        )
        return httpx.AsyncClient(transport=transport, timeout=PATIENCE_S)

    async def close(self) -> None:
        for client in self.clients:
            await client.aclose()
        await self.noting.close()

    async def asked(self) -> None:
        client = self.clients[-1]
        try:
            await self.ask(client)
        except (Again, Failing, AssertionError):
            raise
        except BaseException:
            if client is self.clients[-1]:
                self.clients.append(self.new_client())
            raise

    async def ask(self, client: httpx.AsyncClient) -> None:
        token = f"{self.chance.getrandbits(32):08x}"
        task = asyncio.current_task()
        self.noting.lines.pop(task, None)
        try:
            response = await client.get(f"https://localhost:{self.port}/?{token}")
        # httpcore translates all errors of anyio except this one.
        except (httpx.HTTPError, anyio.EndOfStream) as error:
            # The server has ended the connection with NO_ERROR, so the client may send unprocessed
            # requests again (RFC 9113 section 6.8). httpcore does so, except in two cases: the
            # server has processed no request at all, or httpcore has not sent this request yet.
            ended = str(error).startswith("<ConnectionTerminated error_code:0,")
            if ended and ("last_stream_id:0," in str(error) or task not in self.noting.lines):
                raise Again from error
            raise Lost(self.noting.lines.get(task), _with_causes(error)) from error
        except (RuntimeError, ValueError) as error:
            # A race in httpcore, when two requests end as their connection does.
            if "released too many times" in str(error):
                raise ClientFault from error
            raise
        finally:
            line = self.noting.lines.pop(task, None)
        assert response.http_version == "HTTP/2"
        if response.status_code == 500:
            raise Failing(int(response.text.split()[0]))
        if response.status_code != 200:
            raise Lost(line, f"status {response.status_code}")
        assert response.text.endswith(f" {token}"), response.text


def _with_causes(error: BaseException | None) -> str:
    """A client's error and its causes, because httpx's own texts are often empty."""
    found = []
    while error is not None and len(found) < 6:
        found.append(repr(error))
        error = error.__cause__ or error.__context__
    return " < ".join(found)


class WebSocket:
    """Sends echoes on one WebSocket after another."""

    def __init__(self, port: int, tls: ssl.SSLContext) -> None:
        self.port = port
        self.tls = tls
        self.line: Line | None = None
        self.socket: ClientConnection | None = None
        self.number = 0

    async def echoed(self) -> None:
        self.number += 1
        try:
            answer = await self.echo(str(self.number))
        except ConnectionClosed as error:
            self.socket = None
            if error.rcvd is not None and error.rcvd.code == 1012:
                # The worker is being replaced. A WebSocket client is expected to reconnect.
                await self.echoed()
                return
            raise Lost(self.line, repr(error)) from error
        except (OSError, EOFError, InvalidHandshake) as error:
            self.socket = None
            raise Lost(self.line, repr(error)) from error
        except BaseException:
            self.socket = None
            raise
        assert answer == str(self.number), answer

    async def echo(self, text: str) -> str | bytes:
        if self.socket is None:
            self.line = None
            sock, self.line = await connected(self.port)
            self.socket = await connect(
                f"wss://localhost:{self.port}/",
                sock=sock,
                ssl=self.tls,
                open_timeout=PATIENCE_S,
                ping_interval=None,
            )
        await self.socket.send(text)
        return await self.socket.recv()

    async def close(self) -> None:
        if self.socket is not None:
            await self.socket.close()


async def http1(tally: Tally, kind: str, client: Http1, end: float) -> None:
    try:
        await repeat(tally, kind, getattr(client, kind), end, 4 if kind == "fresh" else 1)
    finally:
        await client.end()


async def http2(tally: Tally, client: Http2, end: float) -> None:
    try:
        tasks = (repeat(tally, "http2", client.asked, end) for _ in range(HTTP2_TASKS))
        await asyncio.gather(*tasks)
    finally:
        await client.close()


async def websocket(tally: Tally, client: WebSocket, end: float) -> None:
    try:
        await repeat(tally, "websocket", client.echoed, end)
    finally:
        await client.close()


async def repeat(
    tally: Tally, kind: str, ask: Callable[[], Awaitable[None]], end: float, pauses: int = 1
) -> None:
    while time.monotonic() < end:
        await tally.watch(kind, ask)
        await asyncio.sleep(PAUSE_S * pauses)


def clients(
    tally: Tally, port: int, contexts: tuple[ssl.SSLContext, ssl.SSLContext], seed: str, end: float
) -> list[Awaitable[None]]:
    """The clients of one server.

    contexts  for TLS, which only the `SECURE` servers have; the second is only for httpx, which
              changes the context that it gets, to offer HTTP/2
    """
    secure = tally.name in SECURE
    tls, tls_http2 = contexts
    found: list[Awaitable[None]] = []
    for kind, count in (SECURE_CLIENTS if secure else PLAIN_CLIENTS).items():
        for number in range(count):
            chance = random.Random(f"{seed} {kind} {number}")
            if kind == "http2":
                found.append(http2(tally, Http2(port, chance, tls_http2), end))
            elif kind == "websocket":
                found.append(websocket(tally, WebSocket(port, tls), end))
            else:
                client = Http1(port, chance, tls if secure else None)
                found.append(http1(tally, kind, client, end))
    return found
