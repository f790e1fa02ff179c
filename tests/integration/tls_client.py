"""TLS clients for tests: a connection that reports the server's certificate, and load."""

from __future__ import annotations

import hashlib
import json
import socket
import ssl
import subprocess
import threading
import time
from typing import Any

from integration.load import read_response

TIMEOUT_S = 30.0

# The app that suits each worker class, with the flags that select the class.
CLASSES = {
    "sync": ("tls_wsgi", ("-k", "sync")),
    "thread": ("tls_wsgi", ("-k", "thread", "--threads", "4")),
    "async": ("tls_asgi", ("-k", "async")),
}


class Connection:
    """One TLS connection to 127.0.0.1, with the least of HTTP on it.

    before   what is sent before the handshake
    """

    def __init__(
        self,
        port: int,
        context: ssl.SSLContext,
        host: str = "localhost",
        session: ssl.SSLSession | None = None,
        before: bytes = b"",
    ) -> None:
        raw = socket.create_connection(("127.0.0.1", port), timeout=TIMEOUT_S)
        try:
            if before:
                raw.sendall(before)
            self.socket = context.wrap_socket(raw, server_hostname=host, session=session)
        except BaseException:
            raw.close()
            raise

    def __enter__(self) -> Connection:
        return self

    def __exit__(self, *exc: object) -> None:
        self.socket.close()

    @property
    def names(self) -> set[str]:
        """The host names and addresses in the certificate that was shown."""
        certificate: Any = self.socket.getpeercert()
        return {value for _, value in certificate["subjectAltName"]}

    @property
    def fingerprint(self) -> str:
        return hashlib.sha256(self.socket.getpeercert(binary_form=True) or b"").hexdigest()

    def get(self, path: str = "/") -> bytes:
        self.socket.sendall(b"GET %s HTTP/1.1\r\nHost: localhost\r\n\r\n" % path.encode())
        head, body = read_response(self.socket)
        assert head.startswith(b"HTTP/1.1 200 "), head
        return body

    def facts(self) -> dict[str, Any]:
        return dict(json.loads(self.get()))


def s_client(port: int, *arguments: str, text: bytes = b"") -> str:
    """What `openssl s_client` prints of a connection; it sends `text`."""
    done = subprocess.run(
        ["openssl", "s_client", "-connect", f"127.0.0.1:{port}", *arguments],
        input=text,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=TIMEOUT_S,
        check=False,
    )
    return done.stdout.decode(errors="replace")


class TLSLoad:
    """Threads that ask without end, each time on a fresh connection, or (one) on a kept one.

    fingerprints   of the certificates that were shown, with the number of handshakes
    """

    def __init__(self, port: int, context: ssl.SSLContext, fresh: int = 3) -> None:
        self.port = port
        self.context = context
        self.failures: list[str] = []
        self.fingerprints: dict[str, int] = {}
        self.answers = 0
        self.lock = threading.Lock()
        self.stopping = threading.Event()
        self.threads = [threading.Thread(target=self.run_kept, daemon=True)]
        self.threads += [threading.Thread(target=self.run_fresh, daemon=True) for _ in range(fresh)]

    def __enter__(self) -> TLSLoad:
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.stopping.set()
        for thread in self.threads:
            thread.join(TIMEOUT_S + 5)
            assert not thread.is_alive(), "a client still waits for an answer"

    def run_fresh(self) -> None:
        while not self.stopping.wait(0.005):
            try:
                with Connection(self.port, self.context) as connection:
                    connection.get()
                    self.note(connection.fingerprint)
            except (OSError, ValueError, AssertionError) as error:
                self.failed("fresh", error)

    def run_kept(self) -> None:
        connection = None
        while not self.stopping.wait(0.005):
            try:
                connection = connection or Connection(self.port, self.context)
                connection.socket.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
                head, _ = read_response(connection.socket)
                self.note(connection.fingerprint)
            except (OSError, ValueError) as error:
                self.failed("kept", error)
                head = b"connection: close"
            if b"connection: close" in head.lower() and connection is not None:
                connection.socket.close()
                connection = None
        if connection is not None:
            connection.socket.close()

    def note(self, fingerprint: str) -> None:
        with self.lock:
            self.answers += 1
            self.fingerprints[fingerprint] = self.fingerprints.get(fingerprint, 0) + 1

    def failed(self, kind: str, error: BaseException) -> None:
        with self.lock:
            self.failures.append(f"{kind}: {type(error).__name__}: {error}")
        self.stopping.wait(0.05)

    def wait_answers(self, more: int) -> None:
        wanted = self.answers + more
        end = time.monotonic() + TIMEOUT_S
        while self.answers < wanted:
            assert time.monotonic() < end, f"no answers: {self.failures[:5]}"
            time.sleep(0.01)
