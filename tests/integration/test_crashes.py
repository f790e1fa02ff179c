"""Workers that die or hang are replaced, with the reason in the log; other workers continue."""

from __future__ import annotations

import contextlib
import signal
import socket
from collections.abc import Callable

import pytest
import requests

from integration.conftest import class_args
from integration.load import Load
from integration.server import APPS, Server, wait_for

pytestmark = pytest.mark.slow

Serve = Callable[..., Server]
WSGI = f"{APPS / 'wsgi_app.py'}:app"
ASGI = f"{APPS / 'asgi_app.py'}:app"


def ask_and_forget(server: Server, path: str) -> socket.socket:
    """Send a request whose answer nobody expects; the caller closes the socket."""
    client = socket.create_connection(("127.0.0.1", server.port), timeout=30)
    client.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
    return client


def test_killed_worker_is_replaced(serve: Serve, worker_class: str) -> None:
    server = serve(*class_args(worker_class), "-w", "3", ready=3)
    victim, *others = server.wait_workers(3)
    mark = server.mark()
    server.signal_worker(victim, signal.SIGKILL)
    server.wait_log(rf"{victim}.*(SIGKILL|signal 9)", mark)
    survivors = server.wait_replaced([victim], count=3)
    assert set(others) < set(survivors)
    with Load(server.port, {"raw-fresh": 2, "raw-kept": 2}) as load:
        load.wait_answers(40)
    assert load.failures == []


def test_endless_sync_request(serve: Serve) -> None:
    server = serve(WSGI, "-k", "sync", "-w", "1", "--timeout", "1")
    old, mark = server.wait_workers(1), server.mark()
    with ask_and_forget(server, "/hang"):
        server.wait_log(r"no heartbeat", mark)
        server.wait_log(r"wsgi_app\.py.*\n?.*\bhang_forever\b", mark)
        server.wait_replaced(old)
    assert requests.get(f"{server.url}/", timeout=30).text == "ok"


def test_endless_sync_request_meets_the_request_timeout(serve: Serve) -> None:
    server = serve(WSGI, "-k", "sync", "-w", "1", "--request-timeout", "1")
    old, mark = server.wait_workers(1), server.mark()
    with ask_and_forget(server, "/hang"):
        server.wait_log(r"\bhang_forever\b", mark)
        server.wait_log(r"(?i)request.?timeout", mark)
        server.wait_replaced(old)
    assert requests.get(f"{server.url}/", timeout=30).text == "ok"


def test_deadlocked_thread(serve: Serve) -> None:
    server = serve(WSGI, "-k", "thread", "--threads", "2", "-w", "1", "--request-timeout", "1")
    old, mark = server.wait_workers(1), server.mark()
    assert requests.get(f"{server.url}/deadlock", timeout=30).status_code == 504
    server.wait_log(r"wsgi_app\.py.*\n?.*\bdeadlock\b", mark)
    server.wait_replaced(old)
    assert requests.get(f"{server.url}/", timeout=30).text == "ok"


def test_blocked_event_loop(serve: Serve) -> None:
    server = serve(ASGI, "-w", "1", "--timeout", "1")
    old, mark = server.wait_workers(1), server.mark()
    with contextlib.ExitStack() as stack:
        stack.enter_context(ask_and_forget(server, "/wait"))
        server.wait_log("a request waits", mark)
        stack.enter_context(ask_and_forget(server, "/block"))
        server.wait_log(r"no heartbeat", mark)
        server.wait_log(r"asgi_app\.py.*\n?.*\bblock\b", mark)
        server.wait_log(r"asgi_app\.py.*\n?.*\bwait_forever\b", mark)  # of asyncio's tasks
        server.wait_replaced(old)
    assert requests.get(f"{server.url}/", timeout=30).text == "ok"


def test_endless_async_request(serve: Serve) -> None:
    """Only the task is ended; the worker lives on."""
    server = serve(ASGI, "-w", "1", "--request-timeout", "1")
    old = server.wait_workers(1)
    assert requests.get(f"{server.url}/wait", timeout=30).status_code == 504
    assert requests.get(f"{server.url}/", timeout=30).text == "ok"
    assert server.wait_workers(1) == old


def test_hang_of_one_worker_leaves_the_other_alone(serve: Serve) -> None:
    server = serve(ASGI, "-w", "2", "--timeout", "2", ready=2)
    old, mark = set(server.wait_workers(2)), server.mark()
    with ask_and_forget(server, "/block"), Load(server.port, {"raw-fresh": 2}) as load:
        server.wait_log(r"no heartbeat", mark)
        wait_for(lambda: len(set(server.wait_workers(2)) - old) == 1, "one new worker")
        load.wait_answers(20)
    assert len(old & set(server.worker_pids())) == 1


def test_app_error_is_a_500_and_the_worker_lives(serve: Serve, worker_class: str) -> None:
    server = serve(*class_args(worker_class), "-w", "1")
    old, mark = server.wait_workers(1), server.mark()
    assert requests.get(f"{server.url}/fail", timeout=30).status_code == 500
    server.wait_log("RuntimeError: the app failed on purpose", mark)
    assert requests.get(f"{server.url}/", timeout=30).text == "ok"
    assert server.wait_workers(1) == old


def test_workers_end_when_the_arbiter_is_killed(serve: Serve, worker_class: str) -> None:
    """They notice at once, and answer what was sent first."""
    server = serve(*class_args(worker_class), "-w", "2", ready=2)
    with ask_and_forget(server, "/slow?s=0.5") as client:
        server.signal(signal.SIGKILL)
        assert client.recv(65536).startswith(b"HTTP/1.1 200")
    assert server.wait_exit() == -signal.SIGKILL
    wait_for(lambda: not server.members(), "end of the orphaned workers")
