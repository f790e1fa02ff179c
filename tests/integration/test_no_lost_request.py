"""Reloads, scaling and recycling under load lose no request; a stop answers all sent ones."""

from __future__ import annotations

import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from integration import releases
from integration.conftest import CLASSES
from integration.load import EVERY_KIND, Load, read_response
from integration.server import Server, wait_for

pytestmark = pytest.mark.slow

Serve = Callable[..., Server]
RAW = {"raw-kept": 2, "raw-fresh": 2}


def start(serve: Serve, tmp_path: Path, worker_class: str, *args: str, workers: int = 2) -> Server:
    releases.deploy(tmp_path, releases.good(worker_class, "1", slow_import_s=0.3))
    flags = CLASSES[worker_class][1]
    return serve("release:app", *flags, "-w", str(workers), *args, ready=workers)


def stop_under_load(server: Server, path: str = "/?s=0.05") -> None:
    """TERM: every request that was wholly sent before it is answered."""
    with Load(server.port, RAW, path) as load:
        load.wait_answers(40)
        asked_at = time.monotonic()
        server.signal(signal.SIGTERM)
        assert server.wait_exit() == 0
    lost = [f for f in load.failures if f.sent_at is not None and f.sent_at < asked_at]
    assert lost == []


def test_reloads_and_scaling(serve: Serve, tmp_path: Path, worker_class: str) -> None:
    server = start(serve, tmp_path, worker_class)
    with Load(server.port, EVERY_KIND) as load:
        load.wait_answers(50)
        for version in ("2", "3", "4"):
            old = server.worker_pids()
            releases.deploy(tmp_path, releases.good(worker_class, version, slow_import_s=0.3))
            server.signal(signal.SIGHUP)
            server.wait_replaced(old)
            load.wait_answers(50)
        for signum, count in [
            (signal.SIGTTIN, 3),
            (signal.SIGTTIN, 4),
            (signal.SIGTTOU, 3),
            (signal.SIGTTOU, 2),
        ]:
            server.signal(signum)
            server.wait_workers(count)
            load.wait_answers(50)
    assert load.failures == []
    assert set(load.bodies) == {b"1", b"2", b"3", b"4"}
    stop_under_load(server)


def test_recycling(serve: Serve, tmp_path: Path, worker_class: str) -> None:
    server = start(serve, tmp_path, worker_class, "--max-requests", "50")
    with Load(server.port, EVERY_KIND) as load:
        seen = set(server.worker_pids())

        def replaced() -> bool:
            seen.update(server.ready_pids())
            return len(seen) >= 8

        wait_for(replaced, "eight workers one after another")
    assert load.failures == []
    stop_under_load(server)


def test_signals_in_a_row_are_all_served(serve: Serve, tmp_path: Path, worker_class: str) -> None:
    """A second wish arrives while the first is being carried out."""
    server = start(serve, tmp_path, worker_class)
    old = server.worker_pids()
    with Load(server.port, EVERY_KIND) as load:
        for signum in (
            signal.SIGHUP,
            signal.SIGTTIN,
            signal.SIGHUP,
            signal.SIGTTOU,
            signal.SIGTTIN,
        ):
            server.signal(signum)
            load.wait_answers(10)
        server.wait_replaced(old, count=3)
        load.wait_answers(20)
    assert load.failures == []


def test_terminated_worker_is_replaced_first(
    serve: Serve, tmp_path: Path, worker_class: str
) -> None:
    server = start(serve, tmp_path, worker_class)
    with Load(server.port, EVERY_KIND) as load:
        load.wait_answers(20)
        first, second = server.worker_pids()
        server.signal_worker(first, signal.SIGTERM)
        wait_for(lambda: first not in server.worker_pids(), "end of the terminated worker")
        assert second in server.wait_workers(2)
        load.wait_answers(20)
    assert load.failures == []


def test_stop_answers_what_waits_in_the_queue(
    serve: Serve, tmp_path: Path, worker_class: str
) -> None:
    """One worker is busy; the requests behind it have been sent but not accepted."""
    server = start(serve, tmp_path, worker_class, workers=1)
    clients = [socket.create_connection(("127.0.0.1", server.port), timeout=30) for _ in range(10)]
    for client in clients:
        client.sendall(b"GET /?s=0.2 HTTP/1.1\r\nHost: localhost\r\n\r\n")
    server.signal(signal.SIGTERM)
    for client in clients:
        with client:
            head, body = read_response(client)
            assert (head.split(b" ")[1], body) == (b"200", b"1")
    assert server.wait_exit() == 0


def test_stop_answers_pipelined_requests(serve: Serve, tmp_path: Path, worker_class: str) -> None:
    server = start(serve, tmp_path, worker_class, "--keep-alive", "10", workers=1)
    with socket.create_connection(("127.0.0.1", server.port), timeout=30) as client:
        client.sendall(b"GET /?s=0.2 HTTP/1.1\r\nHost: localhost\r\n\r\n" * 4)
        server.signal(signal.SIGTERM)
        data = b"".join(iter(lambda: client.recv(65536), b""))
    assert data.count(b"HTTP/1.1 200") == 4
    assert data.lower().count(b"connection: close") == 1
    assert server.wait_exit() == 0


def test_idle_connection_is_told_before_it_is_closed(
    serve: Serve, tmp_path: Path, worker_class: str
) -> None:
    """A retired worker answers the next request of an idle connection, and says `close` with it."""
    server = start(serve, tmp_path, worker_class, "--keep-alive", "30", workers=1)
    old = server.worker_pids()
    with socket.create_connection(("127.0.0.1", server.port), timeout=30) as client:
        request = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"
        client.sendall(request)
        head, _ = read_response(client)
        assert b"connection: close" not in head.lower()
        server.signal(signal.SIGHUP)
        wait_for(lambda: len(server.worker_pids()) > 1, "a successor")

        def told() -> bool:
            client.sendall(request)
            head, body = read_response(client)
            assert (head.split(b" ")[1], body) == (b"200", b"1")
            return b"connection: close" in head.lower()

        wait_for(told, "an answer that says close")
        assert client.recv(1) == b""
    server.wait_replaced(old)
