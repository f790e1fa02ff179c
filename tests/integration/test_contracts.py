"""PEP 3333 and ASGI over real servers: validators around apps, and apps with unusual behaviour."""

from __future__ import annotations

import http.client
from collections.abc import Callable
from dataclasses import dataclass

import httpx
import pytest

from integration.raw import connect, request, status, talk
from integration.server import APPS, REPOSITORY, Server

pytestmark = pytest.mark.slow

Serve = Callable[..., Server]

WSGI_CLASSES = {
    "sync": ("-k", "sync"),
    "thread": ("-k", "thread", "--threads", "4"),
    "async": ("-k", "async"),
}
CUT = "cut"  # in the place of a body: it ends before its end, and a client can tell


@dataclass
class Answer:
    status: int
    body: bytes | str
    headers: dict[str, str]


def fetch(
    server: Server, path: str, method: str = "GET", body: bytes = b"", version: str = "1.1"
) -> Answer:
    data = request(path, method=method, body=body, close=version == "1.1")
    with connect(server) as client:
        client.sendall(data.replace(b"HTTP/1.1", f"HTTP/{version}".encode(), 1))
        response = http.client.HTTPResponse(client, method=method)
        response.begin()
        headers = {name.lower(): value for name, value in response.getheaders()}
        try:
            content: bytes | str = response.read()
        except http.client.IncompleteRead:
            content = CUT
        return Answer(response.status, content, headers)


@pytest.fixture(params=[pytest.param(flags, id=name) for name, flags in WSGI_CLASSES.items()])
def wsgi_flags(request: pytest.FixtureRequest) -> tuple[str, ...]:
    flags: tuple[str, ...] = request.param
    return flags


TORTURE = APPS / "wsgi_torture.py"
SOURCE = TORTURE.read_bytes()
# Path to status and body; what the validator would not let pass is below.
WSGI_LEGAL: dict[str, tuple[int, bytes | str]] = {
    "/write": (200, b"ab"),
    "/write-and-iterate": (200, b"ab"),
    "/empty-parts": (200, b"ab"),
    "/nothing": (200, b""),
    "/late-start": (200, b"ab"),
    "/late-write": (200, b"abc"),
    "/changed-mind": (503, b"sorry"),
    "/no-content": (204, b""),
    "/not-modified": (304, b""),
    "/short": (200, CUT),
    "/closed": (200, b"ab"),
    "/file": (200, SOURCE[3:]),
    "/file-in-memory": (200, b"in memory"),
    "/part-of-file": (200, SOURCE[:3]),
    "/odd-status": (299, b"ab"),
}
WSGI_ILLEGAL: dict[str, tuple[int, bytes | str]] = {
    "/changed-mind-too-late": (200, CUT),
    "/twice": (500, b"Internal Server Error\n"),
    "/no-content-after-all": (204, b""),
    "/long-list": (500, b"Internal Server Error\n"),
    "/closed-after-error": (200, CUT),
    "/close-raises": (200, b"ab"),
    "/hop-by-hop": (200, b"ab"),
    "/injected": (500, b"Internal Server Error\n"),
    "/text": (500, b"Internal Server Error\n"),
    "/no-start": (500, b"Internal Server Error\n"),
    "/none": (500, b"Internal Server Error\n"),
    "/exits": (500, b"Internal Server Error\n"),
}


def test_wsgi_torture(serve: Serve, wsgi_flags: tuple[str, ...]) -> None:
    server = serve(f"{TORTURE}:app", *wsgi_flags, "-w", "1")
    workers = server.wait_workers(1)
    for path, (code, body) in {**WSGI_LEGAL, **WSGI_ILLEGAL}.items():
        answer = fetch(server, path)
        assert (answer.status, answer.body) == (code, body), path
        assert not {"x-injected", "x-old", "keep-alive", "upgrade"} & answer.headers.keys()
        head = fetch(server, path, method="HEAD")
        # With HEAD no body goes out, so what comes after the head can change the status no more.
        assert head.status in (code, 200), path
        assert head.body == b""
        old = fetch(server, path, version="1.0")
        assert old.status == code, path
        assert "transfer-encoding" not in old.headers
    for line in ("whole body was closed", "broken body was closed"):
        server.wait_log(line)
    assert server.worker_pids() == workers


def test_wsgi_lengths(serve: Serve, wsgi_flags: tuple[str, ...]) -> None:
    """Too much is never sent: it would be read as the next response."""
    server = serve(f"{TORTURE}:app", *wsgi_flags, "-w", "1")
    for path, first, answers in (("/long", 500, 2), ("/long-later", 200, 1)):
        response = talk(server, request(path, close=False) + request("/write"))
        # Where the response could not be replaced as a whole, the connection ends with it.
        assert response.count(b"HTTP/1.1") == answers
        assert b"too long" not in response
        assert status(response) == first


def test_wsgi_input(serve: Serve, wsgi_flags: tuple[str, ...]) -> None:
    server = serve(f"{TORTURE}:app", *wsgi_flags, "-w", "1", "--body-buffer-size", "10")
    body = b"one\ntwo three\nfour\nfive"
    expected = repr([b"one\n", b"two", b" t", b"hree\n", b"four\n", b"five"]).encode()
    expected += repr([b"", b""]).encode()
    assert fetch(server, "/lines", "POST", body).body == expected
    chunks = b"".join(b"1\r\n%c\r\n" % byte for byte in body) + b"0\r\n\r\n"
    head = request("/lines", "Transfer-Encoding: chunked", method="POST")
    assert expected[:-10] in talk(server, head + chunks)
    # A body that comes in one read, and one that does not.
    assert fetch(server, "/lines", "POST", b"\n" * 200_000).status == 200


def test_wsgi_early_hints(serve: Serve, wsgi_flags: tuple[str, ...]) -> None:
    server = serve(f"{TORTURE}:app", *wsgi_flags)
    response = talk(server, request("/hints"))
    assert response.lower().startswith(
        b"http/1.1 103 early hints\r\nlink: </a.css>; rel=preload\r\n\r\nhttp/1.1 200 "
    )
    assert status(talk(server, b"GET /hints HTTP/1.0\r\n\r\n")) == 200


def test_validator_around_the_torture(serve: Serve, wsgi_flags: tuple[str, ...]) -> None:
    server = serve(
        f"{APPS / 'wsgi_validator.py'}:app", *wsgi_flags, env={"VALIDATED": f"{TORTURE}:app"}
    )
    legal = {**WSGI_LEGAL}
    # The validator hides the file, so what is sent is a body like any other, and too long.
    del legal["/part-of-file"]
    for path, (code, body) in legal.items():
        for method in ("GET", "HEAD", "POST"):
            answer = fetch(server, path, method, b"x" if method == "POST" else b"")
            assert answer.status == code, path
            assert answer.body == (b"" if method == "HEAD" else body), path
    assert "AssertionError" not in server.log()
    assert "Traceback" not in server.log()


EXAMPLES = REPOSITORY / "examples"
PAGES = [
    ("GET", "/", b""),
    ("POST", "/json", b'{"a": 1}'),
    ("POST", "/upload", b"x" * 200_000),
    ("GET", "/stream?bytes=200000", b""),
    ("GET", "/none", b""),
]


def visit(server: Server, pages: list[tuple[str, str, bytes]]) -> None:
    with httpx.Client(trust_env=False, base_url=server.url, timeout=30) as client:
        for method, path, body in pages:
            for content in (body, iter([body]) if body else None):
                headers = {"Content-Type": "application/json"} if body else {}
                answer = client.request(method, path, content=content, headers=headers)
                assert answer.status_code == (404 if path == "/none" else 200), (path, answer.text)


@pytest.mark.parametrize(
    ("example", "pages"),
    [
        ("flask_app.py:app", PAGES),
        ("django_app.py:app", PAGES),
        ("streaming_wsgi.py:app", [("GET", "/", b""), ("GET", "/file", b"")]),
        ("upload.py:app", [("PUT", "/", b"x" * 200_000)]),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_validator_around_wsgi_examples(
    serve: Serve, wsgi_flags: tuple[str, ...], example: str, pages: list[tuple[str, str, bytes]]
) -> None:
    server = serve(
        f"{APPS / 'wsgi_validator.py'}:app", *wsgi_flags, env={"VALIDATED": f"{EXAMPLES}/{example}"}
    )
    visit(server, pages)
    assert "AssertionError" not in server.log()


ASGI_TORTURE = APPS / "asgi_torture.py"
ERROR = b"Internal Server Error\n"
FILE = b"0123456789" * 200_000
ASGI: dict[str, tuple[int, bytes | str]] = {
    "/empty-parts": (200, b"ab"),
    "/least-keys": (200, b""),
    "/odd-headers": (200, b"ab"),
    "/no-content": (204, b""),
    "/not-modified": (304, b""),
    "/short": (200, CUT),
    "/long": (200, b"much"),
    "/long-at-once": (500, ERROR),
    "/long-whole": (500, ERROR),
    "/after-the-end": (200, b"ab"),
    "/start-twice": (500, ERROR),
    "/body-first": (500, ERROR),
    "/unknown-type": (500, ERROR),
    "/text": (500, ERROR),
    "/injected": (500, ERROR),
    "/returns-early": (500, ERROR),
    "/returns-in-the-middle": (200, CUT),
    "/raises": (500, ERROR),
    "/receives-after-the-end": (200, b"ab"),
    "/waits-for-disconnect": (200, b"ab"),
    "/background": (200, b"ab"),
    "/send-in-tasks": (200, b"ab"),
    "/hop-by-hop": (200, b"ab"),
    "/trailers": (200, b"ab"),
    "/debug": (200, b"ab"),
    "/pathsend": (200, FILE),
    "/pathsend-of-nothing": (500, ERROR),
    "/zerocopysend": (200, b"a" + FILE + b"b"),
}


@pytest.mark.parametrize("loop", ["asyncio", "auto"])
@pytest.mark.parametrize("parser", ["httptools", "h11"])
def test_asgi_torture(serve: Serve, loop: str, parser: str) -> None:
    server = serve(
        f"{APPS / 'asgi_validator.py'}:app",
        *("-k", "async", "-w", "1", "--loop", loop, "--http-parser", parser),
        env={"VALIDATED": f"{ASGI_TORTURE}:app"},
    )
    workers = server.wait_workers(1)
    for path, (code, body) in ASGI.items():
        answer = fetch(server, path)
        assert (answer.status, answer.body) == (code, body), path
        assert not {"x-injected", "keep-alive", "upgrade"} & answer.headers.keys()
        head = fetch(server, path, method="HEAD")
        assert head.status in (code, 200), path
        assert head.body == b""
        assert fetch(server, path, version="1.0").status == code, path
        posted = fetch(server, path, "POST", b"x" * 100_000)
        assert (posted.status, posted.body) == (code, body), path
    server.wait_log(r"received http.request \['http.disconnect', 'http.disconnect'\]")
    server.wait_log("the background work is done")
    assert "ASGI violation" not in server.log()
    assert server.worker_pids() == workers


def test_asgi_extensions_on_the_wire(serve: Serve) -> None:
    server = serve(f"{ASGI_TORTURE}:app", "-k", "async", "--log-level", "debug")
    assert talk(server, request("/trailers")).endswith(b"2\r\nab\r\n0\r\nx-sum: 3\r\n\r\n")
    assert talk(server, request("/hints")).startswith(
        b"HTTP/1.1 103 Early Hints\r\nlink: </a.css>; rel=preload\r\n"
        b"link: </b.css>; rel=preload\r\n\r\nHTTP/1.1 200 OK\r\n"
    )
    assert talk(server, b"GET /hints HTTP/1.0\r\n\r\n").startswith(b"HTTP/1.1 200 OK\r\n")
    talk(server, request("/debug"))
    server.wait_log(r"GET '/debug': \{'template': 'a.html'\}")


@pytest.mark.parametrize(
    ("example", "pages"),
    [
        ("starlette_app.py:app", PAGES),
        ("fastapi_app.py:app", PAGES),
        ("django_app.py:asgi_app", PAGES),
        ("streaming_asgi.py:app", [("GET", "/", b"")]),
        ("all.py:app", [("GET", "/", b""), ("GET", "/flask/", b""), ("GET", "/django/", b"")]),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_validator_around_asgi_examples(
    serve: Serve, example: str, pages: list[tuple[str, str, bytes]]
) -> None:
    server = serve(
        f"{APPS / 'asgi_validator.py'}:app",
        *("-k", "async", "--lifespan", "auto"),
        env={"VALIDATED": f"{EXAMPLES}/{example}"},
    )
    visit(server, pages)
    assert "ASGI violation" not in server.log()


def test_asgi_validator_finds_fault(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is imported here and given what no server should give."""
    monkeypatch.setenv("VALIDATED", f"{ASGI_TORTURE}:app")
    import importlib.util

    spec = importlib.util.spec_from_file_location("asgi_validator", APPS / "asgi_validator.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    scope = {name: kind() for name, kind in module.TYPES.items()}
    scope.update(method="GET", http_version="1.1", scheme="http", path="/", type="http")
    scope.update(client=None, server=None, headers=[(b"X-Upper", b"")])
    with pytest.raises(AssertionError, match="header names"):
        module.check_http(scope)
