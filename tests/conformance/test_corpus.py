"""Run every input of the corpus, and the conformance cases, through the fuzz targets."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import pytest
from fuzz.harness import seeds_of
from fuzz.run import TARGETS

from servo.http.events import Request
from servo.http.h1.connection import H1Connection


@pytest.mark.parametrize("target", TARGETS)
def test_replay(target: str) -> None:
    check = import_module(f"fuzz.{target}").target
    for seed in seeds_of(target):
        check(seed)


def test_harness_finds_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    """The harness notices a connection that accepts a bare LF, as a lenient parser would."""

    class Lenient:
        def __init__(self, *args: Any, **options: Any) -> None:
            self.connection = H1Connection(*args, **options)

        def __getattr__(self, name: str) -> Any:
            return getattr(self.connection, name)

        def receive_data(self, data: bytes) -> object:
            event = self.connection.receive_data(data)
            if isinstance(event, Request):
                event.headers.append((b"x", b"a\nb"))
            return event

    target = import_module("fuzz.httptools").target
    monkeypatch.setattr("fuzz.harness.H1Connection", Lenient)
    with pytest.raises(AssertionError):
        target(b"\0\0\0\0GET / HTTP/1.1\r\nHost: a\r\n\r\n")


def test_warm_finds_fields_recognised_by_their_end(monkeypatch: pytest.MonkeyPatch) -> None:
    class ByTheEnd:
        """A connection that takes a head for the previous one if both end alike."""

        def __init__(self, *args: Any, **options: Any) -> None:
            self.connection = H1Connection(*args, **options)
            self.last = b"\0"

        def __getattr__(self, name: str) -> Any:
            return getattr(self.connection, name)

        def receive_data(self, data: bytes) -> object:
            if data.endswith(self.last) and self.connection.idle:
                data = b"GET / " + self.last
            self.last = data[data.find(b"HTTP/") :] if b"HTTP/" in data else b"\0"
            return self.connection.receive_data(data)

    warm = import_module("fuzz.warm")
    monkeypatch.setattr("fuzz.harness.H1Connection", ByTheEnd)
    # Four messages: three alike, then one with a Content-Length before the same end. Its body is a
    # request in a separate read.
    data = bytes((0, 0, 12, 1, 0, 0, 0, 0, 0, 0, 4 | 1 << 3, 1, 0, 0, 1))
    _, reads = warm.sequence(data)
    assert reads[3:] == [
        b"GET / HTTP/1.1\r\nContent-Length:32\r\nX:HTTP/1.1\r\nHost: a\r\n\r\n",
        warm.INNER,
    ]
    with pytest.raises(AssertionError):
        warm.target(data)
