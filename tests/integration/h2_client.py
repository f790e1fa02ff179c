"""An HTTP/2 client over a socket that can break any rule, and load over HTTP/2."""

from __future__ import annotations

import select
import socket
import ssl
import threading
import time
from collections.abc import Callable

from h2frames import GET, GOAWAY, Answer, Fields, Reader, head, hello, ping, window

from integration.server import APPS

H2C = ("--http2-cleartext", "prior-knowledge")
ASGI = (f"{APPS / 'asgi_app.py'}:app", "-k", "async", *H2C)
WSGI = (f"{APPS / 'wsgi_app.py'}:app", "-k", "async", "--threads", "8", *H2C)
HTTP2_APP = f"{APPS / 'http2_app.py'}:app"
TIMEOUT_S = 30.0
# So much that nobody waits for a window, unless a test wants it.
WIDE = {4: 1 << 24}


def offers_h2(context: ssl.SSLContext) -> ssl.SSLContext:
    """Let a client's context offer HTTP/2, and return it."""
    context.set_alpn_protocols(["h2", "http/1.1"])
    return context


class Client(Reader):
    """One connection to 127.0.0.1.

    context    for TLS; None: prior knowledge
    generous   answer PINGs, and give back the connection's window as bytes come
    """

    def __init__(
        self,
        port: int,
        values: dict[int, int] | None = None,
        *,
        context: ssl.SSLContext | None = None,
        before: bytes = b"",
        generous: bool = True,
    ) -> None:
        super().__init__()
        self.generous = generous
        self.closed = False
        self.next_stream = 1
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=TIMEOUT_S)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if before:
            self.socket.sendall(before)
        if context is not None:
            self.socket = context.wrap_socket(self.socket, server_hostname="localhost")
        self.send(hello(WIDE if values is None else values))
        if generous:
            self.send(window(0, 1 << 24))

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *exc: object) -> None:
        self.socket.close()

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def ask(self, path: str = "/", *fields: tuple[str, str]) -> int:
        """Send a GET; returns its stream."""
        number = self.next_stream
        self.next_stream += 2
        self.send(head(number, [*GET[:3], (":path", path), *fields]))
        return number

    def ask_with(self, fields: Fields, *, end: bool = True) -> int:
        number = self.next_stream
        self.next_stream += 2
        self.send(head(number, fields, end=end))
        return number

    def receive(self, timeout_s: float = TIMEOUT_S) -> bool:
        """Take what comes next; False when nothing does in time, or ever again."""
        if self.closed:
            return False
        pending = isinstance(self.socket, ssl.SSLSocket) and self.socket.pending()
        if not pending and not select.select([self.socket], [], [], timeout_s)[0]:
            return False
        try:
            received = self.socket.recv(1 << 18)
        except ConnectionError:
            received = b""
        if not received:
            self.closed = True
            return True
        self.feed(received)
        if self.generous:
            answers = b"".join(ping(payload, ack=True) for payload in self.pings)
            self.pings.clear()
            if answers:
                self.send(answers)
        return True

    def wait(self, condition: Callable[[], object], what: str = "") -> Client:
        """Until the condition holds."""
        end = time.monotonic() + TIMEOUT_S
        while not condition():
            left = end - time.monotonic()
            assert left > 0, f"no {what or condition} in time"
            assert not self.closed, f"closed before {what or condition}; {self.goaways}"
            self.receive(left)
        return self

    def answer(self, number: int) -> Answer:
        """The whole answer of a stream."""
        answer = self.answers[number]
        self.wait(lambda: answer.ended or answer.reset is not None, f"an answer to {number}")
        return answer

    def get(self, path: str = "/", *fields: tuple[str, str]) -> Answer:
        return self.answer(self.ask(path, *fields))

    def wait_closed(self) -> Client:
        end = time.monotonic() + TIMEOUT_S
        while not self.closed:
            assert time.monotonic() < end, "the connection stays open"
            self.receive(1.0)
        return self


class H2Load:
    """Connections that each keep some requests open all the time, and remember every failure.

    As a client should (RFC 9113 section 6.8): after a GOAWAY it opens no new stream, waits for
    those that are open, and goes on with a new connection; a stream that the GOAWAY leaves out, or
    that was refused (REFUSED_STREAM), it asks for again there.
    """

    def __init__(
        self,
        port: int,
        path: str = "/",
        *,
        connections: int = 3,
        depth: int = 4,
        context: ssl.SSLContext | None = None,
    ) -> None:
        self.port = port
        self.path = path
        self.depth = depth
        self.context = context
        self.failures: list[str] = []
        self.bodies: dict[bytes, int] = {}
        self.goaways = 0
        self.again = 0
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._threads = [
            threading.Thread(target=self._run, name=f"h2-load-{i}") for i in range(connections)
        ]

    def __enter__(self) -> H2Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(TIMEOUT_S)

    @property
    def answered(self) -> int:
        return sum(self.bodies.values())

    def wait_answers(self, count: int) -> None:
        """Until so many more were answered."""
        goal = self.answered + count
        end = time.monotonic() + TIMEOUT_S
        while self.answered < goal and not self.failures:
            assert time.monotonic() < end, f"{self.answered} answers, {goal} wanted"
            time.sleep(0.01)

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                with Client(self.port, context=self.context) as client:
                    self._use(client)
            except (OSError, AssertionError) as error:
                self._fail(f"{type(error).__name__}: {error}")
                return

    def _use(self, client: Client) -> None:
        open_streams: set[int] = set()
        while True:
            leaving = GOAWAY in client.frames or self._stop.is_set()
            while not leaving and len(open_streams) < self.depth:
                open_streams.add(client.ask(self.path))
            if not open_streams:
                break
            assert client.receive(), "no answer in time"
            last = client.goaways[-1][0] if client.goaways else 1 << 31
            for number in sorted(open_streams):
                answer = client.answers[number]
                if answer.ended:
                    self._count(answer)
                elif number > last or answer.reset == 7:
                    self.again += 1
                elif answer.reset is not None:
                    self._fail(f"stream {number} was reset: {answer.reset}")
                elif client.closed:
                    self._fail(f"closed with stream {number} open; {client.goaways}")
                else:
                    continue
                open_streams.discard(number)
                del client.answers[number]
            if client.closed and not open_streams:
                break
        if GOAWAY in client.frames:
            self.goaways += 1

    def _count(self, answer: Answer) -> None:
        if answer.status != 200:
            self._fail(f"status {answer.status}")
        with self._lock:
            self.bodies[answer.body] = self.bodies.get(answer.body, 0) + 1

    def _fail(self, what: str) -> None:
        with self._lock:
            self.failures.append(what)
