"""`close` of a WSGI response runs after the response, and may take long or fail."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from http.client import HTTPConnection
from pathlib import Path

import pytest

from integration.server import APPS, DEADLINE_S, Server

pytestmark = pytest.mark.slow

Serve = Callable[..., Server]

FLAGS = {
    "sync": ("-k", "sync"),
    "thread": ("-k", "thread", "--threads", "4"),
    "async": ("-k", "async"),
}
SIZE = 8_000_000


@pytest.fixture(params=FLAGS.values(), ids=FLAGS)
def server(serve: Serve, tmp_path: Path, request: pytest.FixtureRequest) -> Server:
    big = tmp_path / "big"
    big.write_bytes(b"c" * SIZE)
    env = {"BIG_FILE": str(big), "GATE": str(tmp_path / "gate")}
    return serve(f"{APPS / 'wsgi_app.py'}:app", *request.param, env=env)


HOW = ["list", "pieces", "chunks", "file"]


class Client(HTTPConnection):
    """One kept connection: `http.client` would quietly make another."""

    def __init__(self, server: Server) -> None:
        super().__init__("127.0.0.1", server.port, timeout=DEADLINE_S)
        self.auto_open = 0
        self.connect()

    def get(self, target: str) -> bytes:
        self.request("GET", target)
        response = self.getresponse()
        assert response.status == 200
        return response.read()


@pytest.mark.parametrize("how", HOW)
def test_the_response_is_whole_before_close(server: Server, how: str, tmp_path: Path) -> None:
    size = SIZE if how == "file" else 100_000
    with contextlib.closing(Client(server)) as client:
        assert len(client.get(f"/closing?how={how}&bytes={size}")) == size  # `close` waits for us
        (tmp_path / "gate").touch()
        assert client.get("/") == b"ok"


def test_a_close_that_fails_is_logged_and_no_more(server: Server) -> None:
    with contextlib.closing(Client(server)) as client:
        client.get("/closing?how=file&fails=1")
        before = client.get("/descriptors")
        for how in HOW * 3:
            size = SIZE if how == "file" else 100_000
            assert len(client.get(f"/closing?how={how}&fails=1&bytes={size}")) == size
        assert client.get("/descriptors") == before
    server.wait_log(r"Error in close\(\) of the response to GET '/closing\?how=list")
    server.wait_log("close has failed, on purpose")
