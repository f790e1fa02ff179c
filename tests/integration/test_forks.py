"""Processes that an application forks: none of them acts as the worker, or runs its loop."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING

import pytest

from integration import raw
from integration.server import APPS, Server, wait_for

if TYPE_CHECKING:
    from integration.conftest import Serve

pytestmark = pytest.mark.slow

ALL = {
    "sync": ("wsgi", "-k", "sync"),
    "thread": ("wsgi", "-k", "thread", "--threads", "4"),
    "asyncio": ("asgi", "-k", "async", "--loop", "asyncio"),
    "uvloop": ("asgi", "-k", "async", "--loop", "uvloop"),
    "wsgi_in_async": ("wsgi", "-k", "async"),
}

BOTH = (
    "/sleeps",
    "/returns",
    "/raises",
    "/yields",
    "/in-a-task",
    "/in-a-callback",
    "/removes",
)


def start(serve: Serve, name: str, *more: str) -> Server:
    if name == "uvloop":
        pytest.importorskip("uvloop")
    app, *flags = ALL[name]
    return serve(f"{APPS / 'forking.py'}:{app}", *flags, "-w", "1", *more)


def get(server: Server, path: str) -> str:
    answer = raw.talk(server, raw.request(path))
    assert raw.status(answer) == 200, answer
    return answer.partition(b"\r\n\r\n")[2].decode()


@pytest.mark.parametrize("name", ALL)
def test_children_are_no_workers(serve: Serve, name: str) -> None:
    server = start(serve, name)
    pids = server.worker_pids()
    assert get(server, "/terminate") == str({-signal.SIGTERM})
    assert get(server, "/pools") == "done"
    assert get(server, "/inherits") == str((-1, [repr(signal.SIG_DFL)]))
    assert get(server, "/preexec") == str(-signal.SIGTERM)
    # Python itself ignores SIGPIPE and SIGXFSZ, and starts programs without that. Signals over 31
    # are left out: a container may have them ignored from its start.
    assert int(get(server, "/ignores"), 16) & 0x7FFF_FFFF == 0
    assert get(server, "/own-handler") == "3"
    assert get(server, "/alone") == str(pids[0])
    assert server.worker_pids() == pids
    assert "will be replaced" not in server.log()
    assert server.stop() == 0


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_a_coroutine_that_forks_and_goes_on_in_both(serve: Serve, loop: str) -> None:
    server = start(serve, loop)
    pids = server.worker_pids()
    for path in (
        "/sleeps",
        "/returns",
        "/raises",
        "/yields",
        "/in-a-task",
        "/in-a-callback",
        "/removes",
    ):
        mark = server.mark()
        # Beside others, whose sockets the child must not read.
        with raw.many(server, 3) as others:
            assert get(server, path).endswith("0")
            for other in others:
                other.sendall(raw.request("/alone"))
                assert raw.read_all(other).endswith(str(pids[0]).encode())
        server.wait_log("forked, has returned to the worker's own code", mark)
    answer = raw.talk(server, raw.request("/streams"))
    assert answer.count(b"first") == 1
    assert answer.endswith(b"1\r\n0\r\n0\r\n\r\n")
    assert get(server, "/in-a-thread") == "0"
    assert server.worker_pids() == pids
    # The arbiter, its guard, and the worker.
    wait_for(lambda: len(server.members()) == 3, "the end of every child")
    assert server.stop() == 0


@pytest.mark.parametrize("name", ["sync", "thread"])
def test_a_body_that_forks_in_its_middle(serve: Serve, name: str) -> None:
    server = start(serve, name)
    answer = raw.talk(server, raw.request("/stream"))
    assert answer.count(b"first") == answer.count(b"second") == 1
    assert answer.endswith(b"1\r\n0\r\n0\r\n\r\n")
    wait_for(lambda: len(server.members()) == 3, "the end of the child")
    assert get(server, "/alone") == str(server.worker_pids()[0])


@pytest.mark.parametrize("name", ALL)
def test_a_job_of_an_executor_that_forks(serve: Serve, name: str) -> None:
    server = start(serve, name)
    assert get(server, "/in-executor") == "0"
    server.wait_log("forked, has returned to the worker's own code")
    assert get(server, "/alone") == str(server.worker_pids()[0])


@pytest.mark.parametrize("name", ALL)
def test_the_worker_handles_its_own_signals_still(serve: Serve, name: str) -> None:
    server = start(serve, name)
    pids = server.worker_pids()
    get(server, "/terminate")
    server.signal_worker(pids[0], signal.SIGINT)
    server.signal_worker(pids[0], signal.SIGHUP)
    assert get(server, "/alone") == str(pids[0])
    server.signal_worker(pids[0], signal.SIGTERM)
    server.wait_replaced(pids)
