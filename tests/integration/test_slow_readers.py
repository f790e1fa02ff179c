"""Slow readers occupy no thread: their responses wait in memory, then on disk."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
from collections.abc import Callable, Iterator
from http.client import HTTPResponse, IncompleteRead
from pathlib import Path
from typing import Any

import pytest
from authority import Authority

from integration.load import read_response
from integration.raw import connect, read_all, request, reset
from integration.server import APPS, DEADLINE_S, Server, memory, wait_for

pytestmark = pytest.mark.slow

Serve = Callable[..., Server]

FLAGS = {
    "sync": ("-k", "sync", "-w", "1"),
    "thread": ("-k", "thread", "-w", "1", "--threads", "4"),
}
# Little of a response is then in the kernel.
RECEIVE_BUFFER = 131072


@pytest.fixture(params=FLAGS)
def worker_class(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def start(serve: Serve, worker_class: str, tmp_path: Path) -> Callable[..., Server]:
    def started(*args: str, **options: Any) -> Server:
        env = {"GATE": str(tmp_path / "gate"), "BIG_FILE": str(tmp_path / "big")}
        flags = FLAGS[worker_class]
        return serve(f"{APPS / 'wsgi_app.py'}:app", *flags, *args, env=env, **options)

    return started


def blocks(count: int) -> bytes:
    return b"".join(b"%015d\n" % number * 4096 for number in range(count))


def ask(server: Server, target: str) -> socket.socket:
    """A client that has asked and reads nothing."""
    client = connect(server, RECEIVE_BUFFER)
    client.sendall(request(target))
    return client


def body(client: socket.socket) -> bytes:
    response = HTTPResponse(client)
    response.begin()
    return response.read()


def served(server: Server, target: str = "/") -> bytes:
    with connect(server) as client:
        client.sendall(request(target))
        return read_response(client)[1]


@contextlib.contextmanager
def stalled(server: Server, count: int, target: str) -> Iterator[list[socket.socket]]:
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(ask(server, target)) for _ in range(count)]


def spooled(server: Server) -> int:
    """Bytes of files without a name that the worker holds, but for those in memory."""
    (pid,) = server.ready_pids()
    total = 0
    for name in os.listdir(f"/proc/{pid}/fd"):
        with contextlib.suppress(OSError):  # closed meanwhile
            link = os.readlink(f"/proc/{pid}/fd/{name}")
            if link.endswith(" (deleted)") and not link.startswith("/memfd:"):
                total += os.stat(f"/proc/{pid}/fd/{name}").st_size
    return total


@pytest.mark.parametrize("how", ["pieces", "sized", "write", "list"])
def test_others_are_served_while_many_read_nothing(
    start: Callable[..., Server], how: str, tmp_path: Path
) -> None:
    server = start("--tmp-upload-dir", str(tmp_path), "--send-timeout", "600")
    (pid,) = server.ready_pids()
    before = memory(pid)
    with stalled(server, 8, f"/pattern?how={how}&blocks=256") as clients:
        # Each thread has one of them by now, or has it done: a request takes its turn behind them.
        for _ in range(8):
            assert served(server) == b"ok"
        wait_for(lambda: spooled(server) > 8 << 20, "responses on disk")
        if how != "list":  # the app's own, until it is sent or on disk
            assert memory(pid) - before < 64 << 20
        expected = blocks(256)
        for client in clients:
            assert body(client) == expected
    wait_for(lambda: spooled(server) == 0, "files given back")


def test_what_was_produced_comes_though_the_app_is_silent(serve: Serve, tmp_path: Path) -> None:
    """As an event stream whose client lags and catches up."""
    server = serve(
        f"{APPS / 'wsgi_app.py'}:app", *FLAGS["thread"], env={"GATE": str(tmp_path / "gate")}
    )
    with ask(server, "/pattern?how=two&blocks=200") as client:
        assert served(server) == b"ok"
        response = HTTPResponse(client)
        response.begin()
        assert response.read(200 * 65536) == blocks(200)
        (tmp_path / "gate").touch()
        assert response.read() == b"the end"


LIMITS = {
    "no room on disk": ("--response-spool-limit", "0"),
    "little room on disk": ("--response-spool-limit", "1M"),
    "neither memory": ("--response-spool-limit", "0", "--response-buffer-size", "0"),
    "disk alone": ("--response-buffer-size", "0"),
}


@pytest.mark.parametrize("how", ["pieces", "list"])
@pytest.mark.parametrize("limits", LIMITS.values(), ids=LIMITS)
def test_past_the_limits_the_app_waits(
    start: Callable[..., Server], limits: tuple[str, ...], how: str
) -> None:
    server = start(*limits)
    with stalled(server, 2, f"/pattern?how={how}&blocks=160") as clients:
        for client in clients:
            assert body(client) == blocks(160)
    assert served(server) == b"ok"


def test_without_a_directory_the_app_waits(start: Callable[..., Server], tmp_path: Path) -> None:
    directory = tmp_path / "uploads"
    directory.mkdir()
    server = start("--tmp-upload-dir", str(directory))
    directory.rmdir()
    with ask(server, "/pattern?blocks=200") as client:
        server.wait_log("Can't spool a response: .*; the app has to wait for its client")
        assert body(client) == blocks(200)
    assert served(server) == b"ok"


def test_an_endless_response_is_held_at_the_limit(start: Callable[..., Server]) -> None:
    server = start("--response-spool-limit", "8M", "--send-timeout", "600")
    with ask(server, "/endless") as client:
        assert client.recv(1) == b"H"
        wait_for(lambda: spooled(server) >= 4 << 20, "a full buffer")
        for _ in range(200):  # what is read makes room for more
            assert client.recv(65536)
        reset(client)
    server.wait_log("the endless body has ended")
    assert served(server) == b"ok"
    wait_for(lambda: spooled(server) == 0, "files given back")


@pytest.mark.parametrize("spool", ["1G", "0"])
def test_a_client_that_reads_nothing_is_cut(start: Callable[..., Server], spool: str) -> None:
    server = start("--send-timeout", "1", "--response-spool-limit", spool)
    with ask(server, "/pattern?blocks=200") as client:
        wait_for(lambda: connections(server) == 0, "end of the connection")
        with pytest.raises((IncompleteRead, ConnectionError)):
            body(client)
    assert served(server) == b"ok"


def connections(server: Server) -> int:
    """How many TCP connections the worker has."""
    (pid,) = server.ready_pids()
    mine = set()
    for name in os.listdir(f"/proc/{pid}/fd"):
        with contextlib.suppress(OSError):  # closed meanwhile
            mine.add(os.readlink(f"/proc/{pid}/fd/{name}"))
    lines = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return sum(line[3] == "01" and f"socket:[{line[9]}]" in mine for line in lines)


def test_a_silent_app_whose_client_reads_nothing(serve: Serve, tmp_path: Path) -> None:
    """The client is cut while the thread is in the app, and the app is told when it goes on."""
    server = serve(
        f"{APPS / 'wsgi_app.py'}:app",
        *FLAGS["thread"],
        "--send-timeout",
        "1",
        env={"GATE": str(tmp_path / "gate")},
    )
    with ask(server, "/pattern?how=two&blocks=200") as client:
        wait_for(lambda: not sending(client), "end of the connection")
        with pytest.raises((IncompleteRead, ConnectionError)):
            body(client)
        (tmp_path / "gate").touch()
        server.wait_log("the second block is out")
    assert served(server) == b"ok"
    assert "Traceback" not in server.log()


def sending(client: socket.socket) -> bool:
    """Whether the server's end of the connection is still open for writing."""
    port = f":{client.getsockname()[1]:04X}"
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        _, _, remote, state, *_ = line.split()
        if remote.endswith(port):
            return state == "01"
    return False


def test_a_stop_delivers_what_waits(start: Callable[..., Server]) -> None:
    server = start("--graceful-timeout", "60")
    with ask(server, "/pattern?blocks=200") as client:
        assert served(server) == b"ok"
        server.signal(signal.SIGTERM)
        server.wait_log("[Ss]topping|[Ss]hut")
        assert body(client) == blocks(200)
    assert server.wait_exit() == 0


def test_a_quick_stop_does_not_wait(start: Callable[..., Server]) -> None:
    server = start("--graceful-timeout", "60")
    with ask(server, "/pattern?blocks=200"):
        assert served(server) == b"ok"
        server.stop(signal.SIGINT, deadline_s=DEADLINE_S / 2)


@pytest.mark.parametrize("how", ["pieces", "sized", "list"])
def test_over_tls(start: Callable[..., Server], how: str, tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    # Blocks then end anywhere in a record.
    server = start(*authority.issue("server").flags, "--response-buffer-size", "100001")
    context = authority.client_context()

    def secured() -> socket.socket:
        raw = connect(server, RECEIVE_BUFFER)
        return context.wrap_socket(raw, server_hostname="localhost")

    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(secured()) for _ in range(6)]
        for client in clients:
            client.sendall(request(f"/pattern?how={how}&blocks=160"))
        with secured() as other:
            other.sendall(request("/"))
            assert read_response(other)[1] == b"ok"
        for client in clients:
            assert body(client) == blocks(160)


def test_a_file_behind_a_slow_reader(start: Callable[..., Server], tmp_path: Path) -> None:
    (tmp_path / "big").write_bytes(blocks(200))
    server = start()
    with stalled(server, 8, "/file") as clients:
        assert served(server) == b"ok"
        for client in clients:
            assert body(client) == blocks(200)


def test_the_access_log_counts_what_was_produced(start: Callable[..., Server]) -> None:
    server = start("--access-logfile", "-", "--access-logformat", "%(s)s %(B)s %(U)s")
    with ask(server, "/pattern?blocks=200") as client:
        assert body(client) == blocks(200)
    server.wait_log(rf"^200 {200 * 65536} /pattern$")


def test_a_kept_connection_goes_on(start: Callable[..., Server]) -> None:
    server = start()
    with connect(server, RECEIVE_BUFFER) as client:
        for _ in range(3):
            client.sendall(request("/pattern?how=sized&blocks=200", close=False))
            assert body(client) == blocks(200)
        # Pipelined behind it.
        client.sendall(request("/pattern?how=sized&blocks=200", close=False) + request("/"))
        answers = read_all(client)
    assert answers.count(b"HTTP/1.1 200 OK\r\n") == 2
    assert blocks(200) + b"HTTP/1.1 200 OK\r\n" in answers
    assert answers.endswith(b"ok")
