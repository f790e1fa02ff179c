"""A server under systemd, whose part the tests play: NOTIFY_SOCKET and WATCHDOG_USEC."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import requests

from .conftest import Serve
from .server import APPS, DEADLINE_S, REPOSITORY, Server

APP = f"{APPS / 'wsgi_app.py'}:app"


class Systemd:
    """The manager's end of the socket. It keeps every line, with the time and the sender's pid."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        self.sock.bind(str(path))
        self.lines: list[str] = []
        self.pids: set[int] = set()

    def environ(self, **more: str) -> dict[str, str | None]:
        return {"NOTIFY_SOCKET": str(self.path), **more}

    def wait(self, condition: Callable[[list[str]], bool], since: int = 0) -> list[str]:
        """Receive until the lines after `since` satisfy a condition; return those."""
        end = time.monotonic() + DEADLINE_S
        while not condition(self.lines[since:]):
            self.sock.settimeout(max(end - time.monotonic(), 0.01))
            try:
                data, control, _, _ = self.sock.recvmsg(4096, socket.CMSG_SPACE(12))
            except TimeoutError:
                raise AssertionError(f"systemd has got only {self.lines[since:]}") from None
            self.pids.add(int.from_bytes(control[0][2][:4], "little"))
            self.lines += data.decode().split("\n")
        return self.lines[since:]

    def wait_silence(self) -> None:
        """Receive what is there, until nothing comes for a second."""
        self.sock.settimeout(1.0)
        end = time.monotonic() + DEADLINE_S
        while time.monotonic() < end:
            try:
                self.sock.recv(4096)
            except TimeoutError:
                return
        raise AssertionError("datagrams still come")

    def wait_line(self, line: str, since: int = 0) -> list[str]:
        return self.wait(lambda lines: line in lines, since)


@pytest.fixture
def systemd(tmp_path: Path) -> Iterator[Systemd]:
    found = Systemd(tmp_path / "notify")
    yield found
    found.sock.close()


def started(serve: Serve, systemd: Systemd, *args: str, **environ: str) -> Server:
    server = serve(APP, "-w", "2", *args, env=systemd.environ(**environ), ready=0)
    systemd.wait_line("READY=1")
    return server


def test_the_life_of_a_service(serve: Serve, systemd: Systemd) -> None:
    server = started(serve, systemd)
    # It serves by now, with all of its workers.
    assert requests.get(server.url, timeout=DEADLINE_S).text == "ok"
    assert len(server.ready_pids()) == 2
    systemd.wait(lambda lines: any(line.startswith("STATUS=2 of 2") for line in lines))

    before = len(systemd.lines)
    asked_at = time.monotonic()
    server.signal(signal.SIGHUP)
    lines = systemd.wait_line("READY=1", before)
    assert "RELOADING=1" in lines
    (stamp,) = (line for line in lines if line.startswith("MONOTONIC_USEC="))
    assert asked_at * 1e6 <= int(stamp.partition("=")[2]) <= time.monotonic() * 1e6
    assert lines.index("RELOADING=1") < lines.index("READY=1")

    before = len(systemd.lines)
    server.signal(signal.SIGTERM)
    systemd.wait_line("STOPPING=1", before)
    assert server.wait_exit() == 0
    # With NotifyAccess=main systemd believes nobody else.
    assert systemd.pids == {server.pid}


def test_a_reload_that_fails_is_over_too(serve: Serve, systemd: Systemd, tmp_path: Path) -> None:
    config = tmp_path / "servo.conf.py"
    config.write_text("threads = 1\n")
    server = started(serve, systemd, "-c", str(config))
    config.write_text("raise RuntimeError('on purpose')\n")
    before = len(systemd.lines)
    server.signal(signal.SIGHUP)
    assert "RELOADING=1" in systemd.wait_line("READY=1", before)
    assert requests.get(server.url, timeout=DEADLINE_S).text == "ok"


def test_a_paused_server_answers_a_reload(serve: Serve, systemd: Systemd) -> None:
    """It starts its workers again then, which is no reload."""
    server = started(serve, systemd)
    before = len(systemd.lines)
    server.signal(signal.SIGWINCH)
    systemd.wait(lambda lines: any(line.startswith("STATUS=Paused") for line in lines), before)
    server.signal(signal.SIGHUP)
    assert "RELOADING=1" in systemd.wait_line("READY=1", before)


def test_a_drain_asks_for_time(serve: Serve, systemd: Systemd) -> None:
    server = started(serve, systemd, "-k", "thread")
    before = len(systemd.lines)
    with socket.create_connection(("127.0.0.1", server.port), timeout=DEADLINE_S) as client:
        client.sendall(b"GET /slow?s=2.5 HTTP/1.1\r\nHost: x\r\n\r\n")
        systemd.wait(lambda lines: any(line.endswith(" 1 open") for line in lines), before)
        server.signal(signal.SIGTERM)
        lines = systemd.wait(
            lambda lines: any(line.startswith("EXTEND_TIMEOUT_USEC=") for line in lines), before
        )
        assert "STOPPING=1" in lines
        assert client.recv(65536).startswith(b"HTTP/1.1 200")
    assert server.wait_exit() == 0


def test_the_watchdog_gets_signs_from_the_loop_only(serve: Serve, systemd: Systemd) -> None:
    server = started(serve, systemd, WATCHDOG_USEC="400000")
    systemd.wait(lambda lines: lines.count("WATCHDOG=1") > 3)
    os.kill(server.pid, signal.SIGSTOP)
    try:
        systemd.wait_silence()
    finally:
        os.kill(server.pid, signal.SIGCONT)
    before = len(systemd.lines)
    systemd.wait_line("WATCHDOG=1", before)


def test_the_example_units_are_valid(tmp_path: Path) -> None:
    analyze = shutil.which("systemd-analyze")
    if analyze is None:
        pytest.skip("no systemd-analyze here (Debian: apt-get install systemd)")
    for name in ("servo.service", "servo.socket"):
        text = (REPOSITORY / "examples" / name).read_text()
        # systemd looks whether the program is there.
        text = text.replace("/srv/app/.venv/bin/servo", sys.executable)
        (tmp_path / name).write_text(text)
    done = subprocess.run(
        [analyze, "verify", str(tmp_path / "servo.service"), str(tmp_path / "servo.socket")],
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
