"""Each limit has its status, over real sockets, in every worker class."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable

import pytest

from integration.conftest import class_args
from integration.load import read_response
from integration.raw import connect, many, read_all, request, status, talk
from integration.server import Server, wait_for

pytestmark = pytest.mark.slow

Serve = Callable[..., Server]

POST = b"POST /ignore HTTP/1.1\r\nHost: a\r\n"
ECHO = b"POST /echo HTTP/1.1\r\nHost: a\r\n"
CHUNKED = POST + b"Transfer-Encoding: chunked\r\n\r\n"
REFUSED = {
    "400 no Host": (b"GET / HTTP/1.1\r\n\r\n", 400),
    "400 chunk extension": (CHUNKED + b"1;" + b"e" * 60 + b"\r\nx\r\n0\r\n\r\n", 400),
    "413 declared": (POST + b"Content-Length: 1001\r\n\r\n", 413),
    "413 chunked": (CHUNKED + b"3e9\r\n" + b"x" * 1001 + b"\r\n0\r\n\r\n", 413),
    "413 in two chunks": (CHUNKED + (b"1f5\r\n" + b"x" * 501 + b"\r\n") * 2 + b"0\r\n\r\n", 413),
    "414": (request("/" + "a" * 200), 414),
    "417": (POST + b"Expect: miracles\r\n\r\n", 417),
    "431 count": (request("/", *(["A: b"] * 8)), 431),
    "431 field": (request("/", "A: " + "b" * 200), 431),
    "431 total": (request("/", *(["A: " + "b" * 140] * 3)), 431),
    "431 trailers": (CHUNKED + b"0\r\n" + b"A: b\r\n" * 3 + b"\r\n", 431),
    "501 coding": (POST + b"Transfer-Encoding: gzip\r\n\r\n", 501),
    "501 method": (b"CONNECT a:1 HTTP/1.1\r\nHost: a:1\r\n\r\n", 501),
    "505": (b"GET / HTTP/2.0\r\nHost: a\r\n\r\n", 505),
}
ALLOWED = {
    "body": (POST + b"Connection: close\r\nContent-Length: 1000\r\n\r\n" + b"x" * 1000, 200),
    "head": (request("/" + "a" * 70, *(["A: b"] * 6)), 404),
}


def test_statuses(serve: Serve, worker_class: str) -> None:
    server = serve(
        *class_args(worker_class),
        *("--limit-request-line", "100", "--limit-request-fields", "8"),
        *("--limit-request-field_size", "150", "--limit-request-head-size", "400"),
        *("--limit-request-body", "1000", "--limit-request-trailers", "2"),
        *("--limit-chunk-extension", "50"),
    )
    for name, (data, expected) in {**REFUSED, **ALLOWED}.items():
        response = talk(server, data)
        assert status(response) == expected, (name, response)
        assert b"\r\nConnection: close\r\n" in response, name
    assert "Traceback" not in server.log()


def test_408(serve: Serve, worker_class: str) -> None:
    """Whole heads, gaps in bodies, and bodies that never pause but never get on."""
    server = serve(
        *class_args(worker_class),
        *("--header-timeout", "1", "--body-timeout", "1", "--body-min-rate", "1000"),
    )
    for data in (
        request()[:-2],
        ECHO + b"Content-Length: 9\r\n\r\nabc",
        ECHO + b"Transfer-Encoding: chunked\r\n\r\n5\r\nab",
    ):
        response = talk(server, data)
        assert status(response) == 408, response
        assert response.count(b"HTTP/1.1") == 1
    for start in (request()[:-4] + b"\r\nX: ", ECHO + b"Content-Length: 100000\r\n\r\n"):
        with connect(server) as client:
            client.sendall(start)
            client.settimeout(0.05)
            answer = b""
            for _ in range(400):
                with contextlib.suppress(TimeoutError):
                    answer = client.recv(65536)
                    break
                client.sendall(b"x")
            assert status(answer) == 408


@pytest.mark.parametrize("worker_class", ["thread", "async"])
def test_503(serve: Serve, worker_class: str) -> None:
    """A `sync` worker has one request at a time; what comes meanwhile waits in its sockets."""
    server = serve(*class_args(worker_class), "-w", "1", "--limit-concurrency", "1")
    with connect(server) as busy:
        busy.sendall(request("/slow?s=2"))

        def overloaded() -> bytes | None:
            response = talk(server, request())
            return response if status(response) == 503 else None

        response = wait_for(overloaded, "a 503")
        assert response is not None
        assert b"\r\nretry-after: 1\r\n" in response.lower()
        assert status(read_all(busy)) == 200
    wait_for(lambda: status(talk(server, request())) == 200, "a request served after the busy one")


def test_keepalive_requests(serve: Serve, worker_class: str) -> None:
    server = serve(*class_args(worker_class), "-w", "1", "--keepalive-requests", "3")
    for data in (request(close=False) * 3, request(close=False) * 6):
        answers = talk(server, data)  # pipelined: what comes behind the third is not answered
        assert answers.count(b"HTTP/1.1 200") == 3
        assert answers.count(b"Connection: close") == 1
    with connect(server) as client:
        for number in range(3):
            client.sendall(request(close=False))
            head, _ = read_response(client)
            assert (b"connection: close" in head.lower()) == (number == 2)
        assert client.recv(1) == b""


@pytest.mark.parametrize(
    ("worker_class", "quick", "slow"),
    [("sync", "/", "/slow?s=0.05"), ("async", "/slow?s=0.05", "/block?s=0.05")],
)
def test_several_workers_close_connections_while_requests_hold_them_up(
    serve: Serve, worker_class: str, quick: str, slow: str
) -> None:
    """Or one would wait for its busy worker, while others idle."""
    server = serve(*class_args(worker_class), "-w", "2")

    def kept(path: str) -> bool:
        with connect(server) as client:
            client.sendall(request(path, close=False))
            head, _ = read_response(client)
        return b"connection: close" not in head.lower()

    # It may be slow for a moment, on a busy machine.
    wait_for(lambda: kept(quick), "a connection that is kept")
    wait_for(lambda: not kept(slow), "one that is closed")


def test_worker_connections(serve: Serve, worker_class: str) -> None:
    """Past it nobody is refused: who comes next waits in the kernel's queue."""
    server = serve(*class_args(worker_class), "-w", "1", "--worker-connections", "3")
    with many(server, 3) as held, connect(server) as waiting:
        for client in held:
            client.sendall(request(close=False))
            read_response(client)
        waiting.sendall(request())
        waiting.settimeout(0.3)
        with pytest.raises(TimeoutError):
            waiting.recv(1)
        waiting.settimeout(30)
        held[0].close()
        assert status(read_all(waiting)) == 200
    assert status(talk(server, request())) == 200


def test_early_refusal_is_not_lost(serve: Serve, worker_class: str) -> None:
    """A client that goes on sending has its 413 all the same: no reset wipes it out."""
    server = serve(*class_args(worker_class), "--limit-request-body", "1000")
    body = b"x" * 20_000_000
    for head in (POST + b"Content-Length: %d\r\n\r\n" % len(body), CHUNKED + b"1312d00\r\n"):
        with connect(server) as client:
            sender = threading.Thread(target=_send, args=(client, head + body))
            sender.start()
            response = read_all(client)
            sender.join(30)
            assert status(response) == 413


def test_answer_to_an_unread_body_is_not_lost(serve: Serve, worker_class: str) -> None:
    """The app answers without reading: in `async` that is while the body still comes."""
    server = serve(*class_args(worker_class))
    body = b"x" * 20_000_000
    with connect(server) as client:
        sender = threading.Thread(
            target=_send, args=(client, request("/ignore", method="POST", body=body))
        )
        sender.start()
        response = read_all(client)
        sender.join(30)
        assert status(response) == 200
        assert response.endswith(b"ignored")


def _send(client: socket.socket, data: bytes) -> None:
    # The server may stop reading once it has answered; whether it did is what the reader sees.
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        client.sendall(data)
