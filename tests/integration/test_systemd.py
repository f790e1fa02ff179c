"""A server under systemd. The tests act as systemd: NOTIFY_SOCKET and WATCHDOG_USEC."""

from __future__ import annotations

import contextlib
import json
import os
import pwd
import re
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

from integration.conftest import Serve
from integration.server import (
    APPS,
    DEADLINE_S,
    REPOSITORY,
    Server,
    environment,
    free_port,
    wait_for,
)
from integration.test_arbiter_calls import may_trace
from integration.test_process import command_for_everybody

APP = f"{APPS / 'wsgi_app.py'}:app"


class Systemd:
    """The manager's end of the socket. It keeps every line, the senders' pids, and descriptors."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        self.sock.bind(str(path))
        self.lines: list[str] = []
        self.pids: set[int] = set()
        self.stored: dict[str, int] = {}

    def environ(self, **more: str) -> dict[str, str | None]:
        return {"NOTIFY_SOCKET": str(self.path), **more}

    def wait(self, condition: Callable[[list[str]], bool], since: int = 0) -> list[str]:
        """Receive until the lines after `since` satisfy a condition; return those."""
        end = time.monotonic() + DEADLINE_S
        while not condition(self.lines[since:]):
            self.sock.settimeout(max(end - time.monotonic(), 0.01))
            try:
                space = socket.CMSG_SPACE(12) + socket.CMSG_SPACE(4)
                data, control, _, _ = self.sock.recvmsg(4096, space)
            except TimeoutError:
                raise AssertionError(f"systemd has got only {self.lines[since:]}") from None
            lines = data.decode().split("\n")
            self.lines += lines
            self._take(lines, {kind: value for _, kind, value in control})
        return self.lines[since:]

    def _take(self, lines: list[str], control: dict[int, bytes]) -> None:
        self.pids.add(int.from_bytes(control[socket.SCM_CREDENTIALS][:4], sys.byteorder))
        (name,) = [line[7:] for line in lines if line.startswith("FDNAME=")] or [""]
        if "FDSTORE=1" in lines or "FDSTOREREMOVE=1" in lines:
            self.forget(name)
        if "FDSTORE=1" in lines:
            self.stored[name] = int.from_bytes(control[socket.SCM_RIGHTS][:4], sys.byteorder)

    def forget(self, name: str) -> None:
        if name in self.stored:
            os.close(self.stored.pop(name))

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
    for name in list(found.stored):
        found.forget(name)


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


# Pass stored descriptors on from number 3, as systemd does: LISTEN_PID is the process's own.
RESTART = """
import os, sys
names, numbers = sys.argv[1].split(":"), [int(each) for each in sys.argv[2].split(",")]
copies = [os.dup(each) for each in numbers]
for number in numbers:
    os.close(number)
copies = [os.dup2(each, 100 + place, False) for place, each in enumerate(copies)]
for place, each in enumerate(copies):
    os.dup2(each, 3 + place)
os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS=str(len(names)))
os.environ["LISTEN_FDNAMES"] = ":".join(names)
os.execv(sys.executable, [sys.executable, "-m", "servo", *sys.argv[3:]])
"""


def restarted(serve: Serve, systemd: Systemd, *args: str) -> Server:
    """Start a server as systemd does after a crash, with the sockets that it has kept."""
    names, numbers = list(systemd.stored), list(systemd.stored.values())
    before = len(systemd.lines)
    server = serve(
        APP,
        *args,
        env=systemd.environ(),
        pass_fds=tuple(numbers),
        command=(sys.executable, "-c", RESTART, ":".join(names), ",".join(map(str, numbers))),
        ready=0,
    )
    systemd.wait_line("READY=1", before)
    return server


def ask_later(address: str | tuple[str, int]) -> socket.socket:
    """A connection that a server has still to accept, with a request on it."""
    client = socket.socket(socket.AF_UNIX if isinstance(address, str) else socket.AF_INET)
    client.settimeout(DEADLINE_S)
    try:
        client.connect(address)
    except OSError:
        client.close()
        raise
    client.sendall(b"GET /echo HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    return client


def test_the_sockets_outlive_a_crash_of_the_arbiter(
    serve: Serve, systemd: Systemd, tmp_path: Path
) -> None:
    port, path = free_port(), str(tmp_path / "s")
    flags = ("-w", "2", "--bind", f"127.0.0.1:{port}", "--bind", f"unix:{path}")
    server = serve(APP, *flags, env=systemd.environ(), ready=0)
    systemd.wait_line("READY=1")
    status = os.stat(path)
    of_file = f"servo-listener-file-{status.st_dev}-{status.st_ino}"
    assert set(systemd.stored) == {f"servo-listener-127.0.0.1_{port}", of_file}

    server.signal(signal.SIGKILL)
    wait_for(lambda: not server.members(), "the end of the workers")
    with ask_later(("127.0.0.1", port)) as tcp, ask_later(path) as unix:
        again = restarted(serve, systemd, *flags)
        for client in (tcp, unix):
            assert client.recv(65536).startswith(b"HTTP/1.1 200")
    assert os.stat(path).st_ino == status.st_ino

    # An address that the configuration has lost is closed at the next start.
    again.signal(signal.SIGKILL)
    wait_for(lambda: not again.members(), "the end of the workers")
    third = restarted(serve, systemd, "-w", "1", "--bind", f"127.0.0.1:{port}")
    assert set(systemd.stored) == {f"servo-listener-127.0.0.1_{port}"}
    with pytest.raises(ConnectionRefusedError):
        ask_later(path)
    # A stop is no crash: clients are refused at once.
    before = len(systemd.lines)
    third.signal(signal.SIGTERM)
    systemd.wait_line("FDSTOREREMOVE=1", before)
    assert systemd.stored == {}
    assert third.wait_exit() == 0
    with pytest.raises(ConnectionRefusedError):
        ask_later(("127.0.0.1", port))


def test_the_queues_of_all_slots_at_a_crash(serve: Serve, systemd: Systemd) -> None:
    """With reuse_port, systemd keeps one socket. The workers answer what waits at the others."""
    port = free_port()
    flags = ("-k", "sync", "-w", "3", "--reuse-port", "--bind", f"127.0.0.1:{port}")
    server = serve(APP, *flags, env=systemd.environ(), ready=0)
    systemd.wait_line("READY=1")
    workers = server.wait_workers(3)
    assert set(systemd.stored) == {f"servo-listener-127.0.0.1_{port}"}
    for pid in workers:
        os.kill(pid, signal.SIGSTOP)
    with contextlib.ExitStack() as stack:
        # The kernel spreads these over the queues of all three slots.
        queued = [stack.enter_context(ask_later(("127.0.0.1", port))) for _ in range(30)]
        server.signal(signal.SIGKILL)
        for pid in workers:
            os.kill(pid, signal.SIGCONT)
        for client in queued:
            assert client.recv(65536).startswith(b"HTTP/1.1 200")
        wait_for(lambda: not server.members(), "the end of the workers")
        late = [stack.enter_context(ask_later(("127.0.0.1", port))) for _ in range(30)]
        restarted(serve, systemd, *flags)
        for client in late:
            assert client.recv(65536).startswith(b"HTTP/1.1 200")


def test_sockets_stay_stored_over_an_upgrade(serve: Serve, systemd: Systemd) -> None:
    server = started(serve, systemd)
    (name,) = systemd.stored
    before = len(systemd.lines)
    server.signal(signal.SIGUSR2)
    lines = systemd.wait(lambda lines: "RELOADING=1" in lines and "READY=1" in lines, before)
    assert "FDSTOREREMOVE=1" not in lines
    assert set(systemd.stored) == {name}
    # The new program knows what systemd keeps, and gives it back.
    server.signal(signal.SIGTERM)
    systemd.wait_line("FDSTOREREMOVE=1", before)
    assert systemd.stored == {}
    assert server.wait_exit() == 0
    assert systemd.pids == {server.pid}


@pytest.mark.skipif(os.geteuid() != 0, reason="only root makes directories in /run")
@pytest.mark.skipif(shutil.which("setpriv") is None, reason="setpriv is not installed")
def test_root_finds_a_service_of_another_user(serve: Serve, open_directory: Path) -> None:
    """As with User=nobody and RuntimeDirectory=servo-test, and no $XDG_RUNTIME_DIR."""
    nobody = pwd.getpwnam("nobody")
    become = ("setpriv", f"--reuid={nobody.pw_uid}", f"--regid={nobody.pw_gid}", "--clear-groups")
    shutil.copy(APPS / "wsgi_app.py", open_directory)
    command = (*become, *command_for_everybody(open_directory))
    place = Path(f"/run/servo-test-{os.getpid()}")
    place.mkdir()
    os.chown(place, nobody.pw_uid, nobody.pw_gid)
    try:
        server = serve(
            *("wsgi_app:app", "-w", "1", "--name", place.name),
            cwd=open_directory,
            log_directory=place,
            env={
                "PYTHONPATH": str(open_directory),
                "XDG_RUNTIME_DIR": None,
                "RUNTIME_DIRECTORY": str(place),
            },
            command=command,
        )
        arguments = ("servo.cli.ctl", "--name", place.name, "status", "--json")
        found = subprocess.run(
            [sys.executable, "-m", *arguments],
            env=environment({"XDG_RUNTIME_DIR": None}),
            capture_output=True,
            text=True,
            timeout=DEADLINE_S,
            check=False,
        )
        assert found.returncode == 0, found.stderr
        assert json.loads(found.stdout)["pid"] == server.pid
        assert server.stop() == 0
        assert [path.name for path in place.iterdir()] == [server.log_path.name]
    finally:
        shutil.rmtree(place)


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


def allowed_calls() -> set[str]:
    """The system calls of the hardened unit's SystemCallFilter=, as systemd expands its group."""
    done = subprocess.run(
        ["systemd-analyze", "syscall-filter"],
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        check=True,
    )
    groups: dict[str, set[str]] = {}
    for line in done.stdout.splitlines():
        word = line.strip()
        if line.startswith("@"):
            groups[word] = group = set()
        elif word and not word.startswith("#"):
            group.add(word)

    def expand(name: str) -> set[str]:
        return set().union(*(expand(e) if e.startswith("@") else {e} for e in groups[name]))

    return expand("@system-service") | expand("@default")


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="no systemd-analyze here")
@pytest.mark.skipif(not may_trace(), reason="this system does not allow strace")
@pytest.mark.parametrize("kind", ["wsgi", "asgi"])
def test_a_hardened_unit_allows_every_system_call(serve: Serve, tmp_path: Path, kind: str) -> None:
    """A call that the filter forbids fails with EPERM, perhaps only long after the start."""
    trace = tmp_path / "trace"
    name = f"traced-{os.getpid()}"
    server = serve(
        f"{APPS / kind}_app.py:app",
        *("-w", "2", "--name", name, "--preload", "--access-logfile", "access.log"),
        *("--metrics-bind", "unix:metrics.sock"),
        command=("strace", "-f", "-qq", "-o", str(trace), sys.executable, "-m", "servo"),
        ready=0,
    )
    server.wait_log("worker [12] .* is ready(.*\n)+.*worker [12] .* is ready")
    assert requests.get(server.url, timeout=DEADLINE_S).text == "ok"
    for command in (
        ("stack", "1"),
        ("workers",),
        ("reopen",),
        ("reload",),
        ("upgrade",),
        ("stop",),
    ):
        done = subprocess.run(
            [sys.executable, "-m", "servo.cli.ctl", "--name", name, *command],
            env=server.env,
            capture_output=True,
            text=True,
            timeout=2 * DEADLINE_S,
            check=False,
        )
        assert done.returncode == 0, done.stderr
    assert server.wait_exit() == 0
    calls = set(
        re.findall(r"^\d+ +([a-z_0-9]+)\(", trace.read_text(errors="replace"), re.MULTILINE)
    )
    assert {"execve", "accept4", "memfd_create"} <= calls
    assert calls - allowed_calls() == set()
