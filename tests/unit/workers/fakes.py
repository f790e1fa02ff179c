"""Workers, clients and clocks for the tests of the drivers.

The workers are real, but their surroundings are fake. Listeners return one end of a socket pair,
time stands still until a test moves it, and a poller or an event loop runs one turn at a time. So a
test controls all events between two steps, and never waits.

All objects are made here: if a worker class gets another argument, only this file changes.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import logging
import os
import resource
import select
import signal
import socket
import ssl
import sys
import time
import traceback
from collections import deque
from collections.abc import Callable, Coroutine, Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import h2frames
import pytest
from websockets.frames import Close, Frame, Opcode
from websockets.protocol import CLIENT
from websockets.protocol import Protocol as ClientProtocol

import servo.workers.aio.h2
import servo.workers.aio.websocket
import servo.workers.aio.websocket_h2
import servo.workers.blocking.tls  # noqa: F401  a clock replaces the names of loaded modules
from servo.apps.asgi_scope import ASGIAdapter
from servo.apps.loader import LoadedApp
from servo.http.events import Request
from servo.http.h1.connection import H1Connection
from servo.http.limits import Limits
from servo.ipc.channel import ChannelClosed, SharedChannel, channel_pair
from servo.ipc.messages import Message
from servo.net.address import TCPAddress
from servo.settings.config_hooks import Hooks
from servo.settings.sources import Settings
from servo.shared_memory import row_layout
from servo.shared_memory.row_layout import ROW_WORDS
from servo.shared_memory.scoreboard import Scoreboard
from servo.workers.aio.h1 import H1Protocol
from servo.workers.aio.server import StreamServer
from servo.workers.aio.worker import AsyncWorker
from servo.workers.blocking.sync import SyncWorker
from servo.workers.blocking.thread import ThreadWorker
from servo.workers.boot import run_worker
from servo.workers.context import WorkerContext
from servo.workers.messages.mailbox import Mailbox
from servo.workers.request.accounting import Meter
from servo.workers.request.hooks import HookWorker
from servo.workers.utilisation import CPUTime

SECOND = 1_000_000_000
PEER = ("192.0.2.1", 5000)
GET = b"GET / HTTP/1.1\r\nHost: h\r\n\r\n"
# As a test's script says to the poller: wait for a thread, however long it takes.
WAIT = object()


class Clock:
    """Monotonic time for all of `servo`, which moves only when a test says so."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.ns = 1000 * SECOND
        clocks = {time.monotonic_ns: lambda: self.ns, time.monotonic: lambda: self.ns / SECOND}
        for name, module in list(sys.modules.items()):
            if not name.startswith("servo."):
                continue
            for attribute in ("monotonic_ns", "monotonic", "now_ns"):
                fake = clocks.get(vars(module).get(attribute))
                if fake is not None:
                    monkeypatch.setattr(module, attribute, fake)
        # The CPU time that a test takes is none of its workers'.
        monkeypatch.setattr(CPUTime, "total_ns", lambda _self: 0)

    def advance(self, seconds: float) -> None:
        self.ns += int(seconds * SECOND)


class Listener:
    """A listener whose connections a test makes: each is a socket pair."""

    family = socket.AF_UNIX
    type = socket.SOCK_STREAM
    proto = 0

    def __init__(self) -> None:
        self._queue: deque[tuple[socket.socket, Any] | OSError] = deque()
        self._ready = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_SEMAPHORE | os.EFD_CLOEXEC)
        # As a `servo.net.listeners.Listener` has them.
        self.socket = self
        self.address = TCPAddress("127.0.0.1", 8000)
        self.name = "http://127.0.0.1:8000"
        self.closed = False

    def connect(self, peer: Any = PEER, *, buffer: int = 0) -> Client:
        """A client whose connection is queued. `buffer`: what the server's socket takes, about."""
        ours, theirs = socket.socketpair()
        if buffer:
            ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, buffer)
        self.push((ours, peer))
        return Client(theirs)

    def push(self, item: tuple[socket.socket, Any] | OSError) -> None:
        self._queue.append(item)
        os.eventfd_write(self._ready, 1)

    def fileno(self) -> int:
        return self._ready

    def getsockname(self) -> str:
        return ""

    def _accept(self) -> tuple[int, Any]:
        if not self._queue:
            raise BlockingIOError
        os.eventfd_read(self._ready)
        item = self._queue.popleft()
        if isinstance(item, OSError):
            raise item
        return item[0].detach(), item[1]

    def close(self) -> None:
        if not self.closed:
            self.closed = True
            os.close(self._ready)
            for item in self._queue:
                if isinstance(item, tuple):
                    item[0].close()


class Client:
    """The other end of a connection; nothing that it does waits."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self.sock = sock
        self.received = b""
        self.ended = False  # by the server, in order
        self.reset = False

    def send(self, data: bytes) -> None:
        self.sock.sendall(data)

    def send_eof(self) -> None:
        self.sock.shutdown(socket.SHUT_WR)

    def read(self, most: int = 1 << 30) -> bytes:
        """What has come since the last look."""
        found = b""
        while not self.ended and len(found) < most:
            try:
                data = self.sock.recv(min(65536, most - len(found)))
            except BlockingIOError:
                break
            except ConnectionError:
                self.reset = self.ended = True
                break
            self.ended = not data
            found += data
        self.received += found
        return found

    def await_data(self) -> None:
        """Until a thread of the server has sent something."""
        assert select.select([self.sock], [], [], 60)[0]

    @property
    def gone(self) -> bool:
        """The server has closed its side."""
        self.read()
        return self.ended

    def close(self) -> None:
        self.sock.close()


def responses(data: bytes, method: str = "GET") -> list[tuple[int, bytes]]:
    """The status and body of each response, all of which must be whole."""
    found = []
    while data:
        head, _, rest = data.partition(b"\r\n\r\n")
        lines = head.split(b"\r\n")
        status = int(lines[0].split()[1])
        fields = dict(line.lower().split(b": ", 1) for line in lines[1:])
        if fields.get(b"transfer-encoding") == b"chunked":
            body, rest = _dechunked(rest)
        elif status < 200 or method == "HEAD":
            body = b""
        else:
            size = int(fields.get(b"content-length", len(rest)))
            assert len(rest) >= size, data
            body, rest = rest[:size], rest[size:]
        found.append((status, body))
        data = rest
    return found


def _dechunked(data: bytes) -> tuple[bytes, bytes]:
    body = b""
    while True:
        size, _, data = data.partition(b"\r\n")
        count = int(size, 16)
        body += data[:count]
        data = data[count + 2 :]
        if not count:
            return body, data


class World:
    """What the arbiter gives to a worker: its context, and the other ends of all of it."""

    def __init__(
        self,
        tls: Any = None,
        hooks: dict[str, Any] | None = None,
        *,
        shared: bool = True,
        **values: Any,
    ) -> None:
        """
        hooks   those of a configuration file
        shared  whether the channel is as a worker makes it, or as the arbiter leaves it
        values  settings
        """
        given = {"loop": "asyncio", "workers": 1, **values}
        settings = Settings(given, dict.fromkeys(given, "a test"), hooks=Hooks(hooks or {}))
        self.listener = Listener()
        ours, self.arbiter = channel_pair()
        self.channel = SharedChannel(ours) if shared else ours
        self.board = Scoreboard(4)
        index = self.board.allocate(1, 1, 1)
        self.context = WorkerContext(
            slot=1,
            serial=1,
            generation=1,
            settings=settings,
            listeners=[self.listener],
            channel=self.channel,
            scoreboard=self.board,
            row_index=index,
            arbiter_pid=os.getpid(),
            server=None,
            tls=tls,
        )
        self.row = self.board.row(index)
        self.context.hook_worker = HookWorker(self.context, self.row)
        self.context.mailbox = Mailbox(self.channel, 1, 1, self.board)
        # The real one registers functions for forks, which can't be taken back.
        self.context.forks = SimpleNamespace(own=lambda *_signums: None, in_child=None)
        self.row[row_layout.PID] = os.getpid()
        self.row[row_layout.STATE] = row_layout.STATE_BOOTING

    def told(self) -> list[Message]:
        """What the worker has told the arbiter since the last look."""
        return list(self.arbiter.receive())

    def tell(self, message: Message) -> None:
        self.arbiter.send(message)

    def lose_arbiter(self) -> None:
        self.arbiter.close()

    def count(self, word: int) -> int:
        return int(self.row[word])

    @property
    def utilisation(self) -> float:
        return self.count(row_layout.UTILISATION) / row_layout.FULL_UTILISATION

    @property
    def in_flight(self) -> int:
        return self.count(row_layout.IN_FLIGHT)

    @property
    def requests(self) -> int:
        """How many have been counted, whatever their status."""
        return row_layout.requests_in(self.row.tolist())

    @property
    def statuses(self) -> dict[int, int]:
        """How many responses there were of each status that has a word of its own."""
        row = self.row.tolist()
        counts = row_layout.codes_in(row, row_layout.methods_in(row))
        return {
            code: count
            for code, count in zip(row_layout.STATUS_CODES, counts, strict=False)
            if count
        }

    def close(self) -> None:
        self.listener.close()
        self.channel.close()
        self.arbiter.close()
        self.row.release()
        self.board.close()


# --- the blocking workers -------------------------------------------------------------------------


class SteppedEpoll:
    """The poller's epoll: the script has its turn before each poll, and no poll waits."""

    def __init__(self, real: Any, script: Iterator[object], ended: Callable[[], None]) -> None:
        self._real = real
        self._script = script
        self._ended = ended
        self.wait_s = -1.0  # what the poller would have waited
        self.turns = 0

    def poll(self, timeout: float, maxevents: int) -> list[tuple[int, int]]:
        self.turns += 1
        assert self.turns < 10_000, "the script and the worker wait for each other"
        self.wait_s = timeout
        try:
            waits = next(self._script) is WAIT and timeout > 0
        except StopIteration:
            self._ended()
            waits = False
        return list(self._real.poll(60.0 if waits else 0.0, maxevents))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)


class BlockingServer:
    """A `sync` or `thread` worker. `run` plays a script against it, in turns of its loop."""

    def __init__(
        self, clock: Clock, app: Any, kind: str = "sync", *, tls: Any = None, **values: Any
    ) -> None:
        self.clock = clock
        self.world = World(tls, **values)
        classes = {"sync": SyncWorker, "thread": ThreadWorker}
        self.worker: Any = classes[kind](self.world.context, LoadedApp(app, "wsgi"))
        self._real_epoll = self.worker.epoll
        self.clients: list[Client] = []
        self.is_thread = kind == "thread"

    def connect(self, peer: Any = PEER, **values: Any) -> Client:
        self.clients.append(self.world.listener.connect(peer, **values))
        return self.clients[-1]

    def run(self, script: Generator[object, None, None]) -> None:
        """Serve until the script is over. Each `yield` of it is one turn of the poller."""
        handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1)}
        self.worker.epoll = SteppedEpoll(self._real_epoll, script, self._finish)
        try:
            self.worker.serve()
            # A worker that has drained ends before its script does.
            for _ in script:
                pass
        finally:
            signal.set_wakeup_fd(-1)
            for number, handler in handlers.items():
                signal.signal(number, handler)

    def _finish(self) -> None:
        self.worker.finished = True

    @property
    def wait_s(self) -> float:
        """How long the poller would have slept in this turn."""
        return float(self.worker.epoll.wait_s)

    def sweep(self) -> Iterator[None]:
        """A turn with a sweep in it."""
        self.clock.advance(1.0)
        yield

    def after(self, seconds: float) -> Iterator[None]:
        """A turn with a sweep in it, so many seconds later."""
        self.clock.advance(seconds)
        yield

    def close(self) -> None:
        worker = self.worker
        for connection in list(worker.connections.values()):
            worker.drop(connection)
        if self.is_thread:
            for _ in range(worker.settings.thread_count):
                worker.requests.put(None)
            os.close(worker.threads_fd)
        worker.acceptor.stop(take_queued=False)
        for pair in [getattr(worker, "_signal_sockets", None) or ()]:
            for sock in pair:
                sock.close()
        for name in ("_wake_fd", "pidfd"):
            if hasattr(worker, name):
                os.close(getattr(worker, name))
        self._real_epoll.close()
        for client in self.clients:
            client.close()
        self.world.close()


# --- the async worker -----------------------------------------------------------------------------


class InlineExecutor(ThreadPoolExecutor):
    """Does the work at once, in the thread that asks for it."""

    def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        try:
            future.set_result(fn(*args, **kwargs))
        except BaseException as error:  # noqa: BLE001  whoever waits gets it
            future.set_exception(error)
        return future


class Loop(asyncio.SelectorEventLoop):
    """An event loop that runs a turn at a time, by the test's clock."""

    def __init__(self, clock: Clock) -> None:
        self._test_clock = clock
        super().__init__()
        self.set_default_executor(InlineExecutor())

    def time(self) -> float:
        return self._test_clock.ns / SECOND

    def turn(self, times: int = 1) -> None:
        for _ in range(times):
            self.call_soon(self.stop)
            self.run_forever()

    def end(self) -> None:
        """Cancel what is left, and close."""
        tasks = asyncio.all_tasks(self)
        for task in tasks:
            task.cancel()
        while not all(task.done() for task in tasks):
            self.turn()
        self.close()


class Transport(asyncio.Transport):
    """What a loop gives to a protocol. It takes all that is written, until it is `blocked`."""

    def __init__(self, loop: Loop, sock: socket.socket, protocol: Any, ssl_object: Any) -> None:
        super().__init__({"socket": sock})
        self._loop = loop
        self._protocol = protocol
        self._high, self._low = 65536, 16384
        self._told = False
        self._closing = self._lost = False
        self.sock = sock
        self.ssl_object = ssl_object
        self.reading = True
        self.blocked = False
        self.buffer = b""
        self.sent = b""
        self.writes = 0
        self.ended = self.aborted = False

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        if name == "ssl_object":
            return self.ssl_object
        return super().get_extra_info(name, default)

    # What a protocol calls.

    def write(self, data: bytes | bytearray | memoryview) -> None:
        assert isinstance(data, bytes | bytearray | memoryview)
        assert not self.ended, "written after the end"
        if self._lost:
            return
        self.writes += 1
        if self.blocked or self.buffer:
            self.buffer += bytes(data)
        else:
            self.sent += bytes(data)
        self._look()

    def writelines(self, list_of_data: Any) -> None:
        self.write(b"".join(list_of_data))

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        self._high = 65536 if high is None else high
        self._low = self._high // 4 if low is None else low
        self._look()

    def get_write_buffer_size(self) -> int:
        return len(self.buffer)

    def pause_reading(self) -> None:
        assert self.reading, "paused twice"
        assert not self._closing, "paused after it was closed"
        self.reading = False

    def resume_reading(self) -> None:
        assert not self.reading, "resumed twice"
        self.reading = True

    def is_reading(self) -> bool:
        return self.reading

    def can_write_eof(self) -> bool:
        return self.ssl_object is None

    def write_eof(self) -> None:
        assert self.can_write_eof()
        self.ended = True

    def is_closing(self) -> bool:
        return self._closing

    def set_protocol(self, protocol: Any) -> None:
        self._protocol = protocol

    def get_protocol(self) -> Any:
        return self._protocol

    def close(self) -> None:
        self._closing = True
        if not self.buffer:
            self.lose()

    def abort(self) -> None:
        self.aborted = True
        self.buffer = b""
        self.lose()

    # What the loop would do.

    def lose(self, error: Exception | None = None) -> None:
        """The connection is over; the protocol gets to know in the next turn."""
        self._closing = True
        if not self._lost:
            self._lost = True
            self._loop.call_soon(self._tell_lost, error)

    def _tell_lost(self, error: Exception | None) -> None:
        self._protocol.connection_lost(error)
        self.sock.close()

    def take(self, count: int | None = None) -> None:
        """The client takes so many bytes of the buffer, or all."""
        count = len(self.buffer) if count is None else count
        self.sent += self.buffer[:count]
        self.buffer = self.buffer[count:]
        if not self.buffer:
            self.blocked = False
        if self._told and len(self.buffer) <= self._low:
            self._told = False
            self._protocol.resume_writing()
        if self._closing and not self.buffer:
            self.lose()

    def _look(self) -> None:
        if len(self.buffer) > self._high and not self._told:
            self._told = True
            self._protocol.pause_writing()


class Connection:
    """One connection of the async worker, as its client sees it."""

    def __init__(self, server: AsyncServer, peer: Any, ssl_object: Any, header: Any) -> None:
        self.loop = server.loop
        ours, self.theirs = socket.socketpair()
        ours.setblocking(False)
        self.theirs.setblocking(False)
        self.first: Any = H1Protocol(server.server, ours, peer, None, header)
        self.transport = Transport(server.loop, ours, self.first, ssl_object)
        server.worker.acceptor.open_connections += 1
        self.first.connection_made(self.transport)

    @property
    def protocol(self) -> Any:
        """The one whose connection it is now."""
        return self.transport.get_protocol()

    def send(self, data: bytes, turns: int = 3) -> None:
        assert self.transport.reading, "the server does not read"
        self.protocol.data_received(data)
        self.loop.turn(turns)

    def send_eof(self) -> None:
        if not self.protocol.eof_received():
            self.transport.close()
        self.loop.turn(3)

    def lose(self) -> None:
        """The client is gone."""
        self.transport.lose(ConnectionResetError())
        self.loop.turn(3)

    @property
    def received(self) -> bytes:
        return self.transport.sent

    @property
    def responses(self) -> list[tuple[int, bytes]]:
        return responses(self.transport.sent)

    @property
    def closed(self) -> bool:
        """The server has let go of it."""
        return self.transport.sock.fileno() < 0

    @property
    def ended(self) -> bool:
        """The server has said that it sends no more."""
        return self.transport.ended or self.transport.is_closing()

    def close(self) -> None:
        if not self.closed:
            self.transport.abort()
            self.loop.turn()
        self.theirs.close()


class AsyncServer:
    """What the connections of an `async` worker have in common, without its listeners."""

    def __init__(
        self,
        clock: Clock,
        app: Any,
        *,
        interface: str = "asgi",
        tls: Any = None,
        **values: Any,
    ) -> None:
        self.clock = clock
        self.world = World(tls, **values)
        self.worker: Any = AsyncWorker(self.world.context, LoadedApp(app, interface))
        self.worker.loop.close()
        self.loop = Loop(clock)
        self.worker.loop = self.loop
        adapter = ASGIAdapter(
            self.worker.asgi_app,
            log=logging.getLogger("servo.error"),
            root_path=self.world.context.settings.root_path,
        )
        self.server = StreamServer(self.worker, adapter, self.loop)
        self.worker.server = self.server
        self.connections: list[Connection] = []

    def connect(self, peer: Any = PEER, ssl_object: Any = None, header: Any = None) -> Connection:
        """A new connection. `header`: the PROXY protocol's, read before a handshake."""
        self.connections.append(Connection(self, peer, ssl_object, header))
        return self.connections[-1]

    def turn(self, times: int = 1) -> None:
        self.loop.turn(times)

    def after(self, seconds: float) -> None:
        """So many seconds later, with a sweep in each of them, and one at the end."""
        while seconds > 0:
            self.clock.advance(min(seconds, 1.0))
            seconds -= 1.0
            self.loop.turn(2)
            self.server.sweep(self.clock.ns)
            self.loop.turn(2)

    def drain(self, idle_s: float = 0.05, fresh_s: float = 1.0) -> None:
        """As a worker that stops."""
        self.server.draining = True
        for connection in list(self.server.connections):
            connection.drain(idle_s, fresh_s)

    def close(self) -> None:
        for connection in self.connections:
            connection.close()
        self.loop.end()
        with contextlib.suppress(OSError):
            self.worker.acceptor.stop(take_queued=False)
        self.world.close()


# --- parts ----------------------------------------------------------------------------------------


def make_meter(access: Any = None, most: int = 0, recycle: Any = None) -> Meter:
    """A meter with a row of its own."""
    row = memoryview(bytearray(8 * ROW_WORDS)).cast("Q")
    return Meter(row, access, most, recycle or (lambda: None))


def make_hook_worker(world: World) -> HookWorker:
    """What hooks of this world's worker are given."""
    return HookWorker(world.context, world.row)


def make_request(data: bytes = GET) -> Request:
    """The request that a parser makes of these bytes."""
    event = H1Connection(Limits()).receive_data(data)
    assert isinstance(event, Request), event
    return event


class TLSClient:
    """TLS for a client, in memory between it and its connection."""

    def __init__(self, client: Client, context: ssl.SSLContext) -> None:
        self.client = client
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = context.wrap_bio(self._incoming, self._outgoing, server_hostname="localhost")
        self.received = b""
        self.ended = False  # with a close_notify
        self.shaken = False

    def pending(self) -> bytes:
        """What is to go to the server next, after what has come from it."""
        data = self.client.read()
        if data:
            self._incoming.write(data)
        if not self.shaken:
            with contextlib.suppress(ssl.SSLWantReadError):
                self.tls.do_handshake()
                self.shaken = True
        return self._outgoing.read()

    def step(self) -> None:
        data = self.pending()
        if data:
            self.client.send(data)

    def send(self, data: bytes) -> None:
        self.tls.write(data)
        self.step()

    def read(self) -> bytes:
        """What has come since the last look."""
        self.step()
        found = b""
        try:
            while not self.ended:
                data = self.tls.read(65536)
                self.ended = not data
                found += data
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLZeroReturnError:
            self.ended = True
        self.received += found
        return found


def shaken(tls: Any, client: ssl.SSLContext) -> ssl.SSLObject:
    """The server's side of a TLS connection whose handshake is done."""
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    server = tls.context.wrap_bio(to_server, to_client, server_side=True)
    other = client.wrap_bio(to_client, to_server, server_hostname="localhost")
    for side in (other, server, other, server):
        with contextlib.suppress(ssl.SSLWantReadError):
            side.do_handshake()
    assert server.version() is not None
    return server


class H2Client:
    """A client of HTTP/2 on a connection of the async worker."""

    def __init__(self, connection: Connection, values: dict[int, int] | None = None) -> None:
        self.connection = connection
        self._seen = 0
        self._reader = h2frames.Reader()
        self.send(h2frames.hello(values))

    def send(self, frames: bytes, turns: int = 4) -> None:
        self.connection.send(frames, turns)

    @property
    def reader(self) -> h2frames.Reader:
        """What the client knows now."""
        new = self.connection.received[self._seen :]
        self._seen += len(new)
        return self._reader.feed(new)

    def answer(self, stream: int) -> h2frames.Answer:
        return self.reader.answers[stream]

    def results(self, *streams: int) -> list[tuple[int, bytes]]:
        """The status and body of these streams, all of which must be complete."""
        found = [self.answer(stream) for stream in streams]
        assert all(answer.ended for answer in found), [answer.heads for answer in found]
        return [(answer.status, answer.body) for answer in found]


WEBSOCKET = (
    b"GET /ws HTTP/1.1\r\nHost: h\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
)


def ws_frame(opcode: Opcode, data: bytes = b"", *, fin: bool = True) -> bytes:
    """A client's frame."""
    return Frame(opcode, data, fin).serialize(mask=True, extensions=[])


def ws_close(code: int = 1000, reason: str = "") -> bytes:
    return ws_frame(Opcode.CLOSE, Close(code, reason).serialize())


class FrameReader:
    """What a client makes of the bytes behind the handshake."""

    def __init__(self) -> None:
        self._protocol = ClientProtocol(CLIENT, max_size=None)
        self._seen = 0
        self.frames: list[tuple[Opcode, bytes]] = []

    def feed(self, all_received: bytes) -> None:
        new = all_received[self._seen :]
        self._seen += len(new)
        if new:
            self._protocol.receive_data(new)
        frames: list[Any] = self._protocol.events_received()
        self.frames += [(frame.opcode, bytes(frame.data)) for frame in frames]

    @property
    def messages(self) -> list[str | bytes]:
        return [
            data.decode() if opcode is Opcode.TEXT else data
            for opcode, data in self.frames
            if opcode in (Opcode.TEXT, Opcode.BINARY)
        ]

    @property
    def close_code(self) -> int | None:
        """Of the close frame, if there was one."""
        codes = [Close.parse(data).code for opcode, data in self.frames if opcode is Opcode.CLOSE]
        return codes[0] if codes else None

    def count(self, opcode: Opcode) -> int:
        return sum(kind is opcode for kind, _ in self.frames)


class WebSocketClient:
    """A client of a WebSocket over HTTP/1.1. `extra`: bytes that come with the handshake."""

    def __init__(self, connection: Connection, extra: bytes = b"") -> None:
        self.connection = connection
        self._reader = FrameReader()
        connection.send(WEBSOCKET + extra)

    def send(self, frames: bytes, turns: int = 4) -> None:
        self.connection.send(frames, turns)

    @property
    def status(self) -> int:
        received = self.connection.received
        return int(received.split(b" ", 2)[1]) if received else 0

    @property
    def reader(self) -> FrameReader:
        """What the client knows now."""
        self._reader.feed(self.connection.received.partition(b"\r\n\r\n")[2])
        return self._reader


class H2WebSocketClient:
    """A client of a WebSocket on a stream of HTTP/2."""

    def __init__(self, client: H2Client, stream: int = 1) -> None:
        self.client = client
        self.connection = client.connection
        self.stream = stream
        self._reader = FrameReader()
        fields = [
            *((":method", "CONNECT"), *h2frames.GET[1:], (":protocol", "websocket")),
            ("sec-websocket-version", "13"),
        ]
        client.send(h2frames.head(stream, fields, end=False))

    def send(self, frames: bytes, turns: int = 4, *, end: bool = False) -> None:
        self.client.send(h2frames.data(self.stream, frames, end=end), turns)

    def give(self, count: int) -> None:
        """Let so many more bytes come."""
        windows = h2frames.window(self.stream, count) + h2frames.window(0, count)
        self.client.send(windows, turns=8)

    @property
    def status(self) -> int:
        return self.answer.status

    @property
    def answer(self) -> h2frames.Answer:
        return self.client.answer(self.stream)

    @property
    def reader(self) -> FrameReader:
        self._reader.feed(self.answer.body)
        return self._reader


class ServingWorker:
    """An `async` worker that serves. `run` plays a script in a task of its own loop."""

    def __init__(self, clock: Clock, app: Any, *, interface: str = "asgi", **values: Any) -> None:
        self.clock = clock
        self.world = World(**values)
        self.worker: Any = AsyncWorker(self.world.context, LoadedApp(app, interface))
        self.worker.loop.close()
        self.loop = self.worker.loop = Loop(clock)
        self.clients: list[Client] = []

    def connect(self, peer: Any = PEER, **values: Any) -> Client:
        self.clients.append(self.world.listener.connect(peer, **values))
        return self.clients[-1]

    async def turn(self, times: int = 1) -> None:
        for _ in range(times):
            await asyncio.sleep(0)

    async def after(self, seconds: float) -> None:
        """So many seconds later, with a sweep in each."""
        while seconds > 0:
            self.clock.advance(min(seconds, 1.0))
            seconds -= 1.0
            await self.turn(6)

    async def ended(self) -> None:
        """Until the worker ends by itself; the last that a script can wait for."""
        turns = 0
        while not self.worker.drained.done():
            turns += 1
            assert turns < 50, "the worker does not end"
            await self.turn()

    def run(self, script: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Serve until the script is over."""
        handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1)}
        errors: list[BaseException] = []

        async def play() -> None:
            try:
                await self.turn(5)
                await script()
            except asyncio.CancelledError:
                raise
            except BaseException as error:  # noqa: BLE001  raised again by `run`
                errors.append(error)
            finally:
                self.worker.stop(quick=True)

        # Held, or the loop's weak reference would be the only one.
        task = self.loop.create_task(play(), name="the test's script")
        try:
            self.worker.serve()
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)
        if errors:
            raise errors[0]
        assert not task.cancelled(), "the worker has ended before the script"

    def close(self) -> None:
        for client in self.clients:
            client.close()
        if not self.loop.is_closed():
            self.loop.end()
        with contextlib.suppress(OSError, RuntimeError):
            self.worker.acceptor.stop(take_queued=False)
        if hasattr(self.worker, "_pidfd"):
            os.close(self.worker._pidfd)
        self.world.close()


# --- children -------------------------------------------------------------------------------------


class Child:
    """A forked process with a pipe each way. It ends with what `work` returns, or 99.

    work  is given the descriptors that it may read from and write to
    """

    def __init__(self, work: Callable[[int, int], int | None]) -> None:
        read_ours, write_theirs = os.pipe()
        read_theirs, write_ours = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            code = 99
            try:
                # What pytest and its plugins have registered is not this process's to do.
                atexit._clear()
                resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
                os.close(read_ours)
                os.close(write_ours)
                code = work(read_theirs, write_theirs) or 0
            except BaseException:
                os.write(write_theirs, traceback.format_exc().encode())
                raise
            finally:
                os._exit(code)
        os.close(read_theirs)
        os.close(write_theirs)
        self._read, self._write = read_ours, write_ours
        self._code: int | None = None

    def tell(self, data: bytes) -> None:
        os.write(self._write, data)

    def said(self, until: bytes | None = None) -> bytes:
        """What it has said, up to its end or as soon as these bytes are in it."""
        found = b""
        while until is None or until not in found:
            data = os.read(self._read, 65536)
            if not data:
                assert until is None, found
                break
            found += data
        return found

    def end(self) -> int:
        """Wait for its end. Its exit code; negative: the signal that has ended it."""
        if self._code is None:
            self._code = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        return self._code

    def close(self) -> None:
        if self._code is None:
            os.kill(self.pid, signal.SIGKILL)
            self.end()
        os.close(self._read)
        os.close(self._write)


class BootedWorker:
    """A worker process, with the test as its arbiter."""

    def __init__(self, **values: Any) -> None:
        self.world = World(shared=False, **values)

        def work(_read: int, write: int) -> int:
            self.world.arbiter.close()
            logging.getLogger("servo.error").handlers = [
                logging.StreamHandler(os.fdopen(os.dup(write), "w"))
            ]
            return run_worker(self.world.context)

        self.child = Child(work)
        # Its end would otherwise go unnoticed.
        self.world.channel.close()
        self.messages: list[Message] = []

    def until(self, kind: type[Message] | None = None) -> None:
        """Take its messages up to one of this kind, or up to its end."""
        arbiter = self.world.arbiter
        while kind is None or not any(isinstance(each, kind) for each in self.messages):
            assert select.select([arbiter.fileno()], [], [], 60)[0]
            try:
                self.messages += arbiter.receive()
            except ChannelClosed:
                assert kind is None, self.messages
                return

    @property
    def kinds(self) -> list[type[Message]]:
        return [type(each) for each in self.messages]

    def close(self) -> None:
        self.child.close()
        self.world.close()
