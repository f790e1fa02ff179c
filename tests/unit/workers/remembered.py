"""Similar requests, for tests of the memory of connections and workers."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import cache
from types import SimpleNamespace
from typing import Any
from unittest import mock

from hypothesis import strategies as st

from servo.http import headers
from servo.http.events import Data, Refused, Request
from servo.http.h1.connection import H1Connection
from servo.settings.sources import Settings
from servo.shared_memory.row_layout import ROW_WORDS
from servo.workers.aio.worker import AsyncWorker
from servo.workers.blocking.sync import SyncWorker

PEER = ("127.0.0.1", 5000)
LINES = [
    *(b"Host: a", b"Host: b:8080", b"X-A: 1", b"X-A: 2", b"x-a:  1\t", b"X_A: 3", b"Proxy: p"),
    *(b"Cookie: a=b", b"Cookie: c=d", b"Content-Type: text/plain", b"Connection: keep-alive"),
    *(b"X-Forwarded-For: 192.0.2.1", b"X-Forwarded-For: 198.51.100.2, 127.0.0.1"),
    *(b"X-Forwarded-Proto: https", b"X-Forwarded-Proto: http", b"X_Forwarded_For: 203.0.113.3"),
    *(b"X-Forwarded-Host: one.example", b"X-Forwarded-Host: tw o", b"X-Forwarded-Prefix: /pre"),
    *(b"Forwarded: for=192.0.2.9;proto=https", b"Upgrade: websocket"),
    b"X-Request-Start: t=1700000000.1",
]
# Most often, fields that repeat.
USUAL = [
    [b"Host: a"],
    [b"Host: a", b"X-A: 1", b"X_A: 3"],
    [b"Host: a", b"X-A: 1", b"X-A: 2", b"Cookie: a=b", b"Cookie: c=d"],
    [b"Host: a", b"X-Forwarded-For: 192.0.2.1", b"X-Forwarded-Proto: https"],
    [b"Host: a", b"X-Forwarded-For: 192.0.2.1", b"X-Forwarded-Host: one.example"],
]
TARGETS = [b"/", b"/x?y=1", b"/mount/z", b"/%41%2F?%", b"http://other.example/p", b"*"]

# Method, target, version, field lines, the body's length or None, whether the body comes later.
Asked = tuple[bytes, bytes, bytes, list[bytes], int | None, bool]

requests = st.tuples(
    st.sampled_from([b"GET", b"GET", b"POST", b"OPTIONS"]),
    st.sampled_from(TARGETS),
    st.sampled_from([b"HTTP/1.1", b"HTTP/1.1", b"HTTP/1.0"]),
    st.sampled_from(USUAL)
    | st.lists(st.sampled_from(LINES), max_size=4).map(lambda lines: [b"Host: a", *lines]),
    st.sampled_from([None, None, 0, 3, 3]),
    st.booleans(),
)
# The same few requests again and again, in any order.
sequences = st.lists(requests, min_size=1, max_size=3).flatmap(
    lambda few: st.lists(st.sampled_from(few), min_size=2, max_size=9)
)
options = st.tuples(
    st.sampled_from(["drop", "refuse", "dangerous"]),
    st.sampled_from(["", "/mount"]),
    st.sampled_from(["127.0.0.1", "192.0.2.1", ""]),
)


def head_of(asked: Asked) -> bytes:
    method, target, version, lines, length, _ = asked
    if version == b"HTTP/1.0":
        lines = [*lines, b"Connection: keep-alive"]
    if length is not None:
        lines = [*lines, b"Content-Length: %d" % length]
    return b"\r\n".join((b"%b %b %b" % (method, target, version), *lines, b"", b""))


def read(http: H1Connection, asked: Asked) -> tuple[Request | None, list[bytes]]:
    """The request, and its body in the parts that it came in; None where it is refused."""
    body = b"abc"[: asked[4] or 0]
    parts = [head_of(asked), body] if asked[5] and body else [head_of(asked) + body]
    event = http.receive_data(parts[0])
    if isinstance(event, Refused):
        return None, []
    assert isinstance(event, Request)
    blocks = [event.body]
    for part in parts[1:]:
        data = http.receive_data(part)
        assert isinstance(data, Data)
        blocks.append(data.data)
    return event, blocks


def compare(
    sequence: list[Asked], make: Callable[[], Any], answer: Callable[[Any, Asked], object]
) -> None:
    """One connection for all requests against a new one for each."""
    warm = make()
    for asked in sequence:
        headers.VALID_HOSTS.clear()
        expected = answer(make(), asked)
        assert answer(warm, asked) == expected
        if expected is None or warm.http.close_after:
            break


Values = tuple[str, str, str]  # header_map, root_path, the trusted addresses


def made_worker(kind: type[SyncWorker | AsyncWorker], interface: str, **values: Any) -> Any:
    """A worker that has not begun to serve: compiled modules take no stand-in for all of it."""
    row = memoryview(bytearray(8 * ROW_WORDS)).cast("Q")
    context: Any = SimpleNamespace(
        settings=Settings(values, {}),
        slot=1,
        serial=1,
        row_index=0,
        mailbox=None,
        tls=None,
        hook_worker=None,
        loop=None,
        listeners=[],
        scoreboard=SimpleNamespace(row=lambda _: row),
    )
    loaded: Any = SimpleNamespace(app=None, interface=interface)
    # What it registers would stay for the life of the process.
    with mock.patch.object(os, "register_at_fork"):
        return kind(context, loaded)


@cache
def worker_of(kind: type[SyncWorker | AsyncWorker], values: Values) -> Any:
    header_map, root_path, trusted = values
    worker = made_worker(
        kind,
        interface="asgi" if kind is AsyncWorker else "wsgi",
        header_map=header_map,
        root_path=root_path,
        forwarded_allow_ips=trusted,
        forwarded_fields=["for", "proto", "host", "prefix"],
    )
    CLOSERS.append(worker.loop.close if isinstance(worker, AsyncWorker) else worker.epoll.close)
    return worker


CLOSERS: list[Callable[[], None]] = []


def close_workers() -> None:
    """Let all of them go, when a module's tests are over."""
    worker_of.cache_clear()
    while CLOSERS:
        CLOSERS.pop()()
