"""Upgrades in place: Servo and its interpreter are replaced in the same process, under load."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
import requests
from authority import Authority

from integration import releases
from integration.conftest import CLASSES
from integration.load import EVERY_KIND, Load
from integration.server import Server, alive, environment, free_port, processes, wait_for
from integration.test_metrics import Metrics
from integration.test_process import needs_root
from integration.test_sockets import SYSTEMD
from integration.test_systemd import Systemd
from integration.tls_client import TLSLoad
from servo.control.client import ControlClient

pytestmark = pytest.mark.slow

Serve = Callable[..., Server]


def start(
    serve: Serve, tmp_path: Path, worker_class: str = "sync", *args: str, **options: Any
) -> Server:
    releases.deploy(tmp_path, releases.good(worker_class, "1"))
    control = ("--control-socket", str(tmp_path / "control"))
    flags = CLASSES[worker_class][1]
    return serve("release:app", *flags, "-w", "2", *control, *args, ready=2, **options)


def ask(tmp_path: Path, command: str, **args: Any) -> dict[str, Any]:
    with ControlClient(str(tmp_path / "control")) as client:
        return client.request(command, args)


def servoctl(tmp_path: Path, *args: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "servo.cli.ctl", "--socket", str(tmp_path / "control")]
    return subprocess.run(
        [*command, *args],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def upgrade(server: Server) -> list[int]:
    """USR2, up to the end of the reload; the new workers."""
    old, mark = server.worker_pids(), server.mark()
    server.signal(signal.SIGUSR2)
    server.wait_log("upgraded: Servo .* has taken the place of Servo", mark)
    return server.wait_replaced(old)


def descriptors(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))


# --- the same interpreter -------------------------------------------------------------------------


def test_under_load_nothing_is_lost(serve: Serve, tmp_path: Path, worker_class: str) -> None:
    pidfile = tmp_path / "pid"
    server = start(serve, tmp_path, worker_class, "--pidfile", str(pidfile))
    before = ask(tmp_path, "status")
    counts = []
    with Load(server.port, EVERY_KIND) as load:
        for version in ("2", "3", "4"):
            load.wait_answers(50)
            releases.deploy(tmp_path, releases.good(worker_class, version))
            upgrade(server)
            counts.append(ask(tmp_path, "status")["requests"])
        load.wait_answers(50)
    assert load.failures == []
    assert set(load.bodies) == {b"1", b"2", b"3", b"4"}
    after = ask(tmp_path, "status")
    assert after["pid"] == before["pid"] == server.pid == int(pidfile.read_text())
    assert after["started_at"] == before["started_at"]
    assert after["generation"] == 4
    # Every answer was counted, and no counter went back.
    assert counts == sorted(counts)
    # A worker counts a request after it has sent the response.
    wait_for(
        lambda: ask(tmp_path, "status")["requests"] >= load.answers, "all requests in the count"
    )
    assert server.stop() == 0
    assert not pidfile.exists()


def test_nothing_is_left_over(serve: Serve, tmp_path: Path) -> None:
    """No descriptor, process or zombie more after many upgrades than after one."""
    server = start(serve, tmp_path)
    upgrade(server)
    first = descriptors(server.pid)
    for _ in range(3):
        upgrade(server)
    # Connections of the control socket and the like come and go.
    wait_for(lambda: descriptors(server.pid) <= first, "descriptors that are closed again")
    wait_for(lambda: len(server.members()) == 4, "arbiter, guard and two workers")


def test_a_worker_that_dies_meanwhile_is_replaced(serve: Serve, tmp_path: Path) -> None:
    """It dies while no program of the arbiter's runs that could notice it."""
    hook = f"import os, signal\ndef pre_exec(server): {KILL}\n"
    (tmp_path / "servo.conf.py").write_text(hook)
    server = start(serve, tmp_path, "sync", "-c", "servo.conf.py")
    upgrade(server)
    server.wait_log(r"ended after .*: killed by signal 9 \(SIGKILL\), not by the arbiter")
    server.wait_workers(2)


KILL = "os.kill(min(server.WORKERS), signal.SIGKILL)"


def test_signals_that_come_meanwhile_are_kept(serve: Serve, tmp_path: Path) -> None:
    """They arrive while the arbiter's handlers are not set: in the hook, signals are blocked."""
    hook = "import os, signal\ndef pre_exec(server): os.kill(os.getpid(), signal.SIGTTIN)\n"
    (tmp_path / "servo.conf.py").write_text(hook)
    server = start(serve, tmp_path, "sync", "-c", "servo.conf.py")
    server.signal(signal.SIGUSR2)
    server.wait_log("upgraded: (.*\n)+.* SIGTTIN: 3 workers instead of 2")
    server.wait_log("reload .upgrade. finished")
    server.wait_workers(3)
    # The mask is what it was before: a stop works.
    assert server.stop() == 0


def test_events_are_followed_across_the_upgrade(serve: Serve, tmp_path: Path) -> None:
    server = start(serve, tmp_path)
    command = [sys.executable, "-m", "servo.cli.ctl", "--socket", str(tmp_path / "control")]
    shown = tmp_path / "shown"
    with shown.open("w") as out:
        follower = subprocess.Popen(
            [*command, "--json", "events", "-f"],
            env=environment(),
            stdout=out,
            stderr=subprocess.PIPE,
            text=True,
        )
    wait_for(shown.read_text, "past events")
    for _ in range(2):
        upgrade(server)
    server.stop()
    err = follower.communicate(timeout=30)[1]
    names = [json.loads(line)["name"] for line in shown.read_text().splitlines()]
    assert err == "servoctl: the server has ended\n"
    twice = ["upgrade_started", "upgraded", "reload_started", "reload_finished"]
    assert [names.count(name) for name in twice] == [2, 2, 2, 2]
    assert names.count("spawned") == 6
    assert names.count("stopping") == 1


def test_servoctl_waits_for_the_end(serve: Serve, tmp_path: Path) -> None:
    server = start(serve, tmp_path)
    old = server.worker_pids()
    found = servoctl(tmp_path, "upgrade")
    assert found.returncode == 0, found.stderr
    assert found.stdout.splitlines()[-1].startswith(f"upgraded: pid {server.pid} runs Servo ")
    assert "upgraded: Servo " in found.stdout
    assert not set(old) & set(server.wait_workers(2))
    lines = servoctl(tmp_path, "--json", "upgrade").stdout.splitlines()
    assert json.loads(lines[-1])["result"]["generation"] == 3


# --- failures -------------------------------------------------------------------------------------


def refused(server: Server, tmp_path: Path, *args: str) -> str:
    """A `servoctl upgrade` that fails and changes nothing; its last line."""
    old = server.wait_workers(2)
    with Load(server.port, {"raw-kept": 1, "raw-fresh": 1}) as load:
        load.wait_answers(10)
        found = servoctl(tmp_path, "upgrade", *args)
        load.wait_answers(10)
    assert load.failures == []
    assert found.returncode == 1
    assert server.wait_workers(2) == old
    return found.stderr.splitlines()[-1]


def test_an_app_that_can_not_be_imported(serve: Serve, tmp_path: Path) -> None:
    server = start(serve, tmp_path)
    good = releases.good("sync", "1")
    releases.deploy(tmp_path, "raise RuntimeError('this release is broken')\n")
    assert refused(server, tmp_path) == (
        "servoctl: error: the new program can't start: importing release failed: "
        "RuntimeError: this release is broken (exit code 4)"
    )
    server.wait_log("upgrade .* failed: the new program can't start: .*; the server goes on as it")
    # USR2 has no other answer than the log.
    mark = server.mark()
    server.signal(signal.SIGUSR2)
    server.wait_log("upgrade .SIGUSR2. failed: the new program can't start", mark)
    releases.deploy(tmp_path, good)
    upgrade(server)


def test_a_configuration_that_is_wrong(serve: Serve, tmp_path: Path) -> None:
    (tmp_path / "servo.toml").write_text("timeout = 10\n")
    server = start(serve, tmp_path, "sync", "-c", "servo.toml")
    (tmp_path / "servo.toml").write_text("timeout = 'long'\n")
    assert "timeout" in refused(server, tmp_path)


@pytest.mark.parametrize(
    ("program", "said"),
    [
        (None, "there is no interpreter /.*/python$"),
        ("#!/bin/sh\nexit 0\n", "/python runs no Servo that can take over a running server$"),
        (f'#!/bin/sh\nexec {sys.executable} -I -S "$@"\n', "/python has no Servo: /.*pip install"),
        ("no program", "/python: Exec format error"),
    ],
)
def test_an_interpreter_that_can_not_run_servo(
    serve: Serve, tmp_path: Path, program: str | None, said: str
) -> None:
    server = start(serve, tmp_path)
    python = tmp_path / "python"
    if program is not None:
        python.write_text(program)
        python.chmod(0o755)
    line = refused(server, tmp_path, "--python", str(python))
    assert re.search(said, line), line


def test_an_interpreter_that_vanishes_after_the_preflight(serve: Serve, tmp_path: Path) -> None:
    """execve fails: the old program goes on, with everything that it had."""
    (tmp_path / "servo.conf.py").write_text(
        "import os\ndef pre_exec(server):\n    if os.path.exists('python'): os.unlink('python')\n"
    )
    server = start(serve, tmp_path, "sync", "-c", "servo.conf.py")
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    line = refused(server, tmp_path, "--python", str(python))
    assert line == f"servoctl: error: there is no interpreter {python}"
    upgrade(server)


def test_a_program_that_can_not_start_gives_the_server_back(serve: Serve, tmp_path: Path) -> None:
    """The configuration changes between the preflight and the takeover."""
    config = tmp_path / "servo.conf.py"
    config.write_text(
        "def pre_exec(server):\n"
        "    with open('servo.conf.py', 'a') as file:\n"
        '        file.write(\'if not __import__("os").path.exists("broken"):\\n\')\n'
        '        file.write(\'    open("broken", "w").close()\\n\')\n'
        "        file.write('    raise RuntimeError(\"it was changed\")\\n')\n"
    )
    pidfile = tmp_path / "pid"
    server = start(serve, tmp_path, "sync", "-c", "servo.conf.py", "--pidfile", str(pidfile))
    before = ask(tmp_path, "status")
    line = refused(server, tmp_path)
    assert line.startswith("servoctl: error: the new program could not start: ")
    server.wait_log("upgrade failed: the new program could not start: .*; the server goes on as")
    after = ask(tmp_path, "status")
    assert after["started_at"] == before["started_at"]
    assert after["requests"] >= before["requests"]
    assert after["generation"] == 1
    assert int(pidfile.read_text()) == server.pid
    # A later upgrade works.
    upgrade(server)
    assert server.stop() == 0


def test_a_configuration_that_hangs_after_the_preflight(serve: Serve, tmp_path: Path) -> None:
    """`boot_timeout` ends it, even if it catches every exception, and the old program returns."""
    (tmp_path / "servo.conf.py").write_text(
        "import os, time\n"
        "if os.path.exists('hangs'):\n"
        "    os.rename('hangs', 'hung')\n"
        "    try: time.sleep(600)\n"
        "    except BaseException: time.sleep(600)\n"
        "def pre_exec(server):\n"
        "    if not os.path.exists('hung'): open('hangs', 'w').close()\n"
    )
    server = start(serve, tmp_path, "sync", "-c", "servo.conf.py", "--boot-timeout", "15")
    with Load(server.port, EVERY_KIND) as load:
        line = refused(server, tmp_path)
        load.wait_answers(20)
    assert load.failures == []
    assert line.startswith("servoctl: error: the new program could not start: servo.conf.py:5: ")
    assert "it took over 15 s (boot_timeout) in `except BaseException: time.sleep" in line
    assert ask(tmp_path, "status")["generation"] == 1
    upgrade(server)


@pytest.mark.parametrize("preload", [(), ("--preload",)])
def test_no_program_can_start_for_a_while(
    serve: Serve, tmp_path: Path, preload: tuple[str, ...]
) -> None:
    """The configuration is broken for both programs: the old one tries until it is repaired."""
    (tmp_path / "servo.conf.py").write_text(
        "import os\n"
        "if os.path.exists('broken'): raise RuntimeError('it was changed')\n"
        "def pre_exec(server):\n"
        "    if not os.path.exists('repaired'): open('broken', 'w').close()\n"
    )
    server = start(serve, tmp_path, "sync", "-c", "servo.conf.py", *preload)
    old = server.worker_pids()
    with Load(server.port, EVERY_KIND) as load:
        server.signal(signal.SIGUSR2)
        server.wait_log("servo: the old program can't start again: .*; repair this")
        load.wait_answers(20)
        (tmp_path / "broken").rename(tmp_path / "repaired")
        server.wait_log("upgrade failed: the new program could not start: .*it was changed")
        load.wait_answers(20)
        assert server.worker_pids() == old
        upgrade(server)
    assert load.failures == []


def test_a_stop_while_no_program_can_start(serve: Serve, tmp_path: Path) -> None:
    (tmp_path / "servo.conf.py").write_text(
        "import os\n"
        "if os.path.exists('broken'): raise RuntimeError('it was changed')\n"
        "def pre_exec(server): open('broken', 'w').close()\n"
    )
    server = start(serve, tmp_path, "sync", "-c", "servo.conf.py")
    server.signal(signal.SIGUSR2)
    server.wait_log("servo: the old program can't start again")
    server.signal(signal.SIGTERM)
    assert server.wait_exit() != 0
    wait_for(lambda: not server.members(), "the end of the workers, which have lost their arbiter")


def test_an_upgrade_during_a_reload(serve: Serve, tmp_path: Path) -> None:
    server = start(serve, tmp_path)
    old = server.worker_pids()
    releases.deploy(tmp_path, releases.good("sync", "2", slow_import_s=1.0))
    server.signal(signal.SIGHUP)
    server.wait_log("reload .SIGHUP.: reading the configuration")
    found = servoctl(tmp_path, "upgrade")
    assert found.returncode == 1
    assert "a reload is under way; ask again when it has finished" in found.stderr
    server.signal(signal.SIGUSR2)
    server.wait_log("SIGUSR2: no upgrade: a reload is under way")
    server.wait_replaced(old)


def test_a_release_that_breaks_after_the_preflight(serve: Serve, tmp_path: Path) -> None:
    """The new program runs, its reload is rolled back, and the old workers serve on."""
    server = start(serve, tmp_path)
    release = releases.good("sync", "2") + (
        "import os\n"
        "if os.path.exists('imported'): raise RuntimeError('only once')\n"
        "open('imported', 'w').close()\n"
    )
    old = server.worker_pids()
    releases.deploy(tmp_path, release)
    with Load(server.port, {"raw-kept": 1, "raw-fresh": 1}) as load:
        found = servoctl(tmp_path, "upgrade")
        load.wait_answers(20)
    assert found.returncode == 1
    assert "rolled back: its first worker failed" in found.stderr
    assert "the new program runs, and the old workers still serve" in found.stderr
    assert load.failures == []
    assert set(load.bodies) == {b"1"}
    assert server.wait_workers(2) == old


# --- sockets --------------------------------------------------------------------------------------


def test_queues_of_the_slots(serve: Serve, tmp_path: Path, worker_class: str) -> None:
    """With reuse_port each slot has a socket of its own, and connections wait in each."""
    server = start(serve, tmp_path, worker_class, "--reuse-port")
    listening = listening_sockets(server.port)
    assert len(listening) == 2
    with Load(server.port, {"raw-kept": 2, "raw-fresh": 4}) as load:
        load.wait_answers(50)
        for _ in range(2):
            upgrade(server)
        server.signal(signal.SIGTTIN)
        server.wait_workers(3)
        load.wait_answers(50)
    assert load.failures == []
    assert listening < listening_sockets(server.port)
    assert server.stop() == 0


def listening_sockets(port: int) -> set[str]:
    """The inodes of the sockets that listen on a port."""
    lines = Path("/proc/net/tcp").read_text().splitlines()[1:]
    fields = [line.split() for line in lines]
    return {each[9] for each in fields if each[1].endswith(f":{port:04X}") and each[3] == "0A"}


@pytest.mark.parametrize("path", ["app.sock", "{tmp_path}/app.sock"])
def test_a_unix_socket(serve: Serve, tmp_path: Path, path: str) -> None:
    address = path.format(tmp_path=tmp_path)
    server = start(serve, tmp_path, "thread", "--bind", f"unix:{address}")
    inode = (tmp_path / "app.sock").stat().st_ino
    for _ in range(2):
        upgrade(server)
    transport = httpx.HTTPTransport(uds=str(tmp_path / "app.sock"))
    with httpx.Client(transport=transport, trust_env=False, timeout=30) as client:
        assert client.get("http://localhost/").text == "1"
    assert (tmp_path / "app.sock").stat().st_ino == inode
    assert ask(tmp_path, "status")["listeners"] == [f"unix:{address}"]
    assert server.stop() == 0
    assert not (tmp_path / "app.sock").exists()


def test_a_socket_of_systemd(serve: Serve, tmp_path: Path) -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = listener.getsockname()[1]
        fd = listener.fileno()
        server = serve(
            *("release:app", "-w", "2", "--control-socket", str(tmp_path / "control")),
            cwd=deployed(tmp_path),
            ready=2,
            command=(sys.executable, "-c", SYSTEMD, str(fd)),
            pass_fds=(fd,),
            bind=False,
        )
    with Load(port, {"raw-kept": 1, "raw-fresh": 2}) as load:
        load.wait_answers(20)
        for _ in range(2):
            upgrade(server)
        load.wait_answers(20)
    assert load.failures == []


def deployed(tmp_path: Path) -> Path:
    releases.deploy(tmp_path, releases.good("sync", "1"))
    return tmp_path


def test_tls(serve: Serve, tmp_path: Path, worker_class: str) -> None:
    authority = Authority(tmp_path)
    files = authority.issue("server")
    (tmp_path / "servo.toml").write_text(f"certfile = '{files.cert}'\nkeyfile = '{files.key}'\n")
    server = start(serve, tmp_path, worker_class, "-c", "servo.toml")
    with TLSLoad(server.port, authority.client_context()) as load:
        wait_for(lambda: load.answers > 20, "answers")
        upgrade(server)
        before = load.answers
        wait_for(lambda: load.answers > before + 20, "answers")
    assert load.failures == []
    # Half of the clients would meet plaintext.
    (tmp_path / "servo.toml").write_text("")
    found = servoctl(tmp_path, "upgrade")
    assert found.returncode == 1
    assert "an upgrade can't turn TLS off (certfile, …): restart the server" in found.stderr


# --- the surroundings -----------------------------------------------------------------------------


def test_a_daemon(serve: Serve, tmp_path: Path) -> None:
    pidfile, log = tmp_path / "pid", tmp_path / "log"
    releases.deploy(tmp_path, releases.good("sync", "1"))
    files = ("--pid", str(pidfile), "--error-logfile", str(log))
    control = ("--control-socket", str(tmp_path / "control"))
    server = serve("release:app", "-w", "2", "--daemon", *files, *control, ready=0)
    assert server.wait_exit() == 0
    pid = int(pidfile.read_text())
    (daemon,) = [process for process in processes() if process.pid == pid]
    server.sessions.add(daemon.session)
    with Load(server.port, {"raw-kept": 1, "raw-fresh": 1}) as load:
        load.wait_answers(20)
        for _ in range(2):
            assert servoctl(tmp_path, "upgrade").returncode == 0
        load.wait_answers(20)
    assert load.failures == []
    assert int(pidfile.read_text()) == pid
    # Another server is still kept out.
    second = serve("release:app", *files, ready=0)
    assert second.wait_exit() == 1
    os.kill(pid, signal.SIGTERM)
    wait_for(lambda: not alive(pid), "end of the daemon")
    assert not pidfile.exists()


@needs_root
def test_as_pid_1(tmp_path: Path) -> None:
    """As in a container: an end of PID 1 would end everything."""
    unshare = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc"]
    probe = subprocess.run([*unshare, "true"], capture_output=True, timeout=30, check=False)
    if probe.returncode:
        pytest.skip(f"no new PID namespace here: {probe.stderr.decode().strip()}")
    command = (*unshare, sys.executable, "-m", "servo")
    server = Server("release:app", "-w", "2", cwd=deployed(tmp_path), command=command)
    server.start()
    try:
        arbiter = wait_for(server.children, "the child of unshare")[0]
        server.wait_log("(?i)worker 2.*ready")
        with Load(server.port, {"raw-kept": 1, "raw-fresh": 2}) as load:
            load.wait_answers(20)
            for _ in range(2):
                mark = server.mark()
                os.kill(arbiter, signal.SIGUSR2)
                server.wait_log("upgraded: .*, pid 1$", mark)
                server.wait_log("reload .upgrade. finished", mark)
            load.wait_answers(20)
        assert load.failures == []
        os.kill(arbiter, signal.SIGTERM)
        assert server.wait_exit() == 0
    finally:
        server.kill_all()
    assert not server.members()


def test_a_scraper_sees_no_gap(serve: Serve, tmp_path: Path) -> None:
    port = free_port()
    server = start(serve, tmp_path, "sync", "--metrics-bind", f"127.0.0.1:{port}")
    metrics = Metrics(port)
    stop = threading.Event()
    problems: list[Exception] = []

    def scrape() -> None:
        while not stop.is_set():
            try:
                metrics.scrape()
            except (AssertionError, requests.RequestException) as error:
                problems.append(error)

    thread = threading.Thread(target=scrape)
    thread.start()
    with Load(server.port, {"raw-kept": 1, "raw-fresh": 1}) as load:
        for _ in range(2):
            load.wait_answers(20)
            upgrade(server)
    stop.set()
    thread.join(30)
    assert problems == []
    assert load.failures == []
    metrics.wait_value(2, "servo_reloads_total", outcome="finished")
    # Each request was counted once, by the old programs or by the new one.
    metrics.wait_value(load.answers, "servo_requests_total", method="GET", status="2xx")


def test_the_file_watcher_goes_on(serve: Serve, tmp_path: Path) -> None:
    server = start(serve, tmp_path, "sync", "--reload")
    upgrade(server)
    old = server.worker_pids()
    # One watcher: the one of the old program has ended.
    wait_for(lambda: len(server.children()) == 3, "two workers and one watcher")
    releases.deploy(tmp_path, releases.good("sync", "2"))
    server.wait_log(r"reload \(release.py changed\)")
    server.wait_replaced(old)


def test_systemd_is_told_of_a_reload(serve: Serve, tmp_path: Path) -> None:
    systemd = Systemd(tmp_path / "notify")
    server = start(serve, tmp_path, env=systemd.environ(WATCHDOG_USEC="2000000"))
    systemd.wait_line("READY=1")
    for _ in range(2):
        since = len(systemd.lines)
        upgrade(server)
        lines = systemd.wait_line("READY=1", since)
        assert [line for line in lines if line in ("RELOADING=1", "READY=1", "STOPPING=1")] == [
            "RELOADING=1",
            "READY=1",
        ]
        systemd.wait_line("WATCHDOG=1", len(systemd.lines))
    assert systemd.pids == {server.pid}
    systemd.sock.close()


# --- another interpreter, another version ---------------------------------------------------------


def other_interpreter() -> str:
    """A Python of another version with the packages that Servo needs; skips if there is none."""
    root = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"))
    given = os.environ.get("SERVO_TEST_PYTHON")
    found = [given] if given else sorted(map(str, root.glob("versions/3.1*/bin/python")))
    check = (
        "import click, h11, httptools, sys\n"
        f"sys.exit(sys.version_info < (3, 10) or sys.version_info[:2] == {sys.version_info[:2]})\n"
    )
    for python in reversed(found):
        probe = subprocess.run([python, "-c", check], capture_output=True, timeout=30, check=False)
        if probe.returncode == 0:
            return python
    pytest.skip("no Python of another version with Servo's packages here (SERVO_TEST_PYTHON)")


def answers_version(worker_class: str) -> str:
    """A release that answers the version of its interpreter, such as 3.13."""
    release = releases.good(worker_class, "1").replace('b"1"', "version.encode()")
    assert "version.encode()" in release
    return "import sys; version = '%d.%d' % sys.version_info[:2]\n" + release


def test_another_interpreter_under_load(serve: Serve, tmp_path: Path, worker_class: str) -> None:
    python = other_interpreter()
    server = start(serve, tmp_path, worker_class)
    releases.deploy(tmp_path, answers_version(worker_class))
    upgrade(server)
    before = ask(tmp_path, "status")
    with Load(server.port, EVERY_KIND) as load:
        load.wait_answers(50)
        there = servoctl(tmp_path, "upgrade", "--python", python)
        load.wait_answers(50)
        middle = ask(tmp_path, "status")
        # USR2 stays with that interpreter.
        upgrade(server)
        load.wait_answers(50)
        back = servoctl(tmp_path, "upgrade", "--python", sys.executable)
        load.wait_answers(50)
    assert there.returncode == back.returncode == 0, there.stderr + back.stderr
    assert load.failures == []
    after = ask(tmp_path, "status")
    assert before["pid"] == middle["pid"] == after["pid"] == server.pid
    assert before["python"] == after["python"] != middle["python"]
    assert 0 < middle["requests"] < after["requests"] == load.answers
    assert len(load.bodies) == 2
    assert server.stop() == 0


def test_a_mold_of_another_interpreter(serve: Serve, tmp_path: Path, worker_class: str) -> None:
    """Until the reload is over, and after a roll-back, the old interpreter's mold forks workers."""
    python = other_interpreter()
    flags = (*CLASSES[worker_class][1], "-w", "2", "--preload", "--bake-time", "600")
    control = ("--control-socket", str(tmp_path / "control"))
    releases.deploy(tmp_path, answers_version(worker_class))
    server = serve("release:app", *flags, *control, ready=2)
    first, _ = server.wait_workers(2)
    ours = "{}.{}".format(*sys.version_info)

    def version() -> str:
        return requests.get(server.url, timeout=30).text

    assert version() == ours
    with Load(server.port, EVERY_KIND) as load:
        load.wait_answers(50)
        slow = answers_version(worker_class) + "\nimport time; time.sleep(2)\n"
        releases.deploy(tmp_path, slow)
        mark = server.mark()
        found = servoctl(tmp_path, "upgrade", "--no-wait", "--python", python)
        assert found.returncode == 0, found.stderr
        server.wait_log("upgraded: Servo", mark)
        os.kill(first, signal.SIGKILL)
        server.wait_log(r"worker \d+ \(pid \d+\) is ready", mark)
        assert "finished after" not in server.log()[mark:]
        assert version() == ours, "the successor of a worker that died"
        server.wait_log(r"reload \(upgrade\) finished", mark)
        load.wait_answers(50)
        theirs = version()
        assert theirs != ours
        assert ask(tmp_path, "status")["python"].startswith(f"{theirs}.")
        done = servoctl(tmp_path, "rollback")
        assert (done.returncode, done.stdout) == (0, "rolled back to generation 1\n")
        wait_for(lambda: {version() for _ in range(6)} == {ours}, "only workers of the old mold")
        load.wait_answers(50)
    assert set(load.bodies) == {ours.encode(), theirs.encode()}
    assert len(load.failures) <= sum(EVERY_KIND.values()), "one request of each client of the dead"
    assert server.stop() == 0
    assert "Traceback" not in server.log()


NEXT_VERSION = """
import os, sys
from servo.arbiter import upgrade_state
upgrade_state.STATE_VERSION += 1
from servo.__main__ import main
sys.exit(main())
"""


def start_old_version(serve: Serve, tmp_path: Path, *args: str) -> tuple[Server, str]:
    """A server, and an interpreter whose Servo can't read this server's state."""
    (tmp_path / "servo").write_text(NEXT_VERSION)
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    # As a script, so that the one beside the other interpreter is taken.
    (tmp_path / "old").mkdir()
    script = tmp_path / "old" / "servo"
    script.write_text("import sys\nfrom servo.__main__ import main\nsys.exit(main())\n")
    server = start(serve, tmp_path, "thread", *args, command=(sys.executable, str(script)))
    return server, str(python)


@pytest.mark.parametrize(
    "flags", [(), ("--reuse-port",), ("--bind", "unix:app.sock"), ("--preload",)]
)
def test_a_state_of_another_version(serve: Serve, tmp_path: Path, flags: tuple[str, ...]) -> None:
    """The sockets stay, new workers boot, the old ones finish their requests, none is killed."""
    pidfile = tmp_path / "pid"
    port = free_port()
    metrics = ("--metrics-bind", f"127.0.0.1:{port}", "--pidfile", str(pidfile))
    dashboard = f"127.0.0.1:{free_port()}"
    others = (*metrics, "--dashboard-bind", dashboard)
    server, python = start_old_version(serve, tmp_path, *flags, *others)
    token = server.wait_log(r"\?token=(\S+)")[1]
    old = server.worker_pids()
    listening = listening_sockets(server.port)
    with contextlib.ExitStack() as stack:
        load = None
        if "unix:app.sock" not in flags:
            load = stack.enter_context(
                Load(server.port, {"raw-kept": 2, "raw-fresh": 2}, "/?s=0.05")
            )
            load.wait_answers(20)
        found = servoctl(tmp_path, "upgrade", "--no-wait", "--python", python)
        assert found.returncode == 0, found.stderr
        server.wait_log(r"The state that Servo .* has left can't be read: its version is 1, and")
        wait_for(lambda: not set(old) & set(server.worker_pids()), "end of the old workers")
        server.wait_workers(2)
        if load is not None:
            load.wait_answers(20)
            load.stop()
            assert load.failures == []
    assert listening <= listening_sockets(server.port)
    assert "killing it" not in server.log()
    assert int(pidfile.read_text()) == server.pid == ask(tmp_path, "status")["pid"]
    assert Metrics(port).ready() == 200
    fields = {"Authorization": f"Bearer {token}"}
    assert requests.get(f"http://{dashboard}/api/history", headers=fields, timeout=30).ok
    assert server.stop() == 0
    assert not pidfile.exists()
    assert not (tmp_path / "app.sock").exists()


def test_servoctl_waits_for_a_program_that_can_not_read_the_state(
    serve: Serve, tmp_path: Path
) -> None:
    server, python = start_old_version(serve, tmp_path)
    old = server.worker_pids()
    command = [sys.executable, "-m", "servo.cli.ctl", "--socket", str(tmp_path / "control")]
    with subprocess.Popen(
        [*command, "events", "--follow"],
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as follower:
        assert follower.stdout is not None
        assert "spawned" in follower.stdout.readline()
        found = servoctl(tmp_path, "upgrade", "--python", python)
        assert found.returncode == 0, found.stderr
        last = found.stdout.splitlines()[-1]
        assert last.startswith(f"upgraded: pid {server.pid} runs Servo ")
        assert last.endswith(
            "the counters start at 0, because the new program can't read the old one's state"
        )
        rows = ask(tmp_path, "workers")["workers"]
        assert [row["state"] for row in rows] == ["ready", "ready"]
        assert not {row["pid"] for row in rows} & set(old)
        assert server.stop() == 0
        events, errors = follower.communicate(timeout=60)
    assert "stopping" in events, "it has followed the new program"
    assert errors == "servoctl: the server has ended\n"
