"""HTTP/1.1 on the wire, the same in every worker class."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable
from pathlib import Path

import pytest
import requests

from integration.conftest import class_args
from integration.load import read_response
from integration.server import APPS, Server, wait_for

pytestmark = pytest.mark.slow

Serve = Callable[..., Server]


def talk(server: Server, data: bytes, end: bool = False) -> bytes:
    """Send these bytes (and half-close with `end`); all that comes back until the server closes."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=30) as client:
        client.sendall(data)
        if end:
            client.shutdown(socket.SHUT_WR)
        return b"".join(iter(lambda: client.recv(65536), b""))


@pytest.fixture(params=["httptools", "h11"])
def server(serve: Serve, worker_class: str, request: pytest.FixtureRequest) -> Server:
    # `sync` keeps alive by default only when it is the only worker, as here.
    return serve(*class_args(worker_class), "-w", "1", "--http-parser", request.param)


def test_the_wire(server: Server) -> None:
    """One server, many conversations: a start for each would be most of the time."""
    pipelined(server)
    head_and_no_body(server)
    expect_continue(server)
    chunked_upload(server)
    http_1_0(server)
    half_close(server)
    quotes_in_a_query(server)
    refusals(server)


def pipelined(server: Server) -> None:
    data = talk(
        server,
        b"GET /slow?s=0.05 HTTP/1.1\r\nHost: localhost\r\n\r\n"
        b"POST /echo HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\n\r\nfirst"
        b"POST /echo HTTP/1.1\r\nHost: localhost\r\nContent-Length: 6\r\n\r\nsecond"
        b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n",
    )
    assert data.count(b"HTTP/1.1 200") == 4
    assert data.index(b"slow") < data.index(b"first") < data.index(b"second")
    assert data.endswith(b"ok")


def head_and_no_body(server: Server) -> None:
    data = talk(server, b"HEAD / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
    head = data.lower()
    assert head.endswith(b"\r\n\r\n")
    assert b"content-length: 2\r\n" in head
    assert b"date: " in head
    assert b"server: servo\r\n" in head


def expect_continue(server: Server) -> None:
    with socket.create_connection(("127.0.0.1", server.port), timeout=30) as client:
        client.sendall(
            b"POST /echo HTTP/1.1\r\nHost: localhost\r\nContent-Length: 4\r\n"
            b"Expect: 100-continue\r\nConnection: close\r\n\r\n"
        )
        assert client.recv(65536) == b"HTTP/1.1 100 Continue\r\n\r\n"
        client.sendall(b"body")
        head, body = read_response(client)
        assert (head.split(b" ")[1], body) == (b"200", b"body")


def chunked_upload(server: Server) -> None:
    data = talk(
        server,
        b"POST /echo HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n"
        b"Connection: close\r\n\r\n3\r\nabc\r\n4;x=y\r\ndefg\r\n0\r\n\r\n",
    )
    assert data.startswith(b"HTTP/1.1 200")
    assert data.endswith(b"abcdefg")


def http_1_0(server: Server) -> None:
    data = talk(server, b"GET /stream?bytes=100000 HTTP/1.0\r\n\r\n")
    head, _, body = data.partition(b"\r\n\r\n")
    assert b"transfer-encoding" not in head.lower()
    assert body == b"." * 100_000


def half_close(server: Server) -> None:
    data = talk(server, b"GET /slow?s=0.05 HTTP/1.1\r\nHost: localhost\r\n\r\n", end=True)
    assert data.startswith(b"HTTP/1.1 200")
    assert data.endswith(b"slow")


def quotes_in_a_query(server: Server) -> None:
    target = '/describe?f={"a":1}&q=<b>'
    seen = []
    with socket.create_connection(("127.0.0.1", server.port), timeout=30) as client:
        # Three times: the third finds the fields of the first two remembered.
        for _ in range(3):
            client.sendall(f"GET {target} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
            head, body = read_response(client)
            assert head.startswith(b"HTTP/1.1 200 ")
            told = json.loads(body)
            seen.append(told.get("QUERY_STRING") or told["query_string"])
    assert seen == ['f={"a":1}&q=<b>'] * 3


def refusals(server: Server) -> None:
    post = b"POST / HTTP/1.1\r\nHost: a\r\n"
    for request, status in [
        (b"GET / HTTP/1.1\r\n\r\n", b"400"),
        (b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", b"400"),
        (post + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\nx", b"400"),
        (post + b"Content-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n", b"400"),
        (b"GET / HTTP/1.1\r\nHost : a\r\n\r\n", b"400"),
        (b"GET /" + b"a" * 9000 + b" HTTP/1.1\r\nHost: a\r\n\r\n", b"414"),
        (b"A" * 9000 + b" / HTTP/1.1\r\nHost: a\r\n\r\n", b"501"),
        (b'GET /"q" HTTP/1.1\r\nHost: a\r\n\r\n', b"400"),
        (b"GET / HTTP/1.1\r\nHost: a\r\n" + b"A: b\r\n" * 200 + b"\r\n", b"431"),
        (b"nonsense\r\n\r\n", b"400"),
    ]:
        data = talk(server, request)
        assert data.split(b" ")[1] == status, (request, data)
        assert b"connection: close" in data.lower()
    assert requests.get(f"{server.url}/", timeout=30).text == "ok"


def test_forwarded_headers_count_from_trusted_peers(serve: Serve) -> None:
    headers = {"X-Forwarded-For": "203.0.113.9", "X-Forwarded-Proto": "https"}
    for trusted, scheme, client in [
        ("127.0.0.1", "https", "203.0.113.9"),
        ("10.0.0.0/8", "http", "127.0.0.1"),
    ]:
        server = serve(f"{APPS / 'asgi_app.py'}:app", "--forwarded-allow-ips", trusted)
        scope = requests.get(f"{server.url}/describe", headers=headers, timeout=30).json()
        assert (scope["scheme"], scope["client"][0]) == (scheme, client)


def test_wsgiref_validator_finds_nothing(serve: Serve) -> None:
    for flags in [("-k", "sync"), ("-k", "thread", "--threads", "2")]:
        server = serve(f"{APPS / 'validated.py'}:app", *flags)
        with requests.Session() as session:
            session.trust_env = False
            assert session.get(f"{server.url}/", timeout=30).text == "ok"
            assert session.head(f"{server.url}/", timeout=30).status_code == 200
            answer = session.post(f"{server.url}/upload", data=b"x" * 100_000, timeout=30)
            assert answer.json()["bytes"] == 100_000
            answer = session.post(f"{server.url}/upload", data=iter([b"abc", b"de"]), timeout=30)
            assert answer.json()["bytes"] == 5
            assert len(session.get(f"{server.url}/stream", timeout=30).content) == 1_000_000
            assert session.get(f"{server.url}/none", timeout=30).status_code == 404
        assert "AssertionError" not in server.log()
        assert "Traceback" not in server.log()


def test_environ(serve: Serve) -> None:
    server = serve(f"{APPS / 'wsgi_app.py'}:app", "-k", "sync", "-w", "1")
    answer = requests.get(f"{server.url}/describe?a=%20b", headers={"X-Up": "1"}, timeout=30)
    environ = json.loads(answer.text)
    assert environ["REQUEST_METHOD"] == "GET"
    assert environ["SCRIPT_NAME"] == ""
    assert environ["QUERY_STRING"] == "a=%20b"
    assert environ["SERVER_NAME"] == "127.0.0.1"
    assert environ["SERVER_PORT"] == str(server.port)
    assert environ["REMOTE_ADDR"] == "127.0.0.1"
    assert environ["HTTP_X_UP"] == "1"
    assert environ["wsgi.url_scheme"] == "http"
    assert (environ["wsgi.multithread"], environ["wsgi.run_once"]) == (False, False)


def test_asgi_lifespan_state_and_disconnect(serve: Serve) -> None:
    server = serve(f"{APPS / 'asgi_app.py'}:app")
    (worker,) = server.wait_workers(1)
    assert requests.get(f"{server.url}/state", timeout=30).text == str(worker)
    with socket.create_connection(("127.0.0.1", server.port), timeout=30) as client:
        client.sendall(b"GET /watch HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert client.recv(65536)
    server.wait_log("the client has gone")
    assert server.stop() == 0
    server.wait_log(f"lifespan of {worker} has ended")


def test_limit_concurrency_answers_503(serve: Serve) -> None:
    server = serve(f"{APPS / 'asgi_app.py'}:app", "-w", "1", "--limit-concurrency", "1")
    with socket.create_connection(("127.0.0.1", server.port), timeout=30) as busy:
        busy.sendall(b"GET /watch HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert busy.recv(65536)
        answer = requests.get(f"{server.url}/", timeout=30)
        assert answer.status_code == 503
        assert int(answer.headers["Retry-After"]) >= 1

    def served() -> bool:
        return requests.get(f"{server.url}/", timeout=30).status_code == 200

    wait_for(served, "a request served after the busy one")


def test_requests_do_not_share_a_context(serve: Callable[..., Server], tmp_path: Path) -> None:
    """A response whose client has it all before the app's last `send`: the next request comes in
    while that `send` runs, and must not see the first one's context variables."""
    (tmp_path / "contexts.py").write_text(
        """
import asyncio, contextvars
seen = contextvars.ContextVar("seen", default="")

async def app(scope, receive, send):
    if scope["type"] != "http":
        raise NotImplementedError
    body = f"{seen.get()!r}".encode()
    seen.set(scope["path"])
    length = (b"content-length", b"%d" % len(body))
    await send({"type": "http.response.start", "status": 200, "headers": [length]})
    await send({"type": "http.response.body", "body": body, "more_body": True})
    await asyncio.sleep(0.3)
    await send({"type": "http.response.body"})
"""
    )
    for loop in ("asyncio", "auto"):
        server = serve("contexts:app", "--loop", loop)
        with requests.Session() as session:
            for path in ("/a", "/b", "/c"):
                assert session.get(f"{server.url}{path}", timeout=30).text == "''"
        server.stop()
