"""Hooks from public gunicorn configurations: all attributes that they use exist."""

from __future__ import annotations

import signal
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from integration import raw
from integration.conftest import class_args
from integration.server import APPS, alive, wait_for

if TYPE_CHECKING:
    from integration.conftest import Serve

pytestmark = pytest.mark.slow


def configure(path: Path, text: str) -> None:
    (path / "gunicorn.conf.py").write_text(
        "import os\n"
        "def say(*words):\n"
        "    os.write(1, (' '.join(map(str, words)) + chr(10)).encode())\n" + textwrap.dedent(text)
    )


EVERYTHING = """
workers = 1
raw_env = ["SHOP=open"]

def look(name, object, *names):
    for each in names:
        value = getattr(object, each)
        say(name, each, value() if each == "notify" else value)

def on_starting(server):
    say("starting", server.address, server.LISTENERS, server.num_workers, server.cfg.preload_app)

def when_ready(server):
    look("server", server, "pid", "address", "num_workers", "WORKERS", "timeout", "proc_name",
         "worker_age", "master_pid", "master_name")
    say("listeners", [lnr.getsockname()[0] for lnr in server.LISTENERS], *server.LISTENERS)
    cfg = server.app.cfg
    say("cfg", cfg.settings["threads"].value, cfg.settings["workers"].get(), cfg.address,
        cfg.is_ssl, cfg.worker_class_str, cfg.env, cfg.asgi_lifespan, cfg.uid, cfg.wsgi_app[-3:])
    server.mine = "kept"
    try:
        server.app.wsgi()
    except RuntimeError as error:
        say("refused:", error)

def pre_fork(server, worker):
    worker._worker_id = worker.age + 100
    look("pre_fork", worker, "pid", "ppid", "age", "alive", "booted", "timeout")

def post_fork(server, worker):
    wsgi = getattr(worker, "wsgi", "none")
    say("post_fork", worker._worker_id, worker.alive, worker.app.callable, wsgi)
    worker.gauge = 7

def post_worker_init(worker):
    same = worker.app.wsgi() is worker.wsgi is worker.app.callable
    say("init", same, worker.gauge, worker._worker_id)
    say("parent", worker.ppid == os.getppid(), worker.pid == os.getpid(), worker)
    look("worker", worker, "alive", "booted", "aborted", "timeout", "nr", "notify", "age")
    say("sockets", [sock.getsockname()[0] for sock in worker.sockets])
    try:
        worker.tmp
    except AttributeError as error:
        say("missing:", error)

def pre_request(worker, req):
    say("request", req.method, req.path, req.query, req.uri, dict(req.headers)["HOST"], req.version)

def post_request(worker, req, environ, resp):
    names = sorted(name.lower() for name, _ in resp.headers)
    say("response", resp.status, resp.status_code, names[:1], resp.sent, worker.nr)

def worker_exit(server, worker):
    say("exit", worker.gauge, worker.alive)

def child_exit(server, worker):
    say("child_exit", worker.pid > 1, worker._worker_id, worker.alive, server.mine)
"""


def test_what_hooks_look_at_is_there(serve: Serve, tmp_path: Path, worker_class: str) -> None:
    configure(tmp_path, EVERYTHING)
    server = serve(*class_args(worker_class))
    address = f"('127.0.0.1', {server.port})"
    raw.talk(server, raw.request("/?a=1"))
    assert server.stop() == 0
    kind = "gthread" if worker_class == "gthread" else worker_class
    for line in (
        f"starting [{address}] [] 1 False",
        f"server address [{address}]",
        "server num_workers 1",
        "server WORKERS {}",
        f"listeners ['127.0.0.1'] http://127.0.0.1:{server.port}",
        f"[{address}] False {kind} {{'SHOP': 'open'}} auto None app",
        "refused: the arbiter imports no application",
        "pre_fork pid None",
        "post_fork 101 True None none",
        "init True 7 101",
        "parent True True <Worker ",
        "worker alive True",
        "worker booted True",
        "worker nr 0",
        "sockets ['127.0.0.1']",
        "missing: a hook's worker has no 'tmp' in Servo; it has ",
        "request GET / a=1 /?a=1 localhost (1, 1)",
        "response 200 OK 200 ['content-",
        "exit 7 False",
        "child_exit True 101 False kept",
    ):
        assert line in server.log()


REPLACING = """
def post_fork(server, worker):
    plain = worker.app.wsgi()
    def wrapped(environ, start_response):
        say("wrapped", environ["PATH_INFO"])
        return plain(environ, start_response)
    worker.app.callable = wrapped
"""


@pytest.mark.parametrize("kind", ["sync", "thread"])
def test_a_hook_puts_another_application_in_its_place(
    serve: Serve, tmp_path: Path, kind: str
) -> None:
    configure(tmp_path, REPLACING)
    server = serve(*class_args(kind), "-w", "1")
    assert raw.status(raw.talk(server, raw.request("/"))) == 200
    assert "wrapped /" in server.log()


def test_a_hook_that_ends_its_worker_has_it_replaced(
    serve: Serve, tmp_path: Path, worker_class: str
) -> None:
    configure(
        tmp_path,
        """
        def post_request(worker, req, environ, resp):
            worker.alive = False
            say("alive", worker.alive)
        """,
    )
    server = serve(*class_args(worker_class), "-w", "1")
    pids = server.worker_pids()
    assert raw.status(raw.talk(server, raw.request("/"))) == 200
    wait_for(lambda: not alive(pids[0]), "the end of the worker")
    server.wait_workers(1)
    assert "alive False" in server.log()


def test_a_name_that_is_nowhere_is_an_error_that_helps(serve: Serve, tmp_path: Path) -> None:
    configure(tmp_path, "def post_worker_init(worker):\n    worker.reloader\n")
    server = serve(f"{APPS / 'wsgi_app.py'}:app", "-w", "1", ready=0)
    assert server.wait_exit() == 3
    assert "a hook's worker has no 'reloader' in Servo; it has aborted, age, alive" in server.log()


def test_worker_int(serve: Serve, tmp_path: Path, worker_class: str) -> None:
    configure(
        tmp_path,
        """
        import sys

        def worker_int(worker):
            worker.log.info("interrupted %s %s", worker.pid, worker.alive)
            sys.exit(0)
        """,
    )
    server = serve(*class_args(worker_class), "-w", "1")
    server.signal(signal.SIGINT)
    assert server.wait_exit() == 0
    assert "interrupted" in server.log()
