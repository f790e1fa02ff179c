"""Every input that a fuzzer has found, and the conformance cases, through the fuzz targets."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import pytest
from fuzz.harness import seeds
from fuzz.run import TARGETS

from servo.http.events import Request
from servo.http.h1 import H1Connection

SEEDS = list(seeds())


@pytest.mark.parametrize("target", TARGETS)
def test_replay(target: str) -> None:
    check = import_module(f"fuzz.{target}").target
    for seed in SEEDS:
        check(seed)


def test_harness_finds_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    """A connection that lets a bare LF pass, as a lenient parser would."""

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
