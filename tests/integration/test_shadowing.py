"""An application may have modules with the names of modules of the standard library."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from integration.raw import connect, read_all, request, status
from integration.server import Server

pytestmark = pytest.mark.slow

APP = """
def app(environ, start_response):
    body = environ["wsgi.input"].read()
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [body]
"""
NAMES = ("bisect", "heapq", "platform", "queue", "random", "shutil", "sysconfig", "tempfile")


@pytest.mark.parametrize("worker_class", ["sync", "thread", "async"])
def test_a_body_in_two_pieces(
    serve: Callable[..., Server], tmp_path: Path, worker_class: str
) -> None:
    """It is the first that needs a place of its own, long after the application was loaded."""
    # Not where the command is run: `python -m` has that on its path from the start.
    shop = tmp_path / "shop"
    shop.mkdir()
    for name in NAMES:
        (shop / f"{name}.py").write_text("raise ImportError('the application has its own')")
    (shop / "shop.py").write_text(APP)
    server = serve(
        *(f"{shop / 'shop.py'}:app", "-k", worker_class, "--max-requests", "100", "-w", "1")
    )
    workers = server.wait_workers(1)
    with connect(server) as client:
        whole = request("/", method="POST", body=b"in two pieces")
        client.sendall(whole[:-6])
        server.wait_workers(1)
        client.sendall(whole[-6:])
        answer = read_all(client)
    assert status(answer) == 200
    assert answer.endswith(b"in two pieces")
    assert server.worker_pids() == workers
