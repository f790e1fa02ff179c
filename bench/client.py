"""A load generator for machines without wrk: one process, one thread, kept-alive connections.

It prints what `run.py` needs as JSON. It takes more CPU than wrk, so that requests a second say
less about the server; the server's CPU time per request stays true.
"""

import json
import selectors
import socket
import sys
import time


class Connection:
    def __init__(self, port, request):
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=10)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.request = request
        self.data = b""
        self.length = 0

    def ask(self):
        self.data, self.length = b"", 0
        self.begun = time.perf_counter()
        self.socket.sendall(self.request)

    def answered(self):
        """Read what is there; whether the answer is complete. Raises on a failure."""
        data = self.socket.recv(65536)
        if not data:
            raise ConnectionError("closed by the server")
        self.data += data
        if not self.length:
            head, end, _ = self.data.partition(b"\r\n\r\n")
            if not end:
                return False
            if b" 200 " not in head[:16]:
                raise ConnectionError(f"answered {head[:40]!r}")
            length = head.lower().partition(b"content-length:")[2].split(b"\r\n")[0]
            self.length = len(head) + 4 + int(length)
        return len(self.data) >= self.length


def main(port, seconds, connections, headers):
    lines = [f"{name}: {value}\r\n" for name, value in headers]
    request = f"GET / HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n{''.join(lines)}\r\n".encode()
    selector = selectors.DefaultSelector()
    latencies, errors = [], 0
    for _ in range(connections):
        connection = Connection(port, request)
        selector.register(connection.socket, selectors.EVENT_READ, connection)
        connection.ask()
    begun = time.perf_counter()
    while (now := time.perf_counter()) - begun < seconds and selector.get_map():
        for key, _ in selector.select(timeout=1):
            try:
                if key.data.answered():
                    latencies.append(now - key.data.begun)
                    key.data.ask()
            except OSError:
                errors += 1
                selector.unregister(key.data.socket)
                key.data.socket.close()
    taken = time.perf_counter() - begun
    latencies.sort()
    at = {p: latencies[int(len(latencies) * p)] * 1e3 if latencies else 0 for p in (0.5, 0.99)}
    print(
        json.dumps(
            {
                "requests": len(latencies),
                "seconds": taken,
                "p50_ms": at[0.5],
                "p99_ms": at[0.99],
                "errors": errors,
            }
        )
    )


if __name__ == "__main__":
    main(int(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3]), json.loads(sys.argv[4]))
