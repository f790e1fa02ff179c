"""The dashboard's settings and sockets, and the arbiter's side of its process."""

from __future__ import annotations

import hashlib
import json
import os
import socket
import stat
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from servo.arbiter.processes.dashboard import (
    DashboardProcess,
    DashboardResources,
    check_dashboard,
)
from servo.errors import ConfigError
from servo.settings.sources import Settings

TOKEN = "0123456789abcdef"


def settings(**values: Any) -> Settings:
    return Settings({"app": "x:app", **values}, {})


def token_file(tmp_path: Path, text: str = TOKEN, mode: int = 0o600) -> str:
    path = tmp_path / "token"
    path.write_text(text)
    path.chmod(mode)
    return str(path)


Opened = Callable[..., DashboardResources]


@pytest.fixture
def opened() -> Iterator[Opened]:
    made: list[DashboardResources] = []

    def make(**values: Any) -> DashboardResources:
        made.append(DashboardResources(settings(**values)))
        return made[-1]

    yield make
    for each in made:
        each.close()


# --- settings -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "bind", ["127.0.0.1:9000", "localhost:9000", "[::1]:9000", "127.1.2.3:0", "unix:/run/x.sock"]
)
def test_local_addresses_need_no_token_file(bind: str) -> None:
    check_dashboard(settings(dashboard_bind=bind))


@pytest.mark.parametrize(
    "bind", ["0.0.0.0:9000", ":9000", "[::]:9000", "192.0.2.1:9000", "ops.example:9000"]
)
def test_other_addresses_do(bind: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="set dashboard_token_file to a file with a token, or"):
        check_dashboard(settings(dashboard_bind=bind))
    check_dashboard(settings(dashboard_bind=bind, dashboard_token_file=token_file(tmp_path)))


@pytest.mark.parametrize(
    ("bind", "why"),
    [
        *(("unix:@name", "expected HOST:PORT or unix:/path"), ("fd://3", "expected HOST:PORT")),
        *(("9000", "dashboard_bind '9000': write host:port"), ("a:b", "dashboard_bind 'a:b'")),
    ],
)
def test_other_forms_are_refused(bind: str, why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        check_dashboard(settings(dashboard_bind=bind))


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o610, 0o644])
def test_a_token_that_others_can_read_is_refused(tmp_path: Path, mode: int) -> None:
    file = token_file(tmp_path, mode=mode)
    with pytest.raises(ConfigError, match=r"other users have access to .*: run chmod 600"):
        check_dashboard(settings(dashboard_token_file=file))


@pytest.mark.parametrize("text", ["", "\n", "short\n", f"  {TOKEN[:-1]} \n{TOKEN}"])
def test_a_short_token_is_refused(tmp_path: Path, text: str) -> None:
    file = token_file(tmp_path, text)
    with pytest.raises(ConfigError, match="fewer than 16 characters"):
        check_dashboard(settings(dashboard_token_file=file))


def test_a_missing_token_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"can't read .*: No such file"):
        check_dashboard(settings(dashboard_token_file=str(tmp_path / "none")))


# --- sockets and files ----------------------------------------------------------------------------


def test_without_an_address_there_is_no_dashboard(
    opened: Opened, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "servo.error")
    none = opened()
    none.announce(settings(), secure=False)
    assert (none.listeners, none.digest, none.history) == ([], b"", -1)
    assert not caplog.text


def test_a_new_token_is_logged_once(opened: Opened, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "servo.error")
    made = opened(dashboard_bind="127.0.0.1:0")
    made.announce(settings(), secure=True)
    port = made.listeners[0].socket.getsockname()[1]
    (record,) = caplog.records
    start, _, token = record.getMessage().partition("?token=")
    assert start == f"The dashboard is at https://127.0.0.1:{port}/"
    assert len(token) >= 32
    assert hashlib.sha256(token.encode()).digest() == made.digest
    # What operators with read access to the control socket see.
    assert token not in record.__dict__["shown"]
    made.announce(settings(), secure=True)
    assert token not in caplog.records[-1].getMessage()
    assert token not in repr(vars(made))


def test_each_start_has_another_token(opened: Opened) -> None:
    bind = "127.0.0.1:0"
    assert opened(dashboard_bind=bind).digest != opened(dashboard_bind=bind).digest


def test_the_token_of_a_file_is_not_logged(
    opened: Opened, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "servo.error")
    values = {"dashboard_token_file": token_file(tmp_path, f" {TOKEN}\r\nmore")}
    made = opened(dashboard_bind="127.0.0.1:0", **values)
    made.announce(settings(**values), secure=False)
    assert made.digest == hashlib.sha256(TOKEN.encode()).digest()
    assert TOKEN not in caplog.text
    assert "its token in" in caplog.text


def test_only_the_owner_may_use_a_unix_socket(
    opened: Opened, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "servo.error")
    path = tmp_path / "dashboard.sock"
    made = opened(dashboard_bind=f"unix:{path}", umask=0)
    made.announce(settings(), secure=False)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert made.digest == b""
    assert f"The dashboard is at unix:{path}" in caplog.text
    made.close_in_child()
    assert path.exists()


def test_the_next_program_takes_everything_over(
    opened: Opened, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "servo.error")
    made = opened(dashboard_bind="127.0.0.1:0")
    os.write(made.history, b"kept")
    passed: list[int] = []
    state = json.loads(json.dumps(made.to_state(lambda fd: passed.append(fd) or fd)))
    assert len(passed) == 3
    again = DashboardResources.from_state(state, os.dup)
    assert again.digest == made.digest
    assert os.pread(again.history, 10, 0) == b"kept"
    assert again.listeners[0].socket.getsockname() == made.listeners[0].socket.getsockname()
    again.close()
    older = DashboardResources.from_state(None, lambda fd: fd)
    assert (older.listeners, older.history) == ([], -1)
    older.close()


# --- the process ----------------------------------------------------------------------------------


class Control:
    """The control service: keeps the connections that it gets."""

    def __init__(self) -> None:
        self.attached: list[tuple[socket.socket, str, frozenset[str]]] = []

    def attach(self, sock: socket.socket, name: str, commands: frozenset[str]) -> Any:
        self.attached.append((sock, name, commands))
        return sock

    def detach(self, caller: Any) -> None:
        caller.close()


class Process:
    """The arbiter's side, whose process only waits for the end of its connections."""

    def __init__(self, loop: Any, resources: DashboardResources, **values: Any) -> None:
        self.control = Control()
        self.tls: Any = None
        self.side = DashboardProcess(
            settings(**values), loop.table, resources, cast("Any", self.control), lambda: self.tls
        )

    def reap(self) -> None:
        code = os.waitstatus_to_exitcode(os.waitpid(self.side.pid, 0)[1])
        self.side.on_exit(code)


Started = Callable[..., Process]


@pytest.fixture
def started(loop: Any, opened: Opened, monkeypatch: pytest.MonkeyPatch) -> Iterator[Started]:
    def main(_self: object, links: list[socket.socket], _arbiter: int) -> int:
        return len([link.recv(1) for link in links])

    monkeypatch.setattr(DashboardProcess, "_main", main)
    made: list[Process] = []

    def start(bind: str | None = "127.0.0.1:0", **values: Any) -> Process:
        resources = opened(dashboard_bind=bind) if bind else opened()
        made.append(Process(loop, resources, **values))
        made[-1].side.tick(100.0)
        return made[-1]

    yield start
    for each in made:
        each.side.stop()


def test_without_an_address_no_process_runs(started: Started) -> None:
    assert started(None).side.pid == 0


@pytest.mark.parametrize("control", [False, True])
def test_the_process_may_use_few_commands(started: Started, control: bool) -> None:
    process = started(dashboard_control=control)
    assert [name for _, name, _ in process.control.attached] == ["dashboard"] * 3
    allowed = process.control.attached[0][2]
    assert {"status", "workers", "events"} <= allowed
    assert ("reload" in allowed) is ("stack" in allowed) is control
    assert not {"stop", "send", "call", "upgrade", "config", "logs", "report"} & allowed


def test_one_that_ends_is_followed_by_another(
    started: Started, caplog: pytest.LogCaptureFixture
) -> None:
    process = started()
    first = process.side.pid
    process.side.tick(100.0)
    assert process.side.pid == first
    os.kill(first, 9)
    process.reap()
    text = f"The dashboard process (pid {first}) ended by SIGKILL; another follows"
    assert text in caplog.text
    assert all(sock.fileno() < 0 for sock, *_ in process.control.attached)
    process.side.tick(time.monotonic())
    assert process.side.pid == 0
    process.side.tick(time.monotonic() + 100.0)
    assert process.side.pid not in (0, first)
    process.side.stop()
    process.side.tick(time.monotonic() + 200.0)
    assert process.side.pid == 0


def test_new_certificates_need_a_new_process(
    started: Started, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "servo.error")
    process = started()
    first = process.side.pid
    process.tls = SimpleNamespace(digest="new")
    process.side.tick(101.0)
    process.side.tick(102.0)
    process.reap()
    assert "is replaced: new certificates" in caplog.text
    assert "ended" not in caplog.text
    process.side.tick(102.0)
    second = process.side.pid
    assert second not in (0, first)
    process.side.tick(103.0)
    assert process.side.pid == second


def test_a_unix_socket_has_no_certificates(started: Started, tmp_path: Path) -> None:
    process = started(f"unix:{tmp_path}/d.sock")
    first = process.side.pid
    process.tls = SimpleNamespace(digest="new")
    process.side.tick(101.0)
    assert process.side.pid == first
    assert all(sock.fileno() >= 0 for sock, *_ in process.control.attached)


def test_a_failed_fork_is_tried_again(
    started: Started, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError("no memory")

    with monkeypatch.context() as patch:
        patch.setattr("servo.arbiter.processes.spawn.fork", fail)
        process = started()
    assert process.side.pid == 0
    assert "The dashboard process can't be forked: no memory" in caplog.text
    assert not process.control.attached
    assert not process.side._ends
    process.side.tick(200.0)
    assert process.side.pid
