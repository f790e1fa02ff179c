"""The server's processes: pidfile, daemon, rights, titles, orphans."""

from __future__ import annotations

import importlib.util
import json
import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import requests

from integration.server import APPS, Server, alive, command_line, processes, wait_for

pytestmark = pytest.mark.slow

Serve = Callable[..., Server]
WSGI = f"{APPS / 'wsgi_app.py'}:app"
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="changing user needs root")

# prctl(PR_SET_CHILD_SUBREAPER) survives exec: the arbiter gets orphans as PID 1 does.
SUBREAPER = """
import ctypes, os, sys
assert ctypes.CDLL(None).prctl(36, 1, 0, 0, 0) == 0
os.execv(sys.executable, [sys.executable, "-m", "servo", *sys.argv[1:]])
"""


def describe(server: Server) -> dict[str, object]:
    return dict(json.loads(requests.get(f"{server.url}/describe", timeout=30).text))


def test_pidfile(serve: Serve, tmp_path: Path) -> None:
    path = tmp_path / "servo.pid"
    server = serve(WSGI, "--pid", str(path))
    assert int(path.read_text()) == server.pid
    assert server.stop() == 0
    assert not path.exists()


def test_stale_pidfile_is_taken_over(serve: Serve, tmp_path: Path) -> None:
    """Even when its number is a live process's: that one holds no lock on the file."""
    path = tmp_path / "servo.pid"
    path.write_text(f"{os.getpid()}\n")
    server = serve(WSGI, "--pid", str(path))
    assert int(path.read_text()) == server.pid


def test_pidfile_of_a_live_server_is_respected(serve: Serve, tmp_path: Path) -> None:
    path = tmp_path / "servo.pid"
    first = serve(WSGI, "--pid", str(path))
    second = serve(WSGI, "--pid", str(path), ready=0)
    assert second.wait_exit() == 1
    second.wait_log(str(first.pid))
    assert int(path.read_text()) == first.pid


def test_pidfile_survives_a_killed_server(serve: Serve, tmp_path: Path) -> None:
    path = tmp_path / "servo.pid"
    first = serve(WSGI, "--pid", str(path))
    first.signal(signal.SIGKILL)
    first.wait_exit()
    wait_for(lambda: not first.members(), "end of the orphaned workers")
    second = serve(WSGI, "--pid", str(path))
    assert int(path.read_text()) == second.pid


def test_daemon(serve: Serve, tmp_path: Path) -> None:
    path, log = tmp_path / "servo.pid", tmp_path / "error.log"
    server = serve(
        WSGI, "--daemon", "--pid", str(path), "--error-logfile", str(log), "-w", "1", ready=0
    )
    assert server.wait_exit() == 0  # the command returns; the server runs on, and serves
    pid = int(path.read_text())
    (daemon,) = [process for process in processes() if process.pid == pid]
    server.sessions.add(daemon.session)
    assert daemon.session != server.pid

    assert requests.get(f"{server.url}/", timeout=30).text == "ok"
    os.kill(pid, signal.SIGTERM)
    wait_for(lambda: not alive(pid), "end of the daemon")
    assert not path.exists()


def test_a_daemon_that_can_not_serve(serve: Serve, tmp_path: Path) -> None:
    """The command says so, as it does of a server in the foreground."""
    server = serve(
        "nothing:app", "--daemon", "--pid", "servo.pid", "--error-logfile", "log", ready=0
    )
    assert server.wait_exit() == 4
    assert "there is no module 'nothing'" in server.log()
    assert not (tmp_path / "servo.pid").exists()


def test_a_daemon_whose_log_goes_nowhere(serve: Serve) -> None:
    server = serve("nothing:app", "--daemon", ready=0)
    assert server.wait_exit() == 4
    assert "The log ends here" in server.log()


def command_for_everybody(directory: Path) -> tuple[str, ...]:
    """Servo as any user may run it, with an interpreter whose library every user may read."""
    for package in ("servo", "click", "h11", "httptools"):
        source = Path(str(importlib.util.find_spec(package).origin)).parent  # type: ignore[union-attr]
        # What a compiled Servo needs beside its own directory isn't known here.
        ignored = shutil.ignore_patterns("*.so") if package == "servo" else None
        shutil.copytree(source, directory / package, ignore=ignored)
    for python in (sys.executable, "/usr/bin/python3"):
        check = f"import sysconfig, sys; sys.exit(sys.version_info[:2] != {sys.version_info[:2]})"
        probe = subprocess.run(
            [python, "-c", f"import os; os.setuid(65534); {check}"],
            capture_output=True,
            timeout=30,
            check=False,
        )
        if probe.returncode == 0:
            return (python, "-m", "servo")
    pytest.skip("no interpreter of this version that another user may read")


@needs_root
@pytest.mark.parametrize("worker_class", ["sync", "thread"])
def test_user_and_group(serve: Serve, open_directory: Path, worker_class: str) -> None:
    nobody = pwd.getpwnam("nobody")
    shutil.copy(APPS / "wsgi_app.py", open_directory)
    server = serve(
        "wsgi_app:app",
        *("-k", worker_class, "--user", "nobody", "--group", str(nobody.pw_gid)),
        *("--initgroups", "--umask", "027", "--worker-tmp-dir", "/dev/shm"),
        cwd=open_directory,
        env={"PYTHONPATH": str(open_directory)},
        command=command_for_everybody(open_directory),
    )
    values = describe(server)
    assert (values["uid"], values["gid"]) == (nobody.pw_uid, nobody.pw_gid)
    assert values["groups"] == os.getgrouplist("nobody", nobody.pw_gid)
    assert requests.get(f"{server.url}/umask", timeout=30).text == "027"


@needs_root
def test_unknown_user(serve: Serve) -> None:
    server = serve(WSGI, "--user", "no-such-user", ready=0)
    assert server.wait_exit() == 2
    server.wait_log("no-such-user")


def test_relative_paths_start_at_chdir(serve: Serve, tmp_path: Path) -> None:
    """Those of files that Servo makes too, as gunicorn's do."""
    inner = tmp_path / "inner"
    inner.mkdir()
    server = serve(
        *(WSGI, "--chdir", "inner", "--bind", "unix:s", "--pid", "servo.pid"),
        *("--access-logfile", "access.log", "--control-socket", "control"),
    )
    made = {"s", "servo.pid", "access.log", "control", "control.lock"}
    assert {path.name for path in inner.iterdir()} == made
    server.stop()
    assert {path.name for path in inner.iterdir()} == {"access.log"}


def test_chdir_raw_env_and_pythonpath(serve: Serve, tmp_path: Path) -> None:
    directory, modules = tmp_path / "project", tmp_path / "modules"
    directory.mkdir()
    modules.mkdir()
    (modules / "helper_of_test.py").write_text(
        f"import runpy\napp = runpy.run_path({str(APPS / 'wsgi_app.py')!r})['app']\n"
    )
    (directory / "project_app.py").write_text("from helper_of_test import app\n")
    server = serve(
        "project_app:app",
        *("--chdir", str(directory), "--pythonpath", str(modules)),
        *("-e", "ANSWER=42", "-e", "EQUALS=a=b"),
    )
    values = describe(server)
    assert values["cwd"] == str(directory)
    env = values["env"]
    assert isinstance(env, dict)
    assert (env["ANSWER"], env["EQUALS"]) == ("42", "a=b")


def test_titles(serve: Serve) -> None:
    pytest.importorskip("setproctitle")
    server = serve(WSGI, "-w", "2", ready=2)
    assert command_line(server.pid).startswith("servo: arbiter [")
    titles = sorted(command_line(pid) for pid in server.wait_workers(2))
    assert [title.split(" [")[0] for title in titles] == ["servo: worker 1", "servo: worker 2"]


def test_proc_name(serve: Serve) -> None:
    pytest.importorskip("setproctitle")
    server = serve(WSGI, "--name", "shop")
    assert command_line(server.pid) == "servo: arbiter [shop]"


def test_a_print_of_the_configuration_is_written_once(serve: Serve, tmp_path: Path) -> None:
    """It waits in a buffer, which no child may write again, nor wait for its reader."""
    (tmp_path / "conf.py").write_text("print('read by the arbiter')")
    server = serve(WSGI, "-c", "conf.py", "-w", "2", ready=2, env={"PYTHONUNBUFFERED": ""})
    assert server.stop() == 0
    assert server.log().count("read by the arbiter") == 1


def test_orphans_are_reaped(serve: Serve) -> None:
    """What an app leaves behind becomes the arbiter's child, and is no zombie in the end."""
    server = serve(WSGI, "-w", "1", command=(sys.executable, "-c", SUBREAPER))
    orphan = int(requests.get(f"{server.url}/orphan", timeout=30).text)

    def reaped() -> bool:
        return all(process.pid != orphan for process in processes())

    wait_for(reaped, "end of the orphan")
    assert len(server.wait_workers(1)) == 1


@needs_root
def test_as_pid_1(tmp_path: Path) -> None:
    """As in a container: PID 1 of its own namespace stops when asked, with the right code."""
    unshare = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc"]
    probe = subprocess.run([*unshare, "true"], capture_output=True, timeout=30, check=False)
    if probe.returncode:
        pytest.skip(f"no new PID namespace here: {probe.stderr.decode().strip()}")
    server = Server(
        WSGI, "-w", "2", cwd=tmp_path, command=(*unshare, sys.executable, "-m", "servo")
    )
    server.start()
    try:
        arbiter = wait_for(server.children, "the child of unshare")[0]
        server.wait_log("(?i)worker 2.*ready")
        assert requests.get(f"{server.url}/", timeout=30).text == "ok"
        os.kill(arbiter, signal.SIGTERM)
        assert server.wait_exit() == 0
    finally:
        server.kill_all()
    assert not server.members()


FORKING = """
import os, time

def fork(how):
    child = os.fork()
    if child == 0 and how == "/sleep":
        time.sleep(60)
        os._exit(0)
    if child == 0 and how == "/raise":
        raise RuntimeError("in the child")
    if child == 0 and how == "/exit":
        raise SystemExit(3)
    return child

def wsgi(environ, start_response):
    child = fork(environ["PATH_INFO"])
    start_response("200 OK", [])
    return [str(child).encode()]

async def asgi(scope, receive, send):
    child = fork(scope["path"])
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": str(child).encode()})
"""


@pytest.mark.parametrize(
    ("app", "flags"),
    [
        ("wsgi", ("-k", "sync")),
        ("wsgi", ("-k", "thread")),
        ("wsgi", ("-k", "async")),
        ("asgi", ("--lifespan", "off")),
        ("asgi", ("--lifespan", "off", "--loop", "asyncio")),
    ],
)
def test_child_of_an_app_does_not_hold_the_port(
    serve: Serve, tmp_path: Path, app: str, flags: tuple[str, ...]
) -> None:
    """A process that the app forks closes the listener: the port is free after a stop."""
    (tmp_path / "forking.py").write_text(FORKING)
    server = serve(f"forking:{app}", *flags, "-w", "1")
    child = int(requests.get(f"{server.url}/sleep", timeout=30).text)
    try:
        server.signal(signal.SIGTERM)
        assert server.wait_exit() == 0
        assert alive(child)
        with socket.create_server(("127.0.0.1", server.port)):
            pass
    finally:
        os.kill(child, signal.SIGKILL)


@pytest.mark.parametrize("worker_class", ["sync", "thread", "async"])
@pytest.mark.parametrize("how", ["return", "raise", "exit"])
def test_a_child_that_comes_back_from_the_app_ends(
    serve: Serve, tmp_path: Path, worker_class: str, how: str
) -> None:
    """Only the parent answers; what came back is no second worker."""
    (tmp_path / "forking.py").write_text(FORKING)
    server = serve("forking:wsgi", "-k", worker_class, "-w", "1")
    workers = server.wait_workers(1)
    for _ in range(3):
        child = int(requests.get(f"{server.url}/{how}", timeout=30).text)
        assert child > 0
        # Nobody reaps it: that is the application's.
        wait_for(lambda pid=child: not alive(pid), "the end of the child")
    if how == "raise":
        server.wait_log("RuntimeError: in the child")
    assert server.wait_workers(1) == workers


@pytest.mark.parametrize("own", ["", "gc.set_threshold(900, 5, 5)"])
def test_the_collector_is_tuned_unless_the_app_has_done_so(
    serve: Serve, tmp_path: Path, own: str
) -> None:
    (tmp_path / "frozen.py").write_text(
        f"import gc, json\n{own}\n"
        "def app(environ, start_response):\n"
        "    start_response('200 OK', [])\n"
        "    facts = [gc.get_threshold(), gc.get_freeze_count()]\n"
        "    return [json.dumps(facts).encode()]\n"
    )
    server = serve("frozen:app", "-w", "1")
    threshold, frozen = requests.get(server.url, timeout=30).json()
    assert threshold == ([900, 5, 5] if own else [2_000, 20, 20])
    assert frozen > 1000
