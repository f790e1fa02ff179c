"""The clients of the chaos run, and the count of their requests' outcomes.

The client's port of each request's connection is known, even if the request fails. So the run can
prove that the worker that held the connection of a lost request was killed.
"""

from __future__ import annotations

import asyncio
import hashlib
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
PAUSE_S = 0.03
BLOCK = bytes(range(256)) * 64
HTTP1_KINDS = ("kept", "kept", "fresh", "pipelined", "uploaded", "downloaded", "read_slowly")
# Bytes that a slow reader reads at a time, and its pause afterwards: 3.3 MB take 4 s.
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


class Tally:
    """The outcomes of all requests to one server."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.right: Counter[str] = Counter()
        self.excused: Counter[str] = Counter()
        self.lost: Counter[str] = Counter()
        self.wrong = 0
        self.failed: list[str] = []
        self.pending: list[tuple[float, str, Lost]] = []
        # Client port -> the times at which workers were stopped (and then killed) that held it.
        self.stops: defaultdict[int, list[float]] = defaultdict(list)

    async def watch(self, kind: str, ask: Callable[[], Awaitable[None]]) -> None:
        """Make one request of this kind and count its outcome."""
        try:
            await asyncio.wait_for(ask(), PATIENCE_S)
        except Lost as lost:
            self.pending.append((time.monotonic(), kind, lost))
        except (asyncio.TimeoutError, TimeoutError):
            self.note_lost(kind, f"no answer within {PATIENCE_S:g} s")
        except AssertionError as error:
            self.wrong += 1
            self.failed.append(f"{self.name} {kind}: WRONG: {error}")
        except Exception as error:  # noqa: BLE001 - one client's fault must not end a long run
            self.note_lost(kind, f"the client failed: {error!r}")
        else:
            self.right[kind] += 1

    def note_lost(self, kind: str, what: str) -> None:
        # Leave out the figures and bytes, so that equal causes are counted together.
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

    async def exchange(self, *requests: bytes) -> list[bytes]:
        """Send all requests at once, and read all responses."""
        await self.open()
        assert self.writer is not None
        line = self.line
        answers: list[bytes] = []
        try:
            self.writer.write(b"".join(requests))
            for _ in requests:
                body, closes = await self.read()
                answers.append(body)
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
        return answers

    async def read(self) -> tuple[bytes, bool]:
        assert self.reader is not None
        head = await self.reader.readuntil(b"\r\n\r\n")
        if not head.startswith(b"HTTP/1.1 200"):
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
        return body, fields.get(b"connection") == b"close"

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
        (body,) = await self.exchange(get(b"/big?200"))
        assert body == BLOCK * 200, f"{len(body)} bytes of {len(BLOCK) * 200}"

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
        return NotingStream(stream, line, self.lines)

    async def sleep(self, seconds: float) -> None:
        await self.backend.sleep(seconds)


class NotingStream(httpcore.AsyncNetworkStream):
    def __init__(
        self,
        stream: httpcore.AsyncNetworkStream,
        line: Line,
        lines: dict[asyncio.Task[Any] | None, Line],
    ) -> None:
        self.stream = stream
        self.line = line
        self.lines = lines

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        return await self.stream.read(max_bytes, timeout)

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self.lines[asyncio.current_task()] = self.line
        await self.stream.write(buffer, timeout)

    async def aclose(self) -> None:
        await self.stream.aclose()

    async def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,
    ) -> httpcore.AsyncNetworkStream:
        stream = await self.stream.start_tls(ssl_context, server_hostname, timeout)
        return NotingStream(stream, self.line, self.lines)

    def get_extra_info(self, info: str) -> Any:
        return self.stream.get_extra_info(info)


class Http2:
    """httpx over HTTP/2, with several requests at a time on one connection."""

    def __init__(self, port: int, chance: random.Random, tls: ssl.SSLContext) -> None:
        self.port = port
        self.chance = chance
        self.noting = Noting()
        transport = httpx.AsyncHTTPTransport()
        transport._pool = httpcore.AsyncConnectionPool(
            tls, max_connections=1, http1=False, http2=True, network_backend=self.noting
        )
        self.client = httpx.AsyncClient(transport=transport, timeout=PATIENCE_S)

    async def asked(self) -> None:
        token = f"{self.chance.getrandbits(32):08x}"
        task = asyncio.current_task()
        self.noting.lines.pop(task, None)
        try:
            response = await self.client.get(f"https://localhost:{self.port}/?{token}")
        # httpcore translates all errors of anyio except this one.
        except (httpx.HTTPError, anyio.EndOfStream) as error:
            raise Lost(self.noting.lines.get(task), _with_causes(error)) from error
        finally:
            line = self.noting.lines.pop(task, None)
        assert response.http_version == "HTTP/2"
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
        client.close()


async def http2(tally: Tally, client: Http2, end: float) -> None:
    async with client.client:
        await asyncio.gather(*(repeat(tally, "http2", client.asked, end) for _ in range(4)))


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
    """The clients of one server: one of each kind, two of some.

    contexts  for TLS, which only the server named `async` has; the second is only for httpx, which
              changes the context that it gets, to offer HTTP/2
    """
    asynchronous = tally.name == "async"
    tls, tls_http2 = contexts
    found: list[Awaitable[None]] = []
    kinds = [*HTTP1_KINDS, *(["streamed"] if asynchronous else [])]
    for number, kind in enumerate(kinds):
        chance = random.Random(f"{seed} {kind} {number}")
        client = Http1(port, chance, tls if asynchronous else None)
        found.append(http1(tally, kind, client, end))
    if asynchronous:
        for number in range(2):
            chance = random.Random(f"{seed} http2 {number}")
            found.append(http2(tally, Http2(port, chance, tls_http2), end))
        found += [websocket(tally, WebSocket(port, tls), end) for _ in range(3)]
    return found
