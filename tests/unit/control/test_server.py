"""The control socket's server over real sockets, with an epoll and a clock of the test's."""

from __future__ import annotations

import errno
import json
import os
import random
import select
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from servo.accept_errors import MAX_LOST_IN_A_ROW
from servo.control import protocol, server
from servo.control.protocol import Request
from servo.control.server import FULL, READ, Caller, ControlServer

Handler = Callable[[Caller, Request], None]


class Harness:
    """A server, its loop, and the requests that it has got."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.now = 100.0
        self.access: str | None = FULL
        self.asked: list[tuple[Caller, Request]] = []
        self.handle: Handler = lambda caller, request: caller.done({"was": request.command})
        self.epoll = select.epoll()
        sock = socket.socket(socket.AF_UNIX)
        sock.bind(path)
        sock.listen(server.BACKLOG)
        self.server = ControlServer(
            sock, self.epoll, lambda _uid: self.access, self._on_request, lambda: self.now
        )

    def _on_request(self, caller: Caller, request: Request) -> None:
        self.asked.append((caller, request))
        self.handle(caller, request)

    def turn(self) -> None:
        """Run the loop until no descriptor is ready."""
        while (ready := self.epoll.poll(0)) or self.server.wake_at() <= self.now:
            for fd, mask in ready:
                if self.server.owns(fd):
                    self.server.on_ready(fd, mask)
            self.server.turn()

    def connect(self) -> Client:
        client = Client(self.path, self)
        self.turn()
        return client


class Client:
    def __init__(self, path: str, harness: Harness) -> None:
        self.harness = harness
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.connect(path)
        self.sock.setblocking(False)

    def send(self, data: bytes) -> None:
        """Send all data, or as much as the server accepts."""
        while data:
            try:
                data = data[self.sock.send(data) :]
            except BlockingIOError:
                self.harness.turn()
            except OSError:
                break
        self.harness.turn()

    def ask(self, command: str, **args: Any) -> None:
        self.send(protocol.request_line(command, args))

    def read(self) -> list[Any]:
        """The received lines, and None at the end if the connection is closed."""
        data, ended = b"", False
        while True:
            self.harness.turn()
            try:
                piece = self.sock.recv(1 << 20)
            except BlockingIOError:
                break
            except ConnectionResetError:
                piece = b""
            if not piece:
                ended = True
                break
            data += piece
        lines: list[Any] = [json.loads(line) for line in data.splitlines() if line]
        return [*lines, None] if ended else lines


@pytest.fixture
def harness(tmp_path: Path) -> Iterator[Harness]:
    # A socket's path must be short, so it is relative to this directory.
    before = os.getcwd()
    os.chdir(tmp_path)
    harness = Harness("s")
    clients: list[Client] = []
    connect = harness.connect

    def connect_and_record() -> Client:
        clients.append(connect())
        return clients[-1]

    harness.connect = connect_and_record  # type: ignore[method-assign]
    yield harness
    for client in clients:
        client.sock.close()
    harness.server.close()
    harness.epoll.close()
    os.chdir(before)


def test_request_and_answer(harness: Harness) -> None:
    client = harness.connect()
    client.ask("status")
    assert client.read() == [{"ok": True, "result": {"was": "status"}}]
    client.ask("workers")
    assert client.read() == [{"ok": True, "result": {"was": "workers"}}]


def test_another_listening_socket(harness: Harness) -> None:
    """Open connections stay open."""
    old = harness.connect()
    before = harness.server._sock
    harness.server.unlisten()
    before.close()
    os.unlink(harness.path)
    sock = socket.socket(socket.AF_UNIX)
    sock.bind(harness.path)
    sock.listen(server.BACKLOG)
    harness.server.tick()
    harness.server.listen(sock)
    new = harness.connect()
    for client in (old, new):
        client.ask("status")
        assert client.read() == [{"ok": True, "result": {"was": "status"}}]


def test_a_request_in_pieces_and_several_at_once(harness: Harness) -> None:
    client = harness.connect()
    for byte in protocol.request_line("status", {}):
        client.send(bytes([byte]))
    client.send(protocol.request_line("workers", {}) + protocol.request_line("config", {}))
    assert [each["result"]["was"] for each in client.read()] == ["status", "workers", "config"]


def test_requests_wait_for_the_long_answer_before_them(harness: Harness) -> None:
    harness.handle = lambda caller, _request: None
    client = harness.connect()
    client.ask("reload")
    client.ask("status")
    assert [request.command for _, request in harness.asked] == ["reload"]
    caller, _ = harness.asked[0]
    caller.note({"step": 1})
    harness.handle = lambda caller, request: caller.done({"was": request.command})
    caller.done({"reloaded": True})
    assert client.read() == [
        {"note": {"step": 1}},
        {"ok": True, "result": {"reloaded": True}},
        {"ok": True, "result": {"was": "status"}},
    ]


def test_a_half_closed_client_gets_its_answer(harness: Harness) -> None:
    client = harness.connect()
    client.send(protocol.request_line("status", {}))
    client.sock.shutdown(socket.SHUT_WR)
    assert client.read() == [{"ok": True, "result": {"was": "status"}}, None]


def test_fire_and_forget(harness: Harness) -> None:
    client = Client(harness.path, harness)
    client.sock.sendall(protocol.request_line("stop", {}))
    client.sock.close()
    harness.turn()
    assert [request.command for _, request in harness.asked] == ["stop"]
    assert len(harness.server) == 0


def test_a_caller_that_closes_during_a_long_answer_is_forgotten(harness: Harness) -> None:
    harness.handle = lambda caller, _request: None
    client = harness.connect()
    client.ask("reload")
    client.sock.close()
    harness.turn()
    caller, _ = harness.asked[0]
    assert caller.gone
    assert len(harness.server) == 0
    caller.note({"to": "nobody"})
    caller.done({})


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"GET / HTTP/1.1\r\n\r\n", "not a line of JSON"),
        (random.Random(5).randbytes(16) + b"\n", "not a line of JSON"),
        (b'{"command": "halt"}\n', "no command"),
        (b"\n" * 5_000, "more than 32 requests"),
        (b"x" * 1_000_000, "longer than 65536 bytes"),
    ],
)
def test_an_invalid_request_is_answered_and_ends_the_connection(
    harness: Harness, data: bytes, message: str
) -> None:
    client = harness.connect()
    client.send(data)
    (answer, end) = client.read()
    assert answer["kind"] == "usage"
    assert message in answer["error"]
    assert end is None
    assert len(harness.server) == 0


def test_read_access_looks_and_changes_nothing(harness: Harness) -> None:
    harness.access = READ
    client = harness.connect()
    client.ask("status")
    client.ask("stop")
    looked, refused = client.read()
    assert looked["ok"]
    assert refused["kind"] == "denied"
    assert "read access" in refused["error"]
    assert [request.command for _, request in harness.asked] == ["status"]


def test_strangers_are_refused(harness: Harness) -> None:
    harness.access = None
    client = harness.connect()
    client.ask("status")
    answer, end = client.read()
    assert (answer["kind"], end) == ("denied", None)
    assert harness.asked == []
    assert len(harness.server) == 0


def test_the_kernel_identifies_the_user(harness: Harness) -> None:
    harness.connect().ask("status")
    caller, _ = harness.asked[0]
    assert caller.uid == os.getuid()
    assert server.peer_of(caller.sock) == (os.getuid(), os.getpid())


def test_silence_ends_by_itself(harness: Harness) -> None:
    silent, half = harness.connect(), harness.connect()
    half.send(b'{"command":')
    harness.now += server.IDLE_S - 1
    harness.server.tick()
    assert len(harness.server) == 2
    half.send(b'"sta')  # a part of a request doesn't restart the idle time
    harness.now += 2
    harness.server.tick()
    assert len(harness.server) == 0
    assert silent.read() == [None]


def test_signs_of_life_during_a_long_answer(harness: Harness) -> None:
    harness.handle = lambda caller, _request: None
    client = harness.connect()
    client.ask("reload")
    for _ in range(60):
        harness.now += 1
        harness.server.tick()
    harness.turn()
    assert client.sock.recv(1000) == b"\n" * 60
    assert len(harness.server) == 1


def test_a_follower_that_does_not_read_gets_the_number_of_lost_notes(harness: Harness) -> None:
    harness.handle = lambda caller, _request: None
    client = harness.connect()
    client.ask("events", follow=True)
    caller, _ = harness.asked[0]
    caller.following = True
    for number in range(20_000):
        caller.note({"number": number, "text": "x" * 200})
    assert len(caller.out) <= server.MAX_NOTES_BYTES + 1000
    assert not caller.gone
    first = client.read()
    caller.note({"number": 20_000})
    rest = client.read()
    lost = sum(each["lost"] for each in first + rest if "lost" in each)
    numbers = [each["note"]["number"] for each in first + rest if "note" in each]
    assert lost > 0
    assert len(numbers) + lost == 20_001
    assert numbers == sorted(numbers)
    assert numbers[-1] == 20_000


def test_a_caller_that_does_not_read_its_answer_is_dropped(harness: Harness) -> None:
    harness.handle = lambda caller, _request: caller.done({"text": "x" * 1_000_000})
    client = harness.connect()
    client.ask("config")
    assert len(harness.server) == 1
    harness.now += server.STALLED_S + 1
    harness.server.tick()
    assert len(harness.server) == 0


def test_all_that_waits_is_bounded(harness: Harness) -> None:
    harness.handle = lambda caller, _request: caller.done({"text": "x" * 1_500_000})
    for _ in range(60):
        harness.connect().ask("config")
    kept = sum(len(caller.out) for caller, _ in harness.asked if not caller.gone)
    assert 0 < kept <= server.MAX_TOTAL_BYTES
    harness.handle = lambda caller, request: caller.done({"was": request.command})
    good = harness.connect()
    good.ask("status")
    assert good.read() == [{"ok": True, "result": {"was": "status"}}]


@pytest.mark.parametrize("code", [errno.EMFILE, errno.EACCES, errno.EPERM])
def test_an_error_of_accept_that_lasts_makes_it_pause(
    harness: Harness,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    code: int,
) -> None:
    calls = 0

    def fail(_sock: socket.socket) -> None:
        nonlocal calls
        calls += 1
        raise OSError(code, "not now")

    client = Client(harness.path, harness)
    with client.sock:
        with monkeypatch.context() as patch:
            patch.setattr(socket.socket, "accept", fail)
            for _ in range(2):
                for _ in range(MAX_LOST_IN_A_ROW):
                    for fd, mask in harness.epoll.poll(0):
                        harness.server.on_ready(fd, mask)
                assert harness.epoll.poll(0) == []
                harness.server.tick()
        assert calls <= 2 * MAX_LOST_IN_A_ROW
        assert caplog.text.count("Can't accept control connections") == 1
        client.ask("status")
        assert client.read() == [{"ok": True, "result": {"was": "status"}}]


def test_a_caller_that_is_lost_while_it_is_accepted_holds_up_no_other(
    harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    accept = socket.socket.accept
    failures = [errno.ECONNABORTED, errno.EPERM]

    def fail_first(sock: socket.socket) -> tuple[socket.socket, Any]:
        if failures:
            raise OSError(failures.pop(), "the caller is lost")
        return accept(sock)

    monkeypatch.setattr(socket.socket, "accept", fail_first)
    client = harness.connect()
    client.ask("status")
    assert client.read() == [{"ok": True, "result": {"was": "status"}}]


def test_silent_connections_make_room(harness: Harness) -> None:
    for _ in range(server.MAX_CALLERS + 20):
        harness.connect()
    assert len(harness.server) == server.MAX_CALLERS
    client = harness.connect()
    client.ask("status")
    assert client.read() == [{"ok": True, "result": {"was": "status"}}]


def test_when_all_connections_are_busy_the_next_is_refused(harness: Harness) -> None:
    harness.handle = lambda caller, _request: None
    for _ in range(server.MAX_CALLERS):
        harness.connect().ask("reload")
    answer, end = harness.connect().read()
    assert "open already" in answer["error"]
    assert end is None


def test_close_leaves_nothing_registered(harness: Harness) -> None:
    harness.connect()
    harness.server.close()
    assert len(harness.server) == 0
    assert harness.epoll.poll(0) == []


# --- connections to children of the server --------------------------------------------------------


class Child(Client):
    """The other end of a pair that the server was given."""

    def __init__(self, harness: Harness, *commands: str) -> None:
        ours, self.sock = socket.socketpair()
        self.sock.setblocking(False)
        self.harness = harness
        self.caller = harness.server.attach(ours, "dashboard", frozenset(commands))


@pytest.fixture
def child(harness: Harness) -> Iterator[Child]:
    child = Child(harness, "status", "scale")
    yield child
    child.sock.close()


def test_a_child_may_use_the_named_commands_alone(harness: Harness, child: Child) -> None:
    harness.access = None  # no user may connect
    child.ask("status")
    child.ask("scale", to="2")
    assert child.read() == [
        {"ok": True, "result": {"was": "status"}},
        {"ok": True, "result": {"was": "scale"}},
    ]
    assert {caller.name for caller, _ in harness.asked} == {"dashboard"}
    child.ask("stop")
    (answer,) = child.read()
    assert answer["kind"] == protocol.DENIED
    assert answer["error"] == "the dashboard may not use the command stop"
    assert len(harness.asked) == 2


def test_a_child_is_neither_idle_nor_makes_room(harness: Harness, child: Child) -> None:
    child.ask("status")
    child.read()
    harness.now += 10 * server.IDLE_S
    harness.server.tick()
    for _ in range(server.MAX_CALLERS + 5):
        harness.connect()
    child.ask("status")
    assert child.read() == [{"ok": True, "result": {"was": "status"}}]


def test_a_child_that_is_detached_is_told_so(harness: Harness, child: Child) -> None:
    harness.server.detach(child.caller)
    assert child.read() == [None]
    assert len(harness.server) == 0
    harness.server.detach(child.caller)


def test_without_a_socket_children_are_served(harness: Harness) -> None:
    alone = ControlServer(
        None, harness.epoll, lambda _uid: None, harness._on_request, lambda: harness.now
    )
    ours, theirs = socket.socketpair()
    with theirs:
        alone.attach(ours, "dashboard", frozenset(["status"]))
        theirs.sendall(protocol.request_line("status", {}))
        for fd, mask in harness.epoll.poll(1.0):
            assert alone.owns(fd)
            alone.on_ready(fd, mask)
        alone.turn()
        alone.tick()
        assert b'"was":"status"' in theirs.recv(1000)
        alone.unlisten()
        alone.close()
        assert theirs.recv(1000) == b""
