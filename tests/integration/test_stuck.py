"""Workers that are stuck in their application: signals, limits and queries still work."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest
import requests

from integration.conftest import CLASSES, Serve
from integration.server import APPS, DEADLINE_S, Server, alive, free_port, wait_for
from integration.test_control import servoctl
from integration.test_process import command_for_everybody, needs_root

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.slow

WAYS = ["sleep", "compute", "deaf", "without-alarm", "hold-the-lock"]


def stuck_args(worker_class: str) -> tuple[str, ...]:
    interface = "asgi" if worker_class == "async" else "wsgi"
    return (f"{APPS / 'stuck_app'}.py:{interface}", *CLASSES[worker_class][1])


@contextmanager
def stuck(server: Server, way: str) -> Iterator[socket.socket]:
    """A request that is stuck in the application."""
    begun = server.cwd / "begun"
    begun.unlink(missing_ok=True)
    with socket.create_connection(("127.0.0.1", server.port), timeout=DEADLINE_S) as client:
        client.sendall(b"GET /%b HTTP/1.1\r\nHost: x\r\n\r\n" % way.encode())
        wait_for(begun.exists, "the application to be called")
        yield client


def guard_pid(server: Server) -> int:
    """The server's process that is neither arbiter nor worker."""
    family = {server.pid, *server.children()}
    (pid,) = {member.pid for member in server.members()} - family
    return pid


@pytest.mark.parametrize("way", WAYS)
def test_a_stuck_worker_ends_with_its_arbiter(serve: Serve, worker_class: str, way: str) -> None:
    args = (*stuck_args(worker_class), "-w", "1", "--graceful-timeout", "1")
    server = serve(*args)
    with stuck(server, way):
        server.signal(signal.SIGKILL)
        assert server.wait_exit() == -signal.SIGKILL
        wait_for(lambda: not server.members(), "end of the orphans")
    address = f"127.0.0.1:{server.port}"
    second = serve(*args, "--bind", address)
    assert requests.get(f"http://{address}/", timeout=DEADLINE_S).ok
    second.stop()


def test_an_idle_server_with_a_guard_ends_at_once(serve: Serve, worker_class: str) -> None:
    """Nothing waits for the grace of workers that end by themselves."""
    server = serve(*stuck_args(worker_class), "-w", "2", "--graceful-timeout", "3600", ready=2)
    server.signal(signal.SIGKILL)
    server.wait_exit()
    wait_for(lambda: not server.members(), "end of the orphans")


def test_a_guard_that_is_killed_is_followed_by_another(serve: Serve) -> None:
    server = serve(*stuck_args("sync"), "-w", "1", "--graceful-timeout", "1")
    first = guard_pid(server)
    os.kill(first, signal.SIGKILL)
    server.wait_log("another follows")
    wait_for(lambda: len(server.members()) == 3 and not alive(first), "another guard")
    with stuck(server, "sleep"):
        server.signal(signal.SIGKILL)
        server.wait_exit()
        wait_for(lambda: not server.members(), "end of the orphans")


def test_what_a_stuck_worker_has_logged_is_there_to_be_read(
    serve: Serve, worker_class: str
) -> None:
    """It sends its lines when it logs them: it looks around no more afterwards."""
    server = serve(*stuck_args(worker_class), "-w", "1", "--graceful-timeout", "1")
    with stuck(server, "log-and-sleep"):
        wait_for(
            lambda: (
                "the last line before it got stuck"
                in servoctl("--pid", str(server.pid), "logs", "--worker", "1").stdout
            ),
            "the worker's lines",
        )


# prctl(PR_CAPBSET_DROP, CAP_KILL): what root executes next lacks it.
WITHOUT_CAP_KILL = (
    sys.executable,
    "-c",
    "import ctypes, os, sys; assert ctypes.CDLL(None).prctl(24, 5, 0, 0, 0) == 0;"
    "os.execv(sys.argv[1], sys.argv[1:])",
)


@needs_root
def test_root_without_cap_kill_ends_a_hung_worker(
    serve: Serve, open_directory: Path, worker_class: str
) -> None:
    shutil.copy(APPS / "stuck_app.py", open_directory)
    app = "stuck_app:asgi" if worker_class == "async" else "stuck_app:wsgi"
    open_directory.chmod(0o777)  # for the file that the application makes
    server = serve(
        *(app, "-w", "1", *CLASSES[worker_class][1]),
        *("--timeout", "2", "--user", "nobody", "--statsd-host", f"127.0.0.1:{free_port()}"),
        cwd=open_directory,
        env={"PYTHONPATH": str(open_directory)},
        command=(*WITHOUT_CAP_KILL, *command_for_everybody(open_directory)),
    )
    (old,) = server.worker_pids()
    with stuck(server, "hold-the-lock"):
        server.wait_replaced([old])
        assert requests.get(f"{server.url}/", timeout=DEADLINE_S).ok
    server.signal(signal.SIGUSR1)
    assert requests.get(f"{server.url}/", timeout=DEADLINE_S).ok
    assert server.stop() == 0


HANGS_IN_THE_ARBITER = """
import os, time
from pathlib import Path

if Path("hang").exists() and Path("pid").read_text().strip() == str(os.getpid()):
    while True:
        try:
            time.sleep(3600)
        except Exception:
            pass
"""


def test_a_configuration_that_hangs_when_it_is_taken_up(serve: Serve, tmp_path: Path) -> None:
    (tmp_path / "conf.py").write_text(HANGS_IN_THE_ARBITER)
    server = serve(*stuck_args("sync"), "-c", "conf.py", "--pid", "pid", "--hook-timeout", "1")
    old = server.worker_pids()
    (tmp_path / "hang").touch()
    server.signal(signal.SIGHUP)
    server.wait_log(r"can't be used: .*it took over 1 s \(hook_timeout\)")
    assert requests.get(f"{server.url}/", timeout=DEADLINE_S).ok
    os.kill(old[0], signal.SIGKILL)
    server.wait_replaced(old)
    assert server.stop() == 0


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT, signal.SIGQUIT])
def test_a_stop_ends_a_reload_that_hangs(serve: Serve, tmp_path: Path, signum: int) -> None:
    (tmp_path / "conf.py").write_text(HANGS_IN_THE_ARBITER)
    server = serve(*stuck_args("sync"), "-c", "conf.py", "--pid", "pid", "--hook-timeout", "0")
    (tmp_path / "hang").touch()
    server.signal(signal.SIGHUP)
    server.wait_log("reading the configuration")
    assert server.stop(signum) == 0


HANGS = {
    "the file": "import time; open('begun', 'w'); time.sleep(3600)",
    "on_starting": "import time\ndef on_starting(server): open('begun', 'w'); time.sleep(3600)",
    "when_ready": "import time\ndef when_ready(server): open('begun', 'w'); time.sleep(3600)",
    "pre_fork": "import time\ndef pre_fork(server, worker): open('begun', 'w'); time.sleep(3600)",
}


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("where", HANGS)
def test_a_signal_ends_a_start_that_hangs(
    serve: Serve, tmp_path: Path, where: str, signum: int
) -> None:
    (tmp_path / "conf.py").write_text(HANGS[where])
    server = serve(*stuck_args("sync"), "-c", "conf.py", "-w", "1", ready=0)
    wait_for((tmp_path / "begun").exists, "the code that hangs")
    server.stop(signum)
    assert "Traceback" not in server.log() or "hook failed" in server.log()
