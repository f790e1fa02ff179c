"""Each request takes the same steps: one table of situations, for every class and protocol.

The tests compare the response, the arguments of `pre_request` and `post_request`, the line of the
access log, and the counters.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from integration import raw
from integration.conftest import Serve
from integration.h2_client import Client
from integration.load import read_response
from integration.server import APPS, DEADLINE_S, Server, wait_for
from integration.turmoil import connect as control
from integration.websocket import KEY

pytestmark = pytest.mark.slow

CONFIG = """
import os

def pre_request(worker, req):
    os.write(1, f"PRE {req.remote_addr} {req.path}\\n".encode())
    if req.path == "/raises":
        raise RuntimeError("the hook's own")

def post_request(worker, req, environ, resp):
    os.write(1, f"POST {req.remote_addr} {req.path} {resp.status_code}\\n".encode())
"""

Fields = tuple[tuple[str, str], ...]

WEBSOCKET: Fields = (
    ("Upgrade", "websocket"),
    ("Connection", "Upgrade"),
    ("Sec-WebSocket-Key", KEY),
    ("Sec-WebSocket-Version", "13"),
)


def over_http1(*more: tuple[str, str]) -> Callable[..., int]:
    def ask(server: Server, path: str, fields: Fields, leave: bool) -> int:
        lines = [f"{name}: {value}" for name, value in (*more, *fields)]
        with raw.connect(server) as client:
            client.sendall(raw.request(path, *lines, close=not more))
            if leave:
                server.wait_log("waiting", deadline_s=DEADLINE_S)
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
                return 0
            head, _ = (client.recv(4096), b"") if more else read_response(client)
            return raw.status(head)

    return ask


def over_http2(*pseudo: tuple[str, str]) -> Callable[..., int]:
    def ask(server: Server, path: str, fields: Fields, leave: bool) -> int:
        first = pseudo or ((":method", "GET"),)
        others = [(":scheme", "http"), (":authority", "localhost"), (":path", path)]
        with Client(server.port) as client:
            client.wait(lambda: client.settings, "the server's settings")
            lower = [(name.lower(), value) for name, value in fields]
            number = client.ask_with([*first, *others, *lower], end=not pseudo)
            if leave:
                server.wait_log("waiting", deadline_s=DEADLINE_S)
                return 0
            answer = client.answers[number]
            client.wait(lambda: answer.status, "an answer")
            return answer.status

    return ask


EXTENDED = over_http2((":method", "CONNECT"), (":protocol", "websocket"))


@dataclass(frozen=True)
class Way:
    """How a request comes to the application; `ok`: the status of a good answer."""

    flags: tuple[str, ...]
    ask: Callable[..., int]
    ok: int = 200
    counted: int = 200
    extra: Fields = field(default=())


H2 = ("-k", "async", "--http2-cleartext", "prior-knowledge", "--proxy-protocol", "off")
WAYS = {
    "sync": Way(("-k", "sync"), over_http1()),
    "thread": Way(("-k", "thread", "--threads", "4"), over_http1()),
    "async": Way(("-k", "async"), over_http1()),
    "h2": Way(H2, over_http2()),
    "websocket": Way(("-k", "async"), over_http1(*WEBSOCKET), ok=101, counted=101),
    "websocket_h2": Way(H2, EXTENDED, extra=(("sec-websocket-version", "13"),)),
}


@dataclass(frozen=True)
class Situation:
    """A request, and what must become of it. `status` None: as in `Way.ok`.

    remote    the client's address as hooks and the log get it
    hooked    whether hooks are called
    """

    path: str
    fields: Fields = ()
    status: int | None = None
    remote: str = "127.0.0.1"
    hooked: bool = True


FORWARDED = (("X-Forwarded-For", "192.0.2.7"), ("X-Forwarded-Proto", "https"))
SITUATIONS = {
    "plain": Situation("/plain"),
    "forwarded": Situation("/forwarded", FORWARDED, remote="192.0.2.7"),
    "contradictory": Situation(
        "/contradictory",
        (*FORWARDED, ("Forwarded", "for=192.0.2.8;proto=http")),
        status=400,
        hooked=False,
    ),
    "underscore": Situation("/underscore", (("X_Name", "1"),), status=400, hooked=False),
    "hook_raises": Situation("/raises"),
}


def start(serve: Serve, tmp_path: Path, way: Way, *flags: str) -> Server:
    (tmp_path / "servo.conf.py").write_text(CONFIG)
    interface = "wsgi" if way.flags[1] in ("sync", "thread") else "asgi"
    log = ("--access-logfile", "access.log", "--access-logformat", "LINE %(h)s %(U)s %(s)s")
    return serve(
        f"{APPS / 'admitted.py'}:{interface}",
        *way.flags,
        *("-c", "servo.conf.py", "-w", "1", "--header-map", "refuse"),
        *log,
        *flags,
    )


def statuses(server: Server) -> dict[str, int]:
    with control(server) as client:
        found: dict[str, int] = client.request("status")["statuses"]
    return found


def lines(server: Server, path: str) -> list[str]:
    """Of hooks, and the access log."""
    text = (server.cwd / "access.log").read_text() + server.log()
    found = [line for line in text.splitlines() if line.startswith(("PRE ", "POST ", "LINE "))]
    return sorted(line for line in found if f" {path}" in line)


def told(server: Server, path: str, count: int) -> list[str]:
    """The same, once there are so many."""
    wait_for(lambda: len(lines(server, path)) >= count, f"what is told of {path}")
    return lines(server, path)


@pytest.mark.parametrize("name", WAYS)
def test_what_is_seen_of_a_request(serve: Serve, tmp_path: Path, name: str) -> None:
    way = WAYS[name]
    server = start(serve, tmp_path, way)
    seen: dict[str, Any] = {}
    wanted: dict[str, Any] = {}
    counts = {"4xx": 0, "good": 0}
    for title, situation in SITUATIONS.items():
        path = situation.path
        answered = way.ask(server, path, (*way.extra, *situation.fields), False)
        status = situation.status or way.ok
        logged = situation.status or way.counted
        expected = [f"LINE {situation.remote} {path} {logged}"]
        if situation.hooked:
            expected += [
                f"POST {situation.remote} {path} {logged}",
                f"PRE {situation.remote} {path}",
            ]
        counts["4xx" if status == 400 else "good"] += 1
        seen[title] = answered, told(server, path, len(expected))
        wanted[title] = status, expected
    assert seen == wanted
    good = "1xx" if way.counted == 101 else "2xx"
    wait_for(lambda: statuses(server)["4xx"] == counts["4xx"], "the counts")
    assert statuses(server)[good] == counts["good"]
    assert server.log().count("Error in the pre_request hook") == 1


@pytest.mark.parametrize("name", [name for name in WAYS if name != "sync"])
def test_over_the_limit(serve: Serve, tmp_path: Path, name: str) -> None:
    """Over limit_concurrency: refused, and no hook sees it. (`sync` has one in flight at most.)"""
    way = WAYS[name]
    server = start(serve, tmp_path, way, "--limit-concurrency", "1")
    with ExitStack() as stack:
        other = stack.enter_context(raw.connect(server)) if "h2" not in name else None
        if other is not None:
            other.sendall(raw.request("/wait"))
        else:
            busy = stack.enter_context(Client(server.port))
            busy.ask("/wait")
        server.wait_log("waiting", deadline_s=DEADLINE_S)
        assert way.ask(server, "/refused", way.extra, False) == 503
    wait_for(lambda: lines(server, "/refused"), "a line")
    assert lines(server, "/refused") == ["LINE 127.0.0.1 /refused 503"]
    assert statuses(server)["5xx"] == 1
    wait_for(lambda: len(lines(server, "/wait")) == 3, "the end of the other")


@pytest.mark.parametrize("name", ["async", "h2"])
def test_a_client_that_leaves(serve: Serve, tmp_path: Path, name: str) -> None:
    """`post_request` is called all the same; the log has nginx's code."""
    way = WAYS[name]
    server = start(serve, tmp_path, way)
    assert way.ask(server, "/wait", (), True) == 0
    wait_for(lambda: len(lines(server, "/wait")) == 3, "all that is told of it")
    assert lines(server, "/wait") == [
        "LINE 127.0.0.1 /wait 499",
        "POST 127.0.0.1 /wait 0",
        "PRE 127.0.0.1 /wait",
    ]


def test_an_upgrade_to_http2_is_admitted_once(serve: Serve, tmp_path: Path) -> None:
    way = Way(("-k", "async", "--http2-cleartext", "both"), over_http1())
    server = start(serve, tmp_path, way)
    upgrade = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n"
    with raw.connect(server) as client:
        client.sendall(b"GET /upgraded HTTP/1.1\r\nHost: localhost\r\n%b\r\n" % upgrade)
        assert raw.status(client.recv(4096)) == 101
        wait_for(lambda: len(lines(server, "/upgraded")) == 3, "all that is told of it")
    assert lines(server, "/upgraded") == [
        "LINE 127.0.0.1 /upgraded 200",
        "POST 127.0.0.1 /upgraded 200",
        "PRE 127.0.0.1 /upgraded",
    ]


@pytest.mark.parametrize("name", ["websocket", "websocket_h2"])
def test_a_bad_handshake(serve: Serve, tmp_path: Path, name: str) -> None:
    """As malformed as a bad request line: no hook sees it."""
    server = start(serve, tmp_path, WAYS[name])
    if name == "websocket":
        fields = [item for item in WEBSOCKET if item[0] != "Sec-WebSocket-Key"]
        assert over_http1(*fields)(server, "/bad", (), False) == 400
    else:
        assert EXTENDED(server, "/bad", (("sec-websocket-version", "7"),), False) == 426
    wait_for(lambda: lines(server, "/bad"), "a line")
    assert [line.rpartition(" ")[0] for line in lines(server, "/bad")] == ["LINE 127.0.0.1 /bad"]
