"""A connection remembers fields of earlier requests, but no request changes its meaning."""

from __future__ import annotations

import socket
from collections.abc import Callable

import pytest
from conformance.cases import statuses
from conformance.combinations import APPS, CLASSES

from integration.raw import connect, read_all
from integration.server import Server

pytestmark = pytest.mark.slow

Serve = Callable[..., Server]

FIELDS = b"HTTP/1.1\r\nHost: x\r\n\r\n"
SMUGGLED = b"GET /smuggled " + FIELDS
# Heads that end with FIELDS and say something else; SMUGGLED is their body, or follows an error.
HEADS = [
    b"POST /evil HTTP/1.1\r\nContent-Length:%d\r\nX:" % len(SMUGGLED) + FIELDS,
    b"POST /evil HTTP/1.1\r\nTransfer-Encoding:chunked\r\nX:" + FIELDS,
    b"POST /evil HTTP/1.1\r\nHost:evil.example\r\nX:" + FIELDS,
    b"POST /evil HTTP/1.1\r\nX:\x00" + FIELDS,
    b"POST /evil foo" + FIELDS,
]


@pytest.mark.parametrize("parser", ["httptools", "h11"])
@pytest.mark.parametrize("kind", CLASSES)
def test_no_body_is_run_as_a_request(serve: Serve, kind: str, parser: str) -> None:
    module, flags = CLASSES[kind]
    app = f"{APPS / module}.py:app"
    server = serve(app, *flags, "-w", "1", "--http-parser", parser, env={"SEEN": "/dev/null"})
    for head in HEADS:
        with connect(server) as client:
            for _ in range(3):
                client.sendall(b"GET / " + FIELDS)
                answered = client.recv(65536)
                assert statuses(answered) == [200]
            client.sendall(head + SMUGGLED)
            client.shutdown(socket.SHUT_WR)
            answered = read_all(client)
        assert b'"/smuggled"' not in answered, head
        assert statuses(answered)[0] in (200, 400), head
        assert len(statuses(answered)) == 1, head
