"""A load generator in Python: one process, one thread. Its argument and its output are JSON (see
`load.py`).

Without a rate, it sends the next request as soon as the last one is answered; this is for machines
without wrk. With a rate, each request is due at a fixed time, whatever the server does, and its
latency counts from that time. So if a server stalls, all requests that were due meanwhile are late.
"""

import collections
import gc
import json
import selectors
import socket
import sys
import time

# How long to wait for the last responses after the end, s.
GRACE_S = 5.0


class Connection:
    """Sends one request at a time, and reconnects if the server closes the connection."""

    def __init__(self, port):
        self.port = port
        self.socket = None

    def ask(self, request, due, slow):
        """Send a request whose latency counts from `due` (s). Raises OSError."""
        if self.socket is None:
            self.socket = socket.create_connection(("127.0.0.1", self.port), timeout=10)
            self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.due, self.slow = due, slow
        self.head, self.left, self.tail = b"", None, b""
        self.close_after = False
        self.socket.sendall(request)

    def answered(self):
        """Read what has arrived; return whether the response is complete. Raises OSError."""
        data = self.socket.recv(1 << 18)
        if not data:
            raise ConnectionError("closed by the server")
        if self.left is None:
            self.head += data
            head, end, data = self.head.partition(b"\r\n\r\n")
            if not end:
                return False
            self.read_head(head.lower())
        if self.left < 0:  # chunked: only the last chunk matters
            self.tail = (self.tail + data)[-5:]
            return self.tail == b"0\r\n\r\n"
        self.left -= len(data)
        return self.left == 0

    def read_head(self, head):
        if b" 200 " not in head[:16]:
            raise ConnectionError(f"answered {head[:40]!r}")
        self.close_after = b"\r\nconnection: close" in head
        length = head.partition(b"\r\ncontent-length:")[2].split(b"\r\n")[0]
        self.left = int(length) if length else -1

    def forget(self):
        self.socket.close()
        self.socket = None


class Client:
    def __init__(self, spec):
        self.spec = spec
        self.selector = selectors.SelectSelector()  # epoll would round timeouts to ms
        self.free = collections.deque(Connection(spec["port"]) for _ in range(spec["connections"]))
        self.fast, self.slow, self.errors = [], [], 0
        self.request = make_request(spec, spec["path"])
        self.slow_request = make_request(spec, spec["slow_path"])
        self.asked = 0

    def run(self):
        begun = time.perf_counter()
        end = begun + self.spec["seconds"]
        rate = self.spec["rate"]
        while (now := time.perf_counter()) < end:
            due = begun + self.asked / rate if rate else now
            if due <= now and self.free:
                self.ask(due)
            else:
                # No connection is free: wait for the next response.
                wait = due - now if self.free else end - now
                self.read(max(0.0, min(wait, end - now)))
        taken = time.perf_counter() - begun
        answered = len(self.fast) + len(self.slow)
        limit = time.perf_counter() + GRACE_S
        while self.selector.get_map() and time.perf_counter() < limit:
            self.read(0.1)
        if rate:
            # Count every request that was sent, including those answered late.
            answered = len(self.fast) + len(self.slow)
            self.errors += len(self.selector.get_map())
        return self.result(answered, taken)

    def ask(self, due):
        connection = self.free.popleft()
        self.asked += 1
        every = self.spec["slow_every"]
        slow = bool(every) and self.asked % every == 0
        try:
            connection.ask(self.slow_request if slow else self.request, due, slow)
        except OSError:
            self.fail(connection)
            return
        self.selector.register(connection.socket, selectors.EVENT_READ, connection)

    def read(self, timeout):
        for key, _ in self.selector.select(timeout):
            connection = key.data
            try:
                done = connection.answered()
            except OSError:
                self.selector.unregister(key.fileobj)
                self.fail(connection)
                continue
            if done:
                taken = time.perf_counter() - connection.due
                (self.slow if connection.slow else self.fast).append(taken)
                self.selector.unregister(key.fileobj)
                if connection.close_after:
                    connection.forget()
                self.free.append(connection)

    def fail(self, connection):
        self.errors += 1
        if connection.socket is not None:
            connection.forget()
        self.free.append(connection)

    def result(self, answered, seconds):
        times = sorted(self.fast) or [0.0]
        at = {"p50_ms": 0.5, "p90_ms": 0.9, "p99_ms": 0.99, "p999_ms": 0.999}
        return {
            "requests": answered,
            "seconds": seconds,
            "errors": self.errors,
            **{n: times[min(len(times) - 1, int(len(times) * p))] * 1e3 for n, p in at.items()},
        }


def make_request(spec, path):
    lines = [f"{name}: {value}\r\n" for name, value in spec["fields"]]
    body = b""
    if spec["body_bytes"]:
        with open(spec["body_file"], "rb") as file:
            body = file.read()
        lines.append(f"Content-Length: {len(body)}\r\n")
    method = "POST" if body else "GET"
    head = f"{method} {path} HTTP/1.1\r\nHost: 127.0.0.1:{spec['port']}\r\n{''.join(lines)}\r\n"
    return head.encode() + body


if __name__ == "__main__":
    gc.disable()  # a pause of ours would count as the server's latency
    print(json.dumps(Client(json.loads(sys.argv[1])).run()))
