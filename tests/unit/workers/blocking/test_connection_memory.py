"""Environs, made from the memory of a connection and its worker. Earlier requests must have no
visible effect for an application.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from typing import Any
from unittest import mock

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

from servo.apps.wsgi_environ import WSGIAdapter
from servo.http.errors import ProtocolError
from servo.http.events import Refused, Request
from servo.http.h1.connection import H1Connection
from servo.http.limits import Limits
from servo.workers.blocking.connection import Connection, ConnectionFactory
from servo.workers.blocking.sync import SyncWorker

# Where the environ has objects of its connection, or a new one each time.
OBJECTS = ("wsgi.input", "wsgi.errors", "wsgi.early_hints", "wsgi.file_wrapper")


@pytest.fixture(scope="module", autouse=True)
def _workers_end() -> Iterator[None]:
    yield
    close_workers()


class NoSocket:
    def fileno(self) -> int:
        return -1

    def getsockname(self) -> Any:
        return ("127.0.0.1", 80)


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
        connection.close_body()
        return None
    try:
        connection.prepare(admitted)
    except ProtocolError:
        connection.close_body()
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
        return Connection(factory, NoSocket(), PEER, None)  # type: ignore[arg-type]

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
