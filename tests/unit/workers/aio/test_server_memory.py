"""Scopes, made from the memory of a connection and its worker. Earlier requests must have no
visible effect for an application.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import example, given
from unit.workers.remembered import (
    PEER,
    USUAL,
    Asked,
    Values,
    close_workers,
    compare,
    options,
    read,
    sequences,
    worker_of,
)

from servo.apps.asgi import ASGICall
from servo.apps.asgi_scope import ASGIAdapter
from servo.http.events import Refused
from servo.http.h1.connection import H1Connection
from servo.http.limits import Limits
from servo.workers.aio.server import StreamServer
from servo.workers.aio.worker import AsyncWorker
from servo.workers.request.admission import Peer


@pytest.fixture(scope="module", autouse=True)
def _workers_end() -> Iterator[None]:
    yield
    close_workers()


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
