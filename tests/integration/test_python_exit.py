"""A worker ends as a Python script does: threads, executors, processes and exit functions."""

from __future__ import annotations

import re
import signal
from typing import TYPE_CHECKING

import pytest

from integration import raw
from integration.server import APPS, Server, alive, wait_for

if TYPE_CHECKING:
    from integration.conftest import Serve

pytestmark = pytest.mark.slow

ALL = {
    "sync": ("wsgi", "-k", "sync"),
    "thread": ("wsgi", "-k", "thread", "--threads", "2"),
    "async": ("asgi", "-k", "async"),
    "wsgi_in_async": ("wsgi", "-k", "async"),
}
LEAVES = ("/thread?0.5", "/executor?0.6", "/processes?0.5", "/child?0.5", "/exits", "/logs")
DONE = ("thread", "job 0", "job 1", "job 2", "process job", "child", "atexit", "log")


@pytest.fixture(params=ALL)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def start(serve: Serve, kind: str, *more: str) -> Server:
    app, *flags = ALL[kind]
    return serve(f"{APPS / 'leaves_work.py'}:{app}", *flags, "-w", "1", *more)


def get(server: Server, target: str) -> int:
    # Not until the server closes: a process that is left may hold the connection, too.
    with raw.connect(server) as client:
        client.sendall(raw.request(target, close=False))
        answer = b""
        while not re.search(rb"\r\n\r\n\d+$", answer):
            received = client.recv(4096)
            assert received, answer
            answer += received
    assert raw.status(answer) == 200, answer
    return int(answer.partition(b"\r\n\r\n")[2])


@pytest.mark.parametrize("how", ["reload", "stop", "recycle"])
def test_what_was_left_is_finished(serve: Serve, kind: str, how: str) -> None:
    recycling = ("--max-requests", str(len(LEAVES) + 2), "--max-requests-jitter", "0")
    server = start(serve, kind, *(recycling if how == "recycle" else ()))
    pids = server.worker_pids()
    for target in LEAVES:
        assert get(server, target) == pids[0]
    get(server, "/daemonic")
    if how == "reload":
        server.signal(signal.SIGHUP)
    elif how == "stop":
        server.signal(signal.SIGTERM)
    else:
        get(server, "/nothing")
    wait_for(lambda: not alive(pids[0]), "the end of the worker")
    for name in DONE:
        assert f"done: {name}\n" in server.log()
    assert kind != "async" or "done: default job" in server.log()
    # Of the processes that it had started none is left, daemonic or of a pool.
    wait_for(lambda: len(server.members()) in (0, 3), "the end of the worker's processes")
    assert "killing it" not in server.log()
    assert "is cut off" not in server.log()


def test_what_takes_too_long_is_named_and_cut(serve: Serve, kind: str) -> None:
    server = start(serve, kind, "--graceful-timeout", "2", "--timeout", "1")
    for target in ("/thread?60", "/executor?180", "/child?60", "/processes?60"):
        get(server, target)
    server.signal(signal.SIGTERM)
    assert server.wait_exit() == 0
    assert "thread left-alone" in server.log()
    assert "thread left-pool_0" in server.log()
    assert "process left-child" in server.log()
    assert "no heartbeat" not in server.log()
    assert "killing it" not in server.log()
    wait_for(lambda: not server.members(), "the end of the worker's processes")


def test_an_exit_function_that_lasts_is_cut(serve: Serve) -> None:
    server = start(serve, "sync", "--graceful-timeout", "1")
    get(server, "/lasting")
    server.signal(signal.SIGTERM)
    assert server.wait_exit() == 0
    assert "this is cut off: a function of atexit" in server.log()


@pytest.mark.parametrize("first", [0, signal.SIGTERM])
def test_a_quick_stop_does_not_wait_long(serve: Serve, kind: str, first: int) -> None:
    server = start(serve, kind, "--graceful-timeout", "600")
    get(server, "/thread?600")
    if first:
        server.signal(first)
        server.wait_log("is draining")
    server.signal(signal.SIGINT)
    assert server.wait_exit() == 0
    assert "thread left-alone" in server.log()
    assert "killing it" not in server.log()
