"""Workers that check themselves, in every class, even while they are busy."""

from __future__ import annotations

import os
import re
import socket
import urllib.request
from collections.abc import Callable
from pathlib import Path

import pytest

from integration.server import Server, wait_for

pytestmark = pytest.mark.slow

Serve = Callable[..., Server]

COMMON = """
import os, time
def status(path):
    if path == "/healthz":
        with open("checks", "a") as file:
            file.write("x")
        return 503 if os.path.exists("sick") else 200
    if path == "/slow":
        open("entered", "w").close()
        while not os.path.exists("leave"):
            time.sleep(0.05)
    return 404 if path == "/missing" else 200
def check():
    return status("/healthz") == 200
"""
WSGI = (
    COMMON
    + """
def app(environ, start_response):
    start_response(f"{status(environ['PATH_INFO'])} X", [("Content-Length", "2")])
    return [b"ok"]
"""
)
ASGI = (
    COMMON
    + """
async def acheck():
    return check()
async def app(scope, receive, send):
    if scope["type"] != "http":
        raise NotImplementedError
    headers = [(b"content-length", b"2")]
    code = status(scope["path"])
    await send({"type": "http.response.start", "status": code, "headers": headers})
    await send({"type": "http.response.body", "body": b"ok"})
"""
)
CLASSES = {
    "sync": (WSGI, ("-k", "sync")),
    "thread": (WSGI, ("-k", "thread", "--threads", "1")),
    "async": (ASGI, ("-k", "async")),
    "async with wsgi": (WSGI, ("-k", "async", "--threads", "1")),
}
EACH_SECOND = ("--health-check-interval", "1", "--health-check-failures", "2")


def begin(serve: Serve, tmp_path: Path, kind: str, check: str, **options: int) -> Server:
    source, flags = CLASSES[kind]
    (tmp_path / "checked.py").write_text(source)
    return serve(
        "checked:app",
        *flags,
        "--health-check",
        check,
        *EACH_SECOND,
        "--access-logfile",
        "-",
        **options,
    )


@pytest.mark.parametrize(
    ("kind", "check"),
    [
        *((kind, "/healthz") for kind in CLASSES),
        ("thread", "checked:check"),
        ("async", "checked:check"),
        ("async", "checked:acheck"),
    ],
)
def test_a_sick_worker_is_replaced(serve: Serve, tmp_path: Path, kind: str, check: str) -> None:
    server = begin(serve, tmp_path, kind, check)
    old = server.worker_pids()
    (tmp_path / "sick").touch()
    server.wait_log(r"Health check .*\(failure 1 of 2\)")
    server.wait_log("will be replaced: its health check failed")
    (tmp_path / "sick").unlink()
    server.wait_replaced(old)
    log = server.log()
    ready = [match.start() for match in re.finditer("is ready after", log)]
    assert ready[1] < log.index("is draining: its health check failed")
    urllib.request.urlopen(server.url, timeout=30).close()
    server.wait_log(r'"GET / HTTP/1.1" 200')
    assert '"GET /healthz' not in server.log()


@pytest.mark.parametrize("kind", CLASSES)
def test_a_path_that_the_app_does_not_serve(serve: Serve, tmp_path: Path, kind: str) -> None:
    server = begin(serve, tmp_path, kind, "/missing", ready=0)
    assert server.wait_exit() == 3
    server.wait_log("could not boot: health_check: GET /missing answered 404; name a path that")
    assert "Traceback" not in server.log()


def test_a_function_that_does_not_exist(serve: Serve, tmp_path: Path) -> None:
    server = begin(serve, tmp_path, "sync", "checked:chekc", ready=0)
    assert server.wait_exit() == 3
    server.wait_log("health_check: checked has no attribute 'chekc'; did you mean check")


@pytest.mark.parametrize("kind", ["thread", "async with wsgi"])
def test_checks_go_on_while_all_threads_are_busy(serve: Serve, tmp_path: Path, kind: str) -> None:
    server = begin(serve, tmp_path, kind, "/healthz")
    checks = tmp_path / "checks"
    with socket.create_connection(("127.0.0.1", server.port), timeout=30) as client:
        client.sendall(b"GET /slow HTTP/1.1\r\nHost: x\r\n\r\n")
        wait_for((tmp_path / "entered").exists, "the slow request")
        before = checks.stat().st_size
        wait_for(lambda: checks.stat().st_size >= before + 2, "two more checks")
        (tmp_path / "leave").touch()
        assert client.recv(100).startswith(b"HTTP/1.1 200")
    assert "Health check" not in server.log()


def test_a_broken_release_by_its_health_check_is_rolled_back(serve: Serve, tmp_path: Path) -> None:
    server = begin(serve, tmp_path, "sync", "/healthz")
    old = server.worker_pids()
    path = tmp_path / "checked.py"
    path.write_text(
        WSGI.replace('== "/healthz"', '== "/health"').replace('"/missing"', '"/healthz"')
    )
    os.utime(path, (1, 1))
    server.signal(1)
    server.wait_log("rolled back: its first worker failed: health_check: GET /healthz answered 404")
    assert server.worker_pids() == old
