"""Opens TLS connections, each of which resumes the session of the one before; prints JSON.

tls_client.py PORT SECONDS THREADS

Each connection sends one request, and ends with its response. The client keeps the newest session
ticket of its thread, as browsers do. "full_percent" is the share of handshakes that the server did
not resume, without the first one of each thread.
"""

import json
import socket
import ssl
import sys
import threading
import time

REQUEST = b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"


class Visitor(threading.Thread):
    def __init__(self, context, port, end):
        super().__init__()
        self.context, self.port, self.end = context, port, end
        self.times, self.full, self.errors = [], 0, 0
        self.session = None

    def run(self):
        while time.perf_counter() < self.end:
            try:
                self.visit()
            except OSError:
                self.errors += 1
                self.session = None

    def visit(self):
        begun = time.perf_counter()
        with (
            socket.create_connection(("127.0.0.1", self.port), timeout=10) as plain,
            self.context.wrap_socket(
                plain, server_hostname="localhost", session=self.session
            ) as secured,
        ):
            secured.sendall(REQUEST)
            answer = b""
            while data := secured.recv(65536):
                answer += data
            if b" 200 " not in answer[:16]:
                raise OSError("not answered")
            self.full += self.session is not None and not secured.session_reused
            # With TLS 1.3, the tickets arrive after the handshake.
            self.session = secured.session
        self.times.append(time.perf_counter() - begun)


def main(port, seconds, threads):
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    # Some servers close without close_notify, which OpenSSL 3 reports as an error.
    context.options |= getattr(ssl, "OP_IGNORE_UNEXPECTED_EOF", 0)
    begun = time.perf_counter()
    visitors = [Visitor(context, port, begun + seconds) for _ in range(threads)]
    for visitor in visitors:
        visitor.start()
    for visitor in visitors:
        visitor.join()
    times = sorted(taken for visitor in visitors for taken in visitor.times)
    at = {"p50_ms": 0.5, "p99_ms": 0.99, "p999_ms": 0.999}
    shares = {
        name: times[min(len(times) - 1, int(len(times) * p))] * 1e3 if times else 0.0
        for name, p in at.items()
    }
    return {
        "requests": len(times),
        "seconds": time.perf_counter() - begun,
        "errors": sum(visitor.errors for visitor in visitors),
        "full_percent": 100 * sum(visitor.full for visitor in visitors) / max(1, len(times)),
        **shares,
    }


if __name__ == "__main__":
    print(json.dumps(main(int(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3]))))
