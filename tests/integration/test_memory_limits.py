"""Workers that use too much memory are replaced, or killed, by a real server."""

from __future__ import annotations

import http.client
import re
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path

import pytest

from integration.load import EVERY_KIND, Load
from integration.server import Server, wait_for

pytestmark = pytest.mark.slow

Serve = Callable[..., Server]

# /?n grows the worker by n MB, of pages that are its own.
APP = """
kept = []

def app(environ, start_response):
    for _ in range(int(environ["QUERY_STRING"] or 0)):
        kept.append(b"x" * (1 << 20))
    start_response("200 OK", [("Content-Length", "2")])
    return [b"ok"]
"""


def get(server: Server, query: str = "") -> bytes:
    with urllib.request.urlopen(f"{server.url}/?{query}", timeout=30) as response:
        return bytes(response.read())


def test_a_worker_that_grows_is_replaced_without_a_lost_request(
    serve: Serve, tmp_path: Path
) -> None:
    (tmp_path / "grows.py").write_text(APP)
    server = serve("grows:app", "-w", "1", "--max-worker-memory", "150M", ready=1)
    old = server.worker_pids()
    get(server, "160")

    def replaced() -> bool:
        assert get(server) == b"ok"
        return not set(old) & set(server.worker_pids())

    wait_for(replaced, "a new worker")
    log = server.log()
    assert re.search(r"will be replaced: it uses too much memory \(\d+ MB; .* is 150 MB\)", log)
    ready = [match.start() for match in re.finditer("is ready after", log)]
    assert ready[1] < log.index("is draining: it uses too much memory")


def test_a_worker_above_the_hard_limit_is_killed_with_its_stacks(
    serve: Serve, tmp_path: Path
) -> None:
    (tmp_path / "grows.py").write_text(APP)
    server = serve("grows:app", "-w", "1", "--max-worker-memory-hard", "150M", ready=1)
    old = server.worker_pids()
    with pytest.raises((urllib.error.URLError, http.client.HTTPException, ConnectionError)):
        get(server, "3000")
    server.wait_log(r"it uses \d+ MB \(max_worker_memory_hard is 150 MB\); aborting it")
    server.wait_log(r'grows\.py", line \d+ in app')
    server.wait_replaced(old)
    assert get(server) == b"ok"


def test_a_limit_that_no_worker_can_keep_is_reported_once(serve: Serve, tmp_path: Path) -> None:
    (tmp_path / "grows.py").write_text(APP)
    server = serve("grows:app", "-w", "2", "--max-worker-memory", "5M", ready=2)
    server.wait_log(r"max_worker_memory \(5 MB\) has no effect: .* set at least \d+M")
    get(server, "20")
    assert server.stop() == 0
    log = server.log()
    assert log.count("is ready after") == 2
    assert log.count("has no effect") == 1


# Each answer tells which process has imported the app: the mold.
MOLDED = """
import os
IMPORTED_BY = os.getpid()
kept = []

def app(environ, start_response):
    for _ in range(int(environ["QUERY_STRING"] or 0)):
        kept.append(b"x" * (1 << 20))
    body = f"{os.getpid()} {IMPORTED_BY}".encode()
    start_response("200 OK", [("Content-Length", str(len(body)))])
    return [body]
"""


def molded(serve: Serve, tmp_path: Path, *flags: str) -> tuple[Server, int]:
    """A server with two workers of a mold, and the mold's pid."""
    (tmp_path / "grows.py").write_text(MOLDED)
    server = serve("grows:app", "-k", "sync", "-w", "2", "--preload", *flags, ready=2)
    _, mold = map(int, get(server).split())
    return server, mold


def test_a_worker_of_a_mold_that_grows_is_replaced_by_the_mold(
    serve: Serve, tmp_path: Path
) -> None:
    server, mold = molded(serve, tmp_path, "--max-worker-memory", "150M")
    large, _ = map(int, get(server, "160").split())
    with Load(server.port, EVERY_KIND) as load:
        server.wait_replaced([large], count=2)
        load.wait_answers(20)
    assert load.failures == []
    server.wait_log(rf"\(pid {large}\) ended .*: it uses too much memory")
    assert {body.split()[1] for body in load.bodies} == {str(mold).encode()}
    assert server.log().count("has imported the app") == 1


def test_a_worker_of_a_mold_above_the_hard_limit(serve: Serve, tmp_path: Path) -> None:
    server, mold = molded(serve, tmp_path, "--max-worker-memory-hard", "150M")
    old = server.wait_workers(2)
    with pytest.raises((urllib.error.URLError, http.client.HTTPException, ConnectionError)):
        get(server, "3000")
    server.wait_log(r"it uses \d+ MB \(max_worker_memory_hard is 150 MB\); aborting it")
    server.wait_log(r'grows\.py", line \d+ in app')
    wait_for(lambda: set(old) - set(server.worker_pids()), "the end of the large worker")
    server.wait_workers(2)
    assert {int(get(server).split()[1]) for _ in range(20)} == {mold}


def test_memory_that_the_mold_has_counts_once(serve: Serve, tmp_path: Path) -> None:
    """The limit is below what each worker would use alone, and no worker is replaced."""
    shared = "DATA = [bytes([n % 255 + 1]) * (1 << 20) for n in range(128)]\n"
    (tmp_path / "grows.py").write_text(shared + MOLDED)
    flags = ("-k", "sync", "-w", "4", "--preload", "--max-worker-memory", "120M")
    server = serve("grows:app", *flags, ready=4)
    old = server.wait_workers(4)
    large, _ = get(server, "100").split()
    server.wait_replaced([int(large)], count=4)
    log = server.log()
    assert "has no effect" not in log
    assert log.count("will be replaced: it uses too much memory") == 1
    assert set(old) - {int(large)} <= set(server.worker_pids())


def test_a_refork_of_workers_with_a_memory_limit(serve: Serve, tmp_path: Path) -> None:
    """What requests have loaded is shared after it, and counts once."""
    flags = ("--max-worker-memory", "150M", "--refork-after", "10")
    server, _ = molded(serve, tmp_path, *flags)
    old = server.wait_workers(2)
    get(server, "60")
    with Load(server.port, EVERY_KIND) as load:
        server.wait_log("requests.* finished after")
        new = server.wait_replaced(old)
        large = int(get(server, "160").split()[0])
        server.wait_replaced([large], count=2)
        load.wait_answers(20)
    assert large in new
    assert load.failures == []
