"""The ends of HTTP/2 connections: time limits, limits of requests, reloads, stops."""

from __future__ import annotations

import signal
import ssl
from pathlib import Path

import pytest
from authority import Authority, Files
from h2frames import (
    END_STREAM,
    GET,
    HEADERS,
    NO_ERROR,
    POST,
    block,
    frame,
    ping,
)

from integration import releases
from integration.conftest import Serve
from integration.h2_client import ASGI, H2C, Client, H2Load, offers_h2
from integration.server import assert_no_noise

pytestmark = pytest.mark.slow

# --- time -----------------------------------------------------------------------------------------


def test_time_limits_of_one_stream(serve: Serve) -> None:
    server = serve(*ASGI, "--request-timeout", "1", "--body-timeout", "1")
    with Client(server.port) as client:
        numbers = [client.ask("/wait"), client.ask("/watch")]
        body = client.ask_with([*POST[:3], (":path", "/echo")], end=False)
        assert client.answer(numbers[0]).status == 504
        assert client.answer(numbers[1]).reset is not None
        assert client.answer(body).status in (408, 504)
        assert client.get("/").body == b"ok"


def test_a_head_that_does_not_end(serve: Serve) -> None:
    server = serve(*ASGI, "--header-timeout", "1")
    with Client(server.port) as client:
        client.send(frame(HEADERS, END_STREAM, 1, block(GET)[:9]))
        client.wait_closed()
        assert client.goaways
    with Client(server.port) as silent:
        silent.wait_closed()
        assert silent.goaways == [(0, NO_ERROR)]


def test_an_idle_connection_is_said_goodbye(serve: Serve) -> None:
    server = serve(*ASGI, "--keep-alive", "1")
    with Client(server.port) as client:
        assert client.get("/").body == b"ok"
        client.wait_closed()
        assert client.goaways == [(1, NO_ERROR)]


def test_requests_of_a_connection_may_be_limited(serve: Serve) -> None:
    server = serve(*ASGI, "--keepalive-requests", "3")
    with Client(server.port) as client:
        numbers = [client.ask("/slow?s=0.2") for _ in range(3)]
        for number in numbers:
            assert client.answer(number).status == 200
        client.wait_closed()
        assert client.goaways[-1] == (5, NO_ERROR)


# --- reloads and stops ----------------------------------------------------------------------------


@pytest.mark.parametrize("worker_class", ["asgi", "wsgi"])
@pytest.mark.parametrize("tls", [False, True], ids=["h2c", "tls"])
def test_a_reload_loses_no_stream(
    serve: Serve,
    tmp_path: Path,
    authority: Authority,
    files: Files,
    worker_class: str,
    tls: bool,
) -> None:
    kind = "async" if worker_class == "asgi" else "thread"
    releases.deploy(tmp_path, releases.good(kind, "1"))
    flags = (*H2C, *(files.flags if tls else ()))
    server = serve("release:app", "-k", "async", "--threads", "8", "-w", "2", *flags, ready=2)
    context = None
    if tls:
        context = offers_h2(ssl.create_default_context(cafile=str(authority.path)))
    with H2Load(server.port, "/?s=0.05", context=context) as load:
        load.wait_answers(30)
        for version in ("2", "3", "4"):
            old = server.worker_pids()
            releases.deploy(tmp_path, releases.good(kind, version))
            server.signal(signal.SIGHUP)
            server.wait_replaced(old)
            load.wait_answers(30)
        server.signal(signal.SIGTTIN)
        server.wait_workers(3)
        server.signal(signal.SIGTTOU)
        server.wait_workers(2)
        load.wait_answers(30)
    assert load.failures == []
    assert load.goaways >= 6
    assert set(load.bodies) == {b"1", b"2", b"3", b"4"}
    assert_no_noise(server)


def test_a_drain_in_frames(serve: Serve) -> None:
    """GOAWAY with the greatest number first; then, once that was seen, with the last one."""
    server = serve(*ASGI)
    old = server.worker_pids()
    with Client(server.port, generous=False) as client, Client(server.port) as idle:
        idle.get("/")
        slow = client.ask("/slow?s=1")
        client.wait(lambda: client.settings)
        server.signal(signal.SIGHUP)
        client.wait(lambda: client.goaways, "GOAWAY")
        assert client.goaways == [((1 << 31) - 1, NO_ERROR)]
        crossing = client.ask("/")  # it crosses the GOAWAY
        assert client.answer(crossing).body == b"ok"
        client.wait(lambda: client.pings)
        client.send(ping(client.pings[-1], ack=True))
        client.wait(lambda: len(client.goaways) == 2, "the last GOAWAY")
        assert client.goaways[1] == (crossing, NO_ERROR)
        assert client.answer(slow).body == b"slow"
        client.wait_closed()
        idle.wait_closed()
        assert idle.goaways == [((1 << 31) - 1, NO_ERROR), (1, NO_ERROR)]
    server.wait_replaced(old)


def test_a_silent_idle_connection_is_closed_after_drain_idle(serve: Serve) -> None:
    server = serve(*ASGI, "--drain-idle", "1")
    old = server.worker_pids()
    with Client(server.port, generous=False) as client:
        client.get("/")
        server.signal(signal.SIGHUP)
        client.wait_closed()
        assert client.goaways == [((1 << 31) - 1, NO_ERROR), (1, NO_ERROR)]
    server.wait_replaced(old)


def test_a_stop_answers_what_was_asked(serve: Serve) -> None:
    server = serve(*ASGI)
    with Client(server.port) as client:
        numbers = [client.ask("/slow?s=0.5") for _ in range(10)]
        client.send(ping())
        client.wait(lambda: 6 in client.frames, "an answer to a PING behind them")
        server.signal(signal.SIGTERM)
        for number in numbers:
            assert client.answer(number).body == b"slow"
        client.wait_closed()
    assert server.wait_exit() == 0


def test_a_client_that_says_goodbye_is_answered(serve: Serve) -> None:
    server = serve(*ASGI)
    with Client(server.port) as client:
        number = client.ask("/slow?s=0.3")
        client.send(frame(7, 0, 0, bytes(8)))
        assert client.answer(number).body == b"slow"
        client.wait_closed()
