"""The floods of a hostile HTTP/2 client, and a client that repeats one of them."""

from __future__ import annotations

import threading
from collections.abc import Callable

from h2frames import (
    CONTINUATION,
    DATA,
    END_HEADERS,
    END_STREAM,
    GET,
    HEADERS,
    POST,
    PRIORITY,
    block,
    frame,
    head,
    ping,
    reset,
    settings,
    window,
)

from integration.h2_client import Client
from integration.server import DEADLINE_S

OPEN = head(1, [*POST[:3], (":path", "/watch")], end=False)


def many(make: Callable[[int], bytes], count: int = 100) -> Callable[[int], bytes]:
    return lambda i: b"".join(make(i * count + j) for j in range(count))


FLOODS: dict[str, tuple[bytes, Callable[[int], bytes]]] = {
    "rapid reset": (b"", many(lambda i: head(2 * i + 1) + reset(2 * i + 1), 20)),
    "made to reset": (b"", many(lambda i: head(2 * i + 1) + window(2 * i + 1, (1 << 31) - 1), 20)),
    "CONTINUATION": (
        frame(HEADERS, END_STREAM, 1, block(GET)),
        many(lambda _: frame(CONTINUATION, 0, 1, b"")),
    ),
    "CONTINUATION with fields": (
        frame(HEADERS, END_STREAM, 1, block(GET)),
        lambda i: frame(CONTINUATION, 0, 1, block([(f"a{i}", "b" * 9000)])),
    ),
    "SETTINGS": (b"", many(lambda i: settings({4: 1000 + i % 7}))),
    "PING": (b"", many(lambda _: ping())),
    "PRIORITY": (b"", many(lambda i: frame(PRIORITY, 0, 2 * i + 1, b"\0\0\0\0\1"))),
    "empty DATA": (OPEN, many(lambda _: frame(DATA, 0, 1))),
    "WINDOW_UPDATE": (b"", many(lambda _: window(0, 1))),
    "RST_STREAM": (OPEN, many(lambda _: reset(1))),
    "HPACK bomb": (
        b"",
        lambda i: frame(
            HEADERS,
            END_HEADERS | END_STREAM,
            2 * i + 1,
            block(GET) + b"\x40" + block([("a", "b" * 3900)])[1:] + b"\xbe" * 9000,
        ),
    ),
}


class Flood:
    """Connections, one after another, that each send what does no good until they are ended."""

    def __init__(
        self, port: int, before: bytes, make: Callable[[int], bytes], pause_s: float = 0.0
    ) -> None:
        self.pause_s = pause_s
        self.port = port
        self.before = before
        self.make = make
        self.codes: list[int] = []
        self.errors: list[str] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="flood")

    def __enter__(self) -> Flood:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._stop.set()
        self._thread.join(DEADLINE_S)

    def _run(self) -> None:
        while not self._stop.is_set():
            with Client(self.port, generous=False) as client:
                try:
                    client.send(self.before)
                    for i in range(100_000):
                        client.send(self.make(i))
                        while client.receive(0):
                            pass
                        if client.closed or client.goaways or self._stop.is_set():
                            break
                except OSError:
                    client.receive(0)
                except AssertionError as error:
                    self.errors.append(str(error))
                self.codes += [code for _, code in client.goaways]
            self._stop.wait(self.pause_s)
