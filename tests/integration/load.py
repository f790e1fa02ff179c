"""Constant load from kept-alive and fresh connections. It records every failure.

There are no retries: a refused or reset connection, an empty or cut response, and any status but
200 are failures. The raw clients note when all bytes of a request were sent. So a test of a stop
can distinguish a request that must be answered from one that came too late.
"""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable
from operator import sub

import httpx
import requests

TIMEOUT_S = 30.0


class Failure:
    """A request that got no proper answer.

    sent_at   monotonic time when its last byte had been handed to the kernel, or None
    """

    def __init__(self, client: str, sent_at: float | None, what: str) -> None:
        self.client = client
        self.sent_at = sent_at
        self.at = time.monotonic()
        self.what = what

    def __repr__(self) -> str:
        sent = "not sent" if self.sent_at is None else f"sent {self.at - self.sent_at:.3f} s before"
        return f"<{self.client}: {self.what} ({sent})>"


class RawConnection:
    """One connection with the least of an HTTP client on it: GET, one answer at a time."""

    def __init__(self, port: int, path: str, keep_alive: bool) -> None:
        self.port = port
        self.keep_alive = keep_alive
        connection = b"" if keep_alive else b"Connection: close\r\n"
        self.request = b"GET %s HTTP/1.1\r\nHost: localhost\r\n%s\r\n" % (path.encode(), connection)
        self.socket: socket.socket | None = None
        self.sent_at: float | None = None

    def get(self) -> bytes:
        """The body of the answer. Raises OSError or ValueError."""
        self.sent_at = None
        if self.socket is None:
            self.socket = socket.create_connection(("127.0.0.1", self.port), timeout=TIMEOUT_S)
        try:
            self.socket.sendall(self.request)
            self.sent_at = time.monotonic()
            head, body = read_response(self.socket)
        except (OSError, ValueError):
            self.close()
            raise
        status = head.split(b" ", 2)[1]
        if b"connection: close" in head.lower() or not self.keep_alive:
            self.close()
        if status != b"200":
            raise ValueError(f"status {status.decode()}")
        return body

    def close(self) -> None:
        if self.socket is not None:
            self.socket.close()
            self.socket = None


def read_response(sock: socket.socket) -> tuple[bytes, bytes]:
    """Head and body of an answer with a Content-Length. Raises ValueError when it is cut short."""
    data = b""
    while b"\r\n\r\n" not in data:
        data += receive(sock, data)
    head, _, body = data.partition(b"\r\n\r\n")
    lengths = [
        line.split(b":")[1]
        for line in head.lower().split(b"\r\n")
        if line.startswith(b"content-length:")
    ]
    if not lengths:
        raise ValueError(f"no Content-Length in {head!r}")
    while len(body) < int(lengths[0]):
        body += receive(sock, data + body)
    return head, body


def receive(sock: socket.socket, before: bytes) -> bytes:
    data = sock.recv(65536)
    if not data:
        raise ValueError(
            f"connection closed after {before!r}" if before else "closed without an answer"
        )
    return data


class Load:
    """Threads that send requests one after another until `stop()`.

    clients   which kinds: "raw-kept", "raw-fresh", "requests-kept", "requests-fresh", "httpx-kept"
    path      what they ask for
    pause_s   between two requests of one thread: enough for the server, little for a 2-core machine
    """

    def __init__(
        self, port: int, clients: dict[str, int], path: str = "/", pause_s: float = 0.005
    ) -> None:
        self.port = port
        self.path = path
        self.pause_s = pause_s
        self.failures: list[Failure] = []
        self.answers = 0
        self.bodies: dict[bytes, int] = {}
        self.answered_at: list[float] = []
        self.latencies: list[float] = []
        self.lock = threading.Lock()
        self.stopping = threading.Event()
        self.threads = [
            threading.Thread(target=self.run, args=(kind,), name=f"{kind}-{number}", daemon=True)
            for kind, count in clients.items()
            for number in range(count)
        ]

    def __enter__(self) -> Load:
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.stop()

    def stop(self) -> None:
        self.stopping.set()
        for thread in self.threads:
            thread.join(TIMEOUT_S + 5)
            assert not thread.is_alive(), f"{thread.name} still waits for an answer"

    def run(self, kind: str) -> None:
        client = CLIENTS[kind](self.port, self.path)
        try:
            while not self.stopping.wait(self.pause_s):
                self.one(kind, client)
        finally:
            client.close()

    def one(self, kind: str, client: RawConnection | SessionClient) -> None:
        begun = time.monotonic()
        try:
            body = client.get()
        except (OSError, ValueError, requests.RequestException, httpx.HTTPError) as error:
            with self.lock:
                self.failures.append(
                    Failure(kind, client.sent_at, f"{type(error).__name__}: {error}")
                )
            # A dead server would be asked thousands of times; one failure says it as well.
            self.stopping.wait(0.05)
            return
        now = time.monotonic()
        with self.lock:
            self.answers += 1
            self.bodies[body] = self.bodies.get(body, 0) + 1
            self.answered_at.append(now)
            self.latencies.append(now - begun)

    def wait_answers(self, more: int, deadline_s: float = 30.0) -> None:
        """Until `more` further requests have been answered."""
        wanted = self.answers + more
        end = time.monotonic() + deadline_s
        while self.answers < wanted:
            assert time.monotonic() < end, (
                f"{wanted - self.answers} answers missing: {self.failures[:5]}"
            )
            time.sleep(0.01)

    def longest_gap(self) -> float:
        """The longest time without any answer, in seconds."""
        times = sorted(self.answered_at)
        return max(map(sub, times[1:], times), default=0.0)


class SessionClient:
    """A real client library behind the same two methods. When it sent is its own secret."""

    sent_at = None

    def __init__(self, fetch: Callable[[], tuple[int, bytes]], close: Callable[[], None]) -> None:
        self.fetch = fetch
        self.close = close

    def get(self) -> bytes:
        status, body = self.fetch()
        if status != 200:
            raise ValueError(f"status {status}")
        return body


def requests_kept(port: int, path: str) -> SessionClient:
    session = requests.Session()
    session.trust_env = False

    def fetch() -> tuple[int, bytes]:
        response = session.get(f"http://127.0.0.1:{port}{path}", timeout=TIMEOUT_S)
        return response.status_code, response.content

    return SessionClient(fetch, session.close)


def requests_fresh(port: int, path: str) -> SessionClient:
    def fetch() -> tuple[int, bytes]:
        with requests.Session() as session:
            session.trust_env = False
            response = session.get(f"http://127.0.0.1:{port}{path}", timeout=TIMEOUT_S)
            return response.status_code, response.content

    return SessionClient(fetch, lambda: None)


def httpx_kept(port: int, path: str) -> SessionClient:
    client = httpx.Client(trust_env=False, timeout=TIMEOUT_S)

    def fetch() -> tuple[int, bytes]:
        response = client.get(f"http://127.0.0.1:{port}{path}")
        return response.status_code, response.content

    return SessionClient(fetch, client.close)


CLIENTS: dict[str, Callable[[int, str], RawConnection | SessionClient]] = {
    "raw-kept": lambda port, path: RawConnection(port, path, keep_alive=True),
    "raw-fresh": lambda port, path: RawConnection(port, path, keep_alive=False),
    "requests-kept": requests_kept,
    "requests-fresh": requests_fresh,
    "httpx-kept": httpx_kept,
}
EVERY_KIND = dict.fromkeys(CLIENTS, 1)
