"""The reader of the server's output stops: `tee` in Ctrl-Z, a hanging container runtime, a FIFO."""

from __future__ import annotations

import fcntl
import os
import signal
import socket
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from integration.conftest import CLASSES, class_args
from integration.server import APPS, Server, alive, environment, free_port, wait_for

pytestmark = pytest.mark.slow

Serve = Callable[..., Server]
# So that each request writes over 1,000 bytes to the access log.
LONG = "x" * 1000


class Stopped:
    """A server whose standard output and error lead where nobody reads."""

    def __init__(self, args: tuple[str, ...], out: int, directory: Path) -> None:
        self.port = free_port()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "servo", *args, "--bind", f"127.0.0.1:{self.port}"],
            cwd=directory,
            env=environment(),
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
            start_new_session=True,
        )

    def get(self) -> bytes:
        url = f"http://127.0.0.1:{self.port}/?{LONG}"
        with urllib.request.urlopen(url, timeout=30) as response:
            return bytes(response.read())

    def wait_ready(self) -> None:
        def listens() -> bool:
            assert self.process.poll() is None
            with socket.socket() as probe:
                return probe.connect_ex(("127.0.0.1", self.port)) == 0

        wait_for(listens, "a listening server")

    def end(self, signum: int) -> int:
        self.process.send_signal(signum)
        return self.process.wait(30)

    def kill(self) -> None:
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait(30)


@pytest.fixture(params=["pipe", "socket", "terminal"])
def full(request: pytest.FixtureRequest) -> Iterator[int]:
    """The writing end of something that is read by nobody and has little room."""
    if request.param == "pipe":
        reader, writer = os.pipe()
        fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, 4096)
    elif request.param == "socket":
        ours, theirs = socket.socketpair()
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        reader, writer = ours.detach(), theirs.detach()
    else:
        reader, writer = os.openpty()
    yield writer
    os.close(reader)
    os.close(writer)


@pytest.mark.parametrize("worker_class", CLASSES)
@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGQUIT])
def test_workers_and_arbiter_go_on(
    tmp_path: Path, worker_class: str, full: int, signum: int
) -> None:
    # What the application prints by itself may hold its worker up, within this limit.
    limit = ("--graceful-timeout", "2")
    args = (*class_args(worker_class), "-w", "2", "--access-logfile", "-", *limit)
    server = Stopped(args, full, tmp_path)
    try:
        server.wait_ready()
        for _ in range(200):
            assert server.get() == b"ok"
        server.process.send_signal(signal.SIGHUP)
        for _ in range(50):
            assert server.get() == b"ok"
        assert server.end(signum) == 0
    finally:
        server.kill()


@pytest.mark.parametrize("worker_class", CLASSES)
def test_an_application_that_blocks_in_its_own_print_is_ended_by_timeout(
    tmp_path: Path, worker_class: str, full: int
) -> None:
    interface = "asgi" if worker_class == "async" else "wsgi"
    app = f"{APPS / 'stuck_app'}.py:{interface}"
    # A `thread` worker beats while one of its threads is stuck: another limit is for that.
    limits = ("--timeout", "1", "--request-timeout", "1", "--graceful-timeout", "1")
    server = Stopped((app, *CLASSES[worker_class][1], "-w", "1", *limits), full, tmp_path)
    try:
        server.wait_ready()
        with socket.create_connection(("127.0.0.1", server.port)) as client:
            client.sendall(b"GET /print HTTP/1.1\r\nHost: x\r\n\r\n")
            wait_for((tmp_path / "begun").exists, "the print")
            assert server.get()
        assert server.end(signal.SIGTERM) == 0
    finally:
        server.kill()


PRINTING = """
def when_ready(server):
    for _ in range(100):
        print("x" * 1000, flush=True)

def pre_fork(server, worker):
    print("y" * 100_000)
"""


def test_a_hook_that_prints_does_not_hold_the_arbiter_up(tmp_path: Path, full: int) -> None:
    (tmp_path / "conf.py").write_text(PRINTING)
    server = Stopped((*class_args("sync"), "-c", "conf.py"), full, tmp_path)
    try:
        server.wait_ready()
        assert server.get() == b"ok"
        server.process.send_signal(signal.SIGTTIN)
        assert server.get() == b"ok"
        assert server.end(signal.SIGTERM) == 0
    finally:
        server.kill()


# The handlers hold the streams that are there before the arbiter replaces its own.
LOGCONFIG_DICT = """
logconfig_dict = {"version": 1, "root": {"handlers": ["console", "error_console"]}}
"""
LOGCONFIG_FILE = """
logconfig = "log.ini"
"""
LOG_INI = """
[loggers]
keys=root,error
[handlers]
keys=out,err
[formatters]
keys=
[logger_root]
handlers=out
[logger_error]
qualname=gunicorn.error
handlers=out,err
[handler_out]
class=StreamHandler
args=(sys.stdout,)
[handler_err]
class=StreamHandler
args=(sys.stderr,)
"""
LOGGING = """
import logging
from pathlib import Path

def when_ready(server):
    for _ in range(100):
        logging.error("x" * 1000)

def pre_fork(server, worker):
    for _ in range(20):
        logging.error("y" * 100_000)

def on_reload(server):
    for _ in range(20):
        logging.error("z" * 100_000)
    Path("reloaded").touch()

def on_exit(server):
    logging.error("z" * 1000)
"""


@pytest.mark.parametrize("config", [LOGCONFIG_DICT, LOGCONFIG_FILE], ids=["dict", "file"])
def test_a_handler_of_logconfig_does_not_hold_the_arbiter_up(
    tmp_path: Path, full: int, config: str
) -> None:
    (tmp_path / "log.ini").write_text(LOG_INI)
    (tmp_path / "conf.py").write_text(config + LOGGING)
    server = Stopped((*class_args("sync"), "-c", "conf.py"), full, tmp_path)
    try:
        server.wait_ready()
        assert server.get() == b"ok"
        server.process.send_signal(signal.SIGTTIN)
        server.process.send_signal(signal.SIGHUP)
        wait_for((tmp_path / "reloaded").exists, "the reload")
        assert server.get() == b"ok"
        assert server.end(signal.SIGTERM) == 0
    finally:
        server.kill()


@pytest.mark.parametrize("worker_class", CLASSES)
def test_what_was_lost_is_said_once_there_is_a_reader(tmp_path: Path, worker_class: str) -> None:
    reader, writer = os.pipe()
    server = Stopped((*class_args(worker_class), "--access-logfile", "-"), writer, tmp_path)
    os.close(writer)
    text = b""
    try:
        server.wait_ready()
        for _ in range(1500):
            server.get()
        os.set_blocking(reader, False)

        def says() -> bool:
            nonlocal text
            try:
                text += os.read(reader, 1 << 20)
            except BlockingIOError:
                server.get()
            return b"lines were lost" in text

        wait_for(says, "a line that says how many were lost")
        reading = threading.Thread(target=drain, args=(reader,))
        reading.start()
        assert server.end(signal.SIGTERM) == 0
        reading.join(30)
    finally:
        server.kill()
        os.close(reader)


def drain(fd: int) -> None:
    os.set_blocking(fd, True)
    while os.read(fd, 1 << 20):
        pass


def test_a_fifo_that_nobody_reads(serve: Serve, tmp_path: Path) -> None:
    """At USR1 and HUP the old log stays, with a warning; at the start it is an error."""
    log = tmp_path / "error.log"
    server = serve(*class_args("sync"), "--error-logfile", str(log), ready=0)
    wait_for(lambda: log.exists() and "is ready" in log.read_text(), "a ready worker")
    log.rename(tmp_path / "old.log")
    os.mkfifo(log)
    old = tmp_path / "old.log"
    server.signal(signal.SIGUSR1)
    wait_for(lambda: "a FIFO that no process reads" in old.read_text(), "the warning")
    server.signal(signal.SIGHUP)
    wait_for(lambda: "(SIGHUP) finished" in old.read_text(), "the end of the reload")
    assert alive(server.pid)
    late = Stopped((*class_args("sync"), "--error-logfile", str(log)), subprocess.DEVNULL, tmp_path)
    assert late.process.wait(30) == 1
