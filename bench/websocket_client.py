"""A load generator for WebSocket echoes: one process, one thread, one message at a time on each
connection. It prints the result as JSON for `load.py`.

All masks are zeros, so that one frame can be sent again and again. For the server, this mask is
like any other.
"""

import json
import selectors
import socket
import struct
import sys
import time

HANDSHAKE = (
    "GET / HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)
TEXT, BINARY = 1, 2
CRLF = b"\r\n"


def frame(opcode, payload, mask):
    """A frame with `payload`: a client's, masked with zeros, or a server's, without a mask."""
    bit = 0x80 if mask else 0
    if len(payload) < 126:
        head = struct.pack("!BB", 0x80 | opcode, bit | len(payload))
    elif len(payload) < 65536:
        head = struct.pack("!BBH", 0x80 | opcode, bit | 126, len(payload))
    else:
        head = struct.pack("!BBQ", 0x80 | opcode, bit | 127, len(payload))
    return head + (b"\0\0\0\0" if mask else b"") + payload


class Connection:
    def __init__(self, port, message, size):
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=10)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket.sendall(HANDSHAKE.format(port=port).encode())
        head = b""
        while CRLF * 2 not in head:
            data = self.socket.recv(4096)
            if not data:
                raise ConnectionError(f"no handshake: {head!r}")
            head += data
        if b" 101 " not in head[:16]:
            raise ConnectionError(f"no handshake: {head.partition(CRLF)[0].decode()}")
        self.socket.setblocking(False)
        self.message = memoryview(message)
        self.size = size

    def ask(self):
        self.begun = time.perf_counter()
        self.sent = self.received = 0

    def write(self):
        """Send as much as the socket takes; return whether all of the frame is sent."""
        while self.sent < len(self.message):
            try:
                self.sent += self.socket.send(self.message[self.sent :])
            except BlockingIOError:
                return False
        return True

    def read(self, buffer):
        """Read what has arrived; return whether the echo is complete."""
        try:
            n = self.socket.recv_into(buffer)
        except BlockingIOError:
            return False
        if not n:
            raise ConnectionError("closed by the server")
        self.received += n
        if self.received > self.size:
            raise ConnectionError("more than an echo")
        return self.received == self.size


def main(port, seconds, connections, size):
    # Small messages are text, as in chats and notifications; big ones are bytes.
    opcode = TEXT if size < 1024 else BINARY
    payload = b"a" * size
    message, echo = frame(opcode, payload, mask=True), len(frame(opcode, payload, mask=False))
    selector = selectors.DefaultSelector()
    buffer = bytearray(1 << 18)
    latencies, errors = [], 0
    everything = selectors.EVENT_READ | selectors.EVENT_WRITE

    def ask(connection, registered=True):
        connection.ask()
        events = selectors.EVENT_READ if connection.write() else everything
        if not registered:
            selector.register(connection.socket, events, connection)
        elif selector.get_key(connection.socket).events != events:
            selector.modify(connection.socket, events, connection)

    for _ in range(connections):
        ask(Connection(port, message, echo), registered=False)
    begun = time.perf_counter()
    while (now := time.perf_counter()) - begun < seconds and selector.get_map():
        for key, events in selector.select(timeout=1):
            connection = key.data
            try:
                if events & selectors.EVENT_WRITE and connection.write():
                    selector.modify(key.fileobj, selectors.EVENT_READ, connection)
                if events & selectors.EVENT_READ and connection.read(buffer):
                    latencies.append(now - connection.begun)
                    ask(connection)
            except OSError:
                errors += 1
                selector.unregister(connection.socket)
                connection.socket.close()
    taken = time.perf_counter() - begun
    latencies.sort()
    at = {"p50_ms": 0.5, "p99_ms": 0.99, "p999_ms": 0.999}
    print(
        json.dumps(
            {
                "requests": len(latencies),
                "seconds": taken,
                "errors": errors,
                **{
                    n: latencies[int(len(latencies) * p)] * 1e3 if latencies else 0
                    for n, p in at.items()
                },
            }
        )
    )


if __name__ == "__main__":
    main(int(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))
