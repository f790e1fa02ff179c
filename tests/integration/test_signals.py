"""Each signal: to the arbiter, to a worker, and to all processes, as `pkill` and Ctrl-C send it."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Callable
from pathlib import Path

import pytest
import requests

from integration.conftest import class_args
from integration.load import read_response
from integration.server import APPS, Server, wait_for

pytestmark = pytest.mark.slow

Serve = Callable[..., Server]
WSGI = f"{APPS / 'wsgi_app.py'}:app"


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT, signal.SIGQUIT])
def test_stop_signals_end_with_zero(serve: Serve, worker_class: str, signum: int) -> None:
    server = serve(*class_args(worker_class), "-w", "2", ready=2)
    assert server.stop(signum) == 0
    assert "Traceback" not in server.log()


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGQUIT])
def test_quick_stop_does_not_wait_for_requests(
    serve: Serve, worker_class: str, signum: int
) -> None:
    server = serve(*class_args(worker_class), "-w", "1")
    with socket.create_connection(("127.0.0.1", server.port), timeout=30) as client:
        client.sendall(b"GET /slow?s=3600 HTTP/1.1\r\nHost: localhost\r\n\r\n")
        wait_for(lambda: accepted(server), "the request in a worker")
        assert server.stop(signum) == 0


def accepted(server: Server) -> bool:
    """Whether a worker has taken the only connection: then no server socket waits in the queue."""
    local = f"0100007F:{server.port:04X}"
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        fields = line.split()
        if fields[1] == local and fields[3] == "0A":
            return int(fields[4].split(":")[1], 16) == 0  # the accept queue of the listener
    return False


def test_second_stop_signal_makes_a_graceful_stop_quick(serve: Serve) -> None:
    server = serve(WSGI, "-k", "thread", "--threads", "2", "-w", "1", "--graceful-timeout", "3600")
    with socket.create_connection(("127.0.0.1", server.port), timeout=30) as client:
        client.sendall(b"GET /slow?s=3600 HTTP/1.1\r\nHost: localhost\r\n\r\n")
        wait_for(lambda: accepted(server), "the request in a worker")
        server.signal(signal.SIGTERM)
        server.wait_log("(?i)stop|shut|TERM")
        assert server.stop(signal.SIGINT) == 0


def test_graceful_timeout_ends_what_does_not_end(serve: Serve, worker_class: str) -> None:
    server = serve(*class_args(worker_class), "-w", "1", "--graceful-timeout", "1")
    with socket.create_connection(("127.0.0.1", server.port), timeout=30) as client:
        client.sendall(b"GET /slow?s=3600 HTTP/1.1\r\nHost: localhost\r\n\r\n")
        wait_for(lambda: accepted(server), "the request in a worker")
        assert server.stop(signal.SIGTERM) == 0
    server.wait_log(r"still running 1(\.\d+)? s after")


@pytest.mark.parametrize("kind", ["thread", "async"])
def test_what_holds_up_a_stop_is_named_before_it_is_cut(serve: Serve, kind: str) -> None:
    """Also an application that goes on though its client has left."""
    server = serve(*class_args(kind), "-w", "1", "--graceful-timeout", "3")
    with socket.create_connection(("127.0.0.1", server.port), timeout=30) as client:
        client.sendall(b"GET /slow?s=3600 HTTP/1.1\r\nHost: localhost\r\n\r\n")
        wait_for(lambda: accepted(server), "the request in a worker")
    assert server.stop(signal.SIGTERM) == 0
    server.wait_log(r"almost over, and these are unfinished: GET '/slow\?s=3600' \(\d")


def test_ttin_and_ttou_never_go_below_one(serve: Serve) -> None:
    server = serve(WSGI, "-w", "1")
    server.signal(signal.SIGTTOU)
    server.signal(signal.SIGTTIN)
    server.wait_workers(2)
    server.signal(signal.SIGTTOU)
    server.wait_workers(1)
    server.signal(signal.SIGTTOU)
    server.wait_log("(?i)at least one|only worker|last worker|already")
    assert len(server.wait_workers(1)) == 1


def test_winch_drains_the_workers_and_keeps_the_sockets(serve: Serve) -> None:
    server = serve(WSGI, "-w", "2", ready=2)
    server.signal(signal.SIGWINCH)
    wait_for(lambda: not server.worker_pids(), "a server without workers")
    with socket.create_connection(("127.0.0.1", server.port), timeout=30) as client:
        client.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
        server.signal(signal.SIGHUP)
        assert read_response(client)[1] == b"ok"
    server.wait_workers(2)


def test_signals_that_a_worker_ignores(serve: Serve, worker_class: str) -> None:
    server = serve(*class_args(worker_class), "-w", "2", ready=2)
    old = server.wait_workers(2)
    for name in ("SIGHUP", "SIGINT", "SIGUSR2", "SIGTTIN", "SIGTTOU"):
        for pid in old:
            server.signal_worker(pid, getattr(signal, name))
    # What the arbiter is asked next, it does after whatever the signals might have set off.
    server.signal(signal.SIGTTIN)
    assert set(old) < set(server.wait_workers(3))


def test_signal_to_every_process_at_once(serve: Serve, worker_class: str) -> None:
    """`pkill -HUP servo` is one reload, and Ctrl-C one stop."""
    server = serve(*class_args(worker_class), "-w", "2", ready=2)
    old = server.wait_workers(2)
    os.killpg(server.pid, signal.SIGHUP)
    server.wait_replaced(old)
    assert requests.get(f"{server.url}/", timeout=30).text == "ok"
    os.killpg(server.pid, signal.SIGINT)
    assert server.wait_exit() == 0


def test_term_to_every_process_at_once(serve: Serve, worker_class: str) -> None:
    """systemd's KillMode=control-group: the requests under way are answered all the same."""
    server = serve(*class_args(worker_class), "-w", "2", ready=2)
    with socket.create_connection(("127.0.0.1", server.port), timeout=30) as client:
        client.sendall(b"GET /slow?s=0.5 HTTP/1.1\r\nHost: localhost\r\n\r\n")
        wait_for(lambda: accepted(server), "the request in a worker")
        os.killpg(server.pid, signal.SIGTERM)
        assert read_response(client)[1] == b"slow"
    assert server.wait_exit() == 0


def test_stop_while_booting(serve: Serve, tmp_path: Path) -> None:
    (tmp_path / "slow_import.py").write_text("import time\ntime.sleep(3600)\n")
    server = serve("slow_import:app", "-w", "2", ready=0)
    wait_for(lambda: len(server.worker_pids()) == 2, "two booting workers")
    assert server.stop(signal.SIGTERM) == 0


def test_stop_during_a_reload(serve: Serve, tmp_path: Path) -> None:
    app = tmp_path / "changing.py"
    app.write_text(f"import runpy\napp = runpy.run_path({str(APPS / 'wsgi_app.py')!r})['app']\n")
    server = serve("changing:app", "-w", "2", ready=2)
    app.write_text("import time\ntime.sleep(3600)\n")
    server.signal(signal.SIGHUP)
    wait_for(lambda: len(server.worker_pids()) == 3, "a third worker, which boots")
    assert server.stop(signal.SIGTERM) == 0
