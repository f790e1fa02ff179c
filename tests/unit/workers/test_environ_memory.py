"""Environs and scopes are made from what a connection and its worker remember of earlier requests.
No application may be able to tell."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from functools import cache
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from servo.apps.asgi import ASGICall
from servo.apps.asgi_scope import ASGIAdapter
from servo.apps.wsgi_environ import WSGIAdapter
from servo.http import headers
from servo.http.errors import ProtocolError
from servo.http.events import Data, Refused, Request
from servo.http.h1.connection import H1Connection
from servo.http.limits import Limits
from servo.settings.sources import Settings
from servo.shared_memory.row_layout import ROW_WORDS
from servo.workers.aio.server import StreamServer
from servo.workers.aio.worker import AsyncWorker
from servo.workers.blocking.connection import Connection, ConnectionFactory
from servo.workers.blocking.sync import SyncWorker
from servo.workers.request.admission import Peer

PEER = ("127.0.0.1", 5000)
# Where the environ has objects of its connection, or a new one each time.
OBJECTS = ("wsgi.input", "wsgi.errors", "wsgi.early_hints", "wsgi.file_wrapper")

LINES = [
    *(b"Host: a", b"Host: b:8080", b"X-A: 1", b"X-A: 2", b"x-a:  1\t", b"X_A: 3", b"Proxy: p"),
    *(b"Cookie: a=b", b"Cookie: c=d", b"Content-Type: text/plain", b"Connection: keep-alive"),
    *(b"X-Forwarded-For: 192.0.2.1", b"X-Forwarded-For: 198.51.100.2, 127.0.0.1"),
    *(b"X-Forwarded-Proto: https", b"X-Forwarded-Proto: http", b"X_Forwarded_For: 203.0.113.3"),
    *(b"X-Forwarded-Host: one.example", b"X-Forwarded-Host: tw o", b"X-Forwarded-Prefix: /pre"),
    *(b"Forwarded: for=192.0.2.9;proto=https", b"Upgrade: websocket"),
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
        headers._VALID_HOSTS.clear()
        expected = answer(make(), asked)
        assert answer(warm, asked) == expected
        if expected is None or warm.http.close_after:
            break


# --- WSGI ---------------------------------------------------------------------------------------


class NoSocket:
    def fileno(self) -> int:
        return -1

    def getsockname(self) -> Any:
        return ("127.0.0.1", 80)


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


@pytest.fixture(scope="module", autouse=True)
def _workers_end() -> Iterator[None]:
    yield
    for close in CLOSERS:
        close()


def environ(connection: Connection, asked: Asked) -> object:
    """All of the environ that the application would get, or the status of the refusal."""
    request, blocks = read(connection.http, asked)
    if request is None:
        return None
    connection.request = request
    connection.body = request.body
    if len(blocks) > 1:
        connection.begin_body()
        for block in blocks:
            connection.store(block)
    admitted = connection._factory.admission.admit(request, connection.peer)
    if isinstance(admitted, Refused):
        return None
    try:
        connection.prepare(admitted)
    except ProtocolError:
        return None
    given = connection.environ
    body = given["wsgi.input"].read()
    seen = {key: value for key, value in given.items() if key not in OBJECTS}
    assert connection.environ["wsgi.early_hints"] == connection.responder.early_hints
    connection.close_body()
    connection.http.send_response(200, [], b"")
    # What an application does to its environ and its request's fields stays with it.
    given.update({"HTTP_HOST": "evil", "HTTP_X_EVIL": "1", "wsgi.url_scheme": "evil"})
    del given["SERVER_NAME"], given["SCRIPT_NAME"]
    request.headers.append((b"x-evil", b"1"))
    return seen, body


@pytest.mark.slow
@given(sequences, options)
@example(
    [(b"GET", b"/", b"HTTP/1.1", USUAL[1], None, False)] * 4,
    ("dangerous", "", ""),
)
def test_environs(sequence: list[Asked], values: Values) -> None:
    worker = worker_of(SyncWorker, values)

    def make() -> Connection:
        # A factory of its own, whose adapter knows nothing.
        with mock.patch.object(os, "register_at_fork"):
            factory = ConnectionFactory(worker, worker.app, multithread=False)
        return Connection(factory, NoSocket(), PEER)  # type: ignore[arg-type]

    compare(sequence, make, environ)


@pytest.mark.parametrize("header_map", ["drop", "refuse", "dangerous"])
def test_a_worker_that_knows_all_names_joins_them_as_a_new_one(header_map: str) -> None:
    adapter = WSGIAdapter(
        None,  # type: ignore[arg-type]
        log=logging.getLogger("test"),
        multithread=False,
        multiprocess=False,
        header_map=header_map,
    )
    seen = []
    for _ in range(3):
        request = H1Connection(Limits()).receive_data(
            b"GET / HTTP/1.1\r\nHost: h\r\nX-A: 1\r\nX_A: 2\r\n\r\n"
        )
        assert isinstance(request, Request)
        try:
            template = adapter.template(("127.0.0.1", 80), PEER, "http")
            seen.append(adapter.environ(template, request, None, 0)["HTTP_X_A"])
        except ProtocolError as error:
            seen.append(str(error.status))
    assert seen == [{"drop": "1", "refuse": "400", "dangerous": "1,2"}[header_map]] * 3


# --- ASGI ---------------------------------------------------------------------------------------


class Stream:
    """As much of a connection of an `async` worker as makes a scope."""

    def __init__(self, values: Values) -> None:
        self.http = H1Connection(Limits())
        self.adapter = ASGIAdapter(
            None,  # type: ignore[arg-type]
            log=logging.getLogger("test"),
            root_path=values[1],
            state={"db": 1},
        )
        worker = worker_of(AsyncWorker, values)
        self.server = StreamServer(worker, self.adapter, worker.loop)
        self.template = self.server.template(("127.0.0.1", 80), PEER, None)


def scope(stream: Stream, asked: Asked) -> object:
    request, blocks = read(stream.http, asked)
    if request is None:
        return None
    transport: Any = None
    peer = Peer(PEER, "http", PEER[0] in stream.server.trusted)
    admitted = stream.server.admission.admit(request, peer)
    if isinstance(admitted, Refused):
        return None
    call = ASGICall(stream.adapter, stream.template, request, stream.http, transport, 0)
    if admitted.client is not None:
        stream.server._apply_forwarded(call, admitted.client)
    given = call.scope
    seen = {key: _copy(value) for key, value in given.items()}
    stream.http.send_response(200, [], b"")
    # What an application does to its scope stays with it.
    given["headers"].append((b"x-evil", b"1"))
    for key in ("asgi", "extensions", "state"):
        given[key]["evil"] = {}
    given["extensions"].pop("http.response.debug")
    given["client"] = given["server"] = ("evil", 1)
    return seen, b"".join(blocks)


def _copy(value: Any) -> Any:
    return value.copy() if isinstance(value, (dict, list)) else value


@pytest.mark.slow
@given(sequences, options)
@example(
    [(b"GET", b"/", b"HTTP/1.1", USUAL[0], None, False)] * 3,
    ("drop", "", ""),
)
def test_scopes(sequence: list[Asked], values: Values) -> None:
    compare(sequence, lambda: Stream(values), scope)
