"""The environ and scope of apps with an unusual address or mount point."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from integration.conftest import class_args
from integration.load import read_response
from integration.raw import connect, status, talk
from integration.server import APPS, DEADLINE_S, Server, run_servo, wait_for
from integration.turmoil import connect as control

pytestmark = pytest.mark.slow

Serve = Callable[..., Server]

WSGI = {
    "sync": ("-k", "sync"),
    "thread": ("-k", "thread"),
    "async": ("-k", "async"),
}


def ask(client: socket.socket, raw: bytes) -> dict[str, Any]:
    with client:
        client.settimeout(DEADLINE_S)
        client.sendall(raw)
        head, body = read_response(client)
    assert status(head) == 200
    found: dict[str, Any] = json.loads(body)
    return found


@pytest.mark.parametrize("flags", WSGI.values(), ids=WSGI)
def test_a_unix_socket_is_named_by_host(serve: Serve, tmp_path: Path, flags: tuple[str]) -> None:
    server = serve(
        f"{APPS / 'wsgi_app.py'}:app", *flags, "--bind", "unix:s.sock", "--proxy-protocol"
    )

    def named(raw: bytes, preface: bytes) -> tuple[str, str]:
        client = socket.socket(socket.AF_UNIX)
        client.connect(str(server.cwd / "s.sock"))
        environ = ask(client, preface + raw)
        return environ["SERVER_NAME"], environ["SERVER_PORT"]

    local = b"PROXY UNKNOWN\r\n"
    get = b"GET /describe HTTP/1.1\r\nHost: "
    assert named(get + b"example.com\r\n\r\n", local) == ("example.com", "80")
    assert named(get + b"example.com:99\r\n\r\n", local) == ("example.com", "99")
    https = b"example.com\r\nX-Forwarded-Proto: https\r\n\r\n"
    assert named(get + https, local) == ("example.com", "443")
    assert named(b"GET /describe HTTP/1.0\r\n\r\n", local) == ("localhost", "80")
    # A proxy that says where the client had connected to.
    tcp = b"PROXY TCP4 192.0.2.1 192.0.2.9 4000 8443\r\n"
    assert named(get + b"example.com\r\n\r\n", tcp) == ("192.0.2.9", "8443")


@pytest.mark.parametrize("root_path", ["/café", "/caf%C3%A9"])
def test_a_mount_point_beyond_ascii(serve: Serve, worker_class: str, root_path: str) -> None:
    server = serve(*class_args(worker_class), "--root-path", root_path)
    found = [
        ask(connect(server), b"GET %b HTTP/1.1\r\nHost: h\r\n\r\n" % target)
        for target in (b"/caf%C3%A9/describe", b"/caf%c3%a9/describe")
    ]
    if worker_class == "async":
        assert [v["root_path"] for v in found] == ["/café"] * 2
        assert [v["path"] for v in found] == ["/café/describe"] * 2
        assert [v["raw_path"] for v in found] == ["/caf%C3%A9/describe", "/caf%c3%a9/describe"]
    else:
        assert [v["SCRIPT_NAME"] for v in found] == ["/caf\xc3\xa9"] * 2
        assert [v["PATH_INFO"] for v in found] == ["/describe"] * 2


def test_what_is_no_mount_point_is_refused(tmp_path: Path) -> None:
    result = run_servo(f"{APPS / 'wsgi_app.py'}:app", "--root-path", "/a?b", cwd=tmp_path)
    assert result.returncode == 2
    assert "root_path: '/a?b' is not valid" in result.stderr


@pytest.mark.parametrize("flags", WSGI.values(), ids=WSGI)
def test_options_about_the_server_and_a_proxy_field(serve: Serve, flags: tuple[str]) -> None:
    server = serve(f"{APPS / 'validated.py'}:app", *flags)
    answer = talk(server, b"OPTIONS * HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n")
    assert status(answer) == 404  # the app's own: the validator would have made it a 500
    server = serve(f"{APPS / 'wsgi_app.py'}:app", *flags)
    client = connect(server)
    with client:
        for name in (b"Proxy", b"proxy", b"PROXY"):
            client.sendall(b"GET /describe HTTP/1.1\r\nHost: h\r\n%b: evil\r\n\r\n" % name)
            head, body = read_response(client)
            assert status(head) == 200
            assert "HTTP_PROXY" not in json.loads(body)


def test_an_app_may_take_apart_what_it_was_given(serve: Serve, worker_class: str) -> None:
    """The worker lives on, and has accounted for each request."""
    app = "asgi" if worker_class == "async" else "wsgi"
    form = "%(q)s %({x_odd}e)s %({content-length}o)s %(a)s"
    log = ("--access-logfile", "access.log", "--access-logformat", form)
    server = serve(f"{APPS / 'careless.py'}:{app}", "-k", worker_class, *log, "-w", "1")
    deeds = ("nothing", "removed", "cleared", "replaced", "textless", "headers", "nothing")
    pids = set()
    for deed in deeds:
        with connect(server) as client:
            client.sendall(b"GET /?%b HTTP/1.1\r\nHost: h\r\n\r\n" % deed.encode())
            head, body = read_response(client)
        assert status(head) == 200
        pids.add(int(body))
    assert pids == set(server.worker_pids())
    with control(server) as client:
        wait_for(lambda: not client.request("status")["in_flight"], "the end of all requests")
    assert server.wait_log("Can't write the access-log line of GET /\\?")
    first = f"nothing - {len(body)} -\nremoved "
    wait_for(
        lambda: (server.cwd / "access.log").read_text().startswith(first),
        "the lines that can be made",
    )


@pytest.mark.parametrize(
    "flags", [*WSGI.values(), ("-k", "sync", "--preload")], ids=[*WSGI, "preload"]
)
def test_each_worker_finds_its_slot_in_the_environment(serve: Serve, flags: tuple[str]) -> None:
    app = f"{APPS / 'wsgi_app.py'}:app"
    server = serve(app, *flags, "-w", "2", ready=2)

    def environments() -> dict[int, dict[str, str]]:
        with control(server) as client:
            slots = {w["pid"]: w["slot"] for w in client.request("workers")["workers"]}
        found: dict[int, dict[str, str]] = {}

        def both_seen() -> bool:
            request = b"GET /describe HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n"
            values = ask(connect(server), request)
            found[slots[values["pid"]]] = values["env"]
            return len(found) == 2

        wait_for(both_seen, "a response of each worker")
        return found

    found = environments()
    assert {slot: env["SERVO_SLOT"] for slot, env in found.items()} == {1: "1", 2: "2"}
    # A server that the app starts has that environment, too.
    env = {name: value for name, value in found[2].items() if name.startswith("SERVO_")}
    result = run_servo(app, "--check-config", cwd=server.cwd, env={**env})
    assert (result.returncode, result.stderr) == (0, ""), result.stderr
    old = server.worker_pids()
    with control(server) as client:
        client.request("restart-worker", {"slot": 2})
    wait_for(lambda: len(set(server.worker_pids()) - set(old)) == 1, "the successor")
    server.wait_workers(2)
    assert environments()[2]["SERVO_SLOT"] == "2"
