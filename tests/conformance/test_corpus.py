"""Every input that a fuzzer has found, and the conformance cases, through the fuzz targets."""

from __future__ import annotations

from importlib import import_module

import pytest
from fuzz.harness import seeds
from fuzz.run import TARGETS

SEEDS = list(seeds())


@pytest.mark.parametrize("target", TARGETS)
def test_replay(target: str) -> None:
    check = import_module(f"fuzz.{target}").target
    for seed in SEEDS:
        check(seed)


def test_harness_finds_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    """A connection that lets a bare LF pass, as a lenient parser would."""
    from servo.http import h1

    target = import_module("fuzz.httptools").target
    original = h1.read_request

    def lenient(head: bytes, parse: object) -> object:
        request = original(head, parse)  # type: ignore[arg-type]
        request.headers.append((b"x", b"a\nb"))
        return request

    monkeypatch.setattr(h1, "read_request", lenient)
    with pytest.raises(AssertionError):
        target(b"\0\0\0\0GET / HTTP/1.1\r\nHost: a\r\n\r\n")
