"""The `sync` worker: one request at a time, in the poller's own thread."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

from unit.workers.fakes import GET, SECOND, BlockingServer, responses

from servo.shared_memory import row_layout

Make = Callable[..., BlockingServer]
Script = Iterator[None]


def test_the_application_runs_in_the_pollers_thread(make_blocking: Make) -> None:
    seen: list[Any] = []

    def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        start_response("200 OK", [])
        row = server.world.row
        seen.append(
            (
                threading.current_thread() is threading.main_thread(),
                environ["wsgi.multithread"],
                row[row_layout.OLDEST_START_NS] == server.clock.ns,
                row[row_layout.IN_FLIGHT],
            )
        )
        return [b"done"]

    server = make_blocking(app)

    def script() -> Script:
        client = server.connect()
        client.send(GET)
        yield
        yield
        assert responses(client.read()) == [(200, b"done")]

    server.run(script())
    assert seen == [(True, False, True, 1)]
    assert server.world.count(row_layout.OLDEST_START_NS) == 0
    assert server.worker.served == 1


def test_a_response_that_goes_out_in_parts_is_a_heartbeat(make_blocking: Make) -> None:
    """While a request runs nothing else beats, and `timeout` would end the worker."""
    beats: list[int] = []

    def app(environ: dict[str, Any], start_response: Any) -> Iterator[bytes]:
        start_response("200 OK", [])
        for _ in range(3):
            server.clock.advance(5)
            yield b"part"
            beats.append(server.world.count(row_layout.BEAT_NS))

    server = make_blocking(app)

    def script() -> Script:
        client = server.connect()
        client.send(GET)
        yield
        yield
        assert responses(client.read()) == [(200, b"part" * 3)]

    start = server.clock.ns
    server.run(script())
    assert beats == [start + seconds * SECOND for seconds in (5, 10, 15)]


def test_requests_that_hold_the_worker_up_end_their_connections(make_blocking: Make) -> None:
    """A sibling may be idle that would take the next one."""

    def slow(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        server.clock.advance(0.5)
        start_response("200 OK", [])
        return [b"slow"]

    server = make_blocking(slow, workers=2)
    sibling = server.world.board.row(server.world.board.allocate(2, 2, 1))
    sibling[row_layout.STATE] = row_layout.STATE_READY

    def script() -> Script:
        client = server.connect()
        for _ in range(3):
            client.send(GET)
            yield
            yield
        assert b"Connection: close" not in client.read()
        yield from server.sweep()
        yield
        client.send(GET)
        yield
        yield
        assert b"Connection: close" in client.read()
        assert client.gone

    server.run(script())
    sibling.release()


def test_with_keepalive_set_it_is_as_the_operator_says(make_blocking: Make) -> None:
    def slow(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        server.clock.advance(0.5)
        start_response("200 OK", [])
        return [b"slow"]

    server = make_blocking(slow, workers=2, keepalive=60)
    sibling = server.world.board.row(server.world.board.allocate(2, 2, 1))
    sibling[row_layout.STATE] = row_layout.STATE_READY

    def script() -> Script:
        client = server.connect()
        for _ in range(4):
            client.send(GET)
            yield
            yield
            yield from server.sweep()
        assert b"Connection: close" not in client.read()

    server.run(script())
    sibling.release()


def test_a_request_uses_all_of_the_worker(make_blocking: Make) -> None:
    """It waits and uses no CPU, but no other request can run."""

    def slow(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        server.clock.advance(3)
        start_response("200 OK", [])
        return [b"slow"]

    server = make_blocking(slow)

    def script() -> Script:
        yield from server.sweep()
        assert server.world.utilisation == 0.0
        client = server.connect()
        client.send(GET)
        yield
        yield from server.sweep()
        yield
        # Three of the last five seconds.
        assert server.world.utilisation == 0.6
        for _ in range(5):
            yield from server.sweep()
        yield
        assert server.world.utilisation == 0.0

    server.run(script())
