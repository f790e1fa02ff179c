"""A WSGI application in the `async` worker has the same rules as in blocking workers."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from servo.apps.pool_meter import PoolMeter
from servo.apps.wsgi_environ import WSGIAdapter
from servo.apps.wsgi_in_async import WSGIInAsync
from servo.shared_memory.row_layout import ROW_WORDS, THREAD_REQUESTS, thread_waits_in

SCOPE = {
    "type": "http",
    "method": "GET",
    "raw_path": b"/",
    "query_string": b"",
    "http_version": "1.1",
    "headers": [(b"host", b"a")],
    "server": ("127.0.0.1", 80),
    "client": ("127.0.0.1", 1234),
    "scheme": "http",
    "extensions": {},
}


def call(app: Any, sent: list[dict[str, Any]] | None = None) -> list[dict[str, Any]]:
    """The application's response to a request, as ASGI messages."""
    log = logging.getLogger("servo.error")
    adapter = WSGIAdapter(app, log=log, multithread=True, multiprocess=False)
    sent = [] if sent is None else sent

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    async def run() -> None:
        row = memoryview(bytearray(8 * ROW_WORDS)).cast("Q")
        wrapped = WSGIInAsync(adapter, PoolMeter(row, 1), 1 << 20, None)
        try:
            await wrapped(SCOPE, receive, send)
        finally:
            wrapped._pool.shutdown()

    asyncio.run(run())
    return sent


def app_with(status: str, *pieces: bytes) -> Any:
    def app(_environ: dict[str, Any], start_response: Any) -> list[bytes]:
        start_response(status, [("Content-Type", "text/plain")])
        return list(pieces)

    return app


@pytest.mark.parametrize("pieces", [(b"whole",), (b"in ", b"parts")])
def test_a_status(pieces: tuple[bytes, ...]) -> None:
    sent = call(app_with("201 Made", *pieces))
    assert sent[0]["status"] == 201
    assert b"".join(message.get("body", b"") for message in sent) == b"".join(pieces)


@pytest.mark.parametrize("pieces", [(b"whole",), (b"in ", b"parts")])
@pytest.mark.parametrize("status", ["999999 What", "2000 OK", "abc", "099 No", "200 O\nK"])
def test_an_invalid_status(
    status: str, pieces: tuple[bytes, ...], caplog: pytest.LogCaptureFixture
) -> None:
    sent = call(app_with(status, *pieces))
    assert sent[0]["status"] == 500
    assert "invalid status" in caplog.text


def test_a_block_that_is_all_of_the_body_does_not_wait_for_the_end_of_the_application() -> None:
    seen = []

    def app(_environ: dict[str, Any], start_response: Any) -> Any:
        start_response("200 OK", [("Content-Length", "5")])
        yield b"whole"
        seen.extend(sent)

    sent: list[dict[str, Any]] = []
    call(app, sent)
    assert [message.get("body") for message in seen] == [None, b"whole"]
    assert sent == seen


class Held:
    """A WSGI application that waits, called with one thread."""

    def __init__(self) -> None:
        self.begun = threading.Event()
        self.go_on = threading.Event()
        self.row = memoryview(bytearray(8 * ROW_WORDS)).cast("Q")
        log = logging.getLogger("servo.error")
        adapter = WSGIAdapter(self, log=log, multithread=True, multiprocess=False)
        self.meter = PoolMeter(self.row, 1)
        self.wrapped = WSGIInAsync(adapter, self.meter, 1 << 20, None)

    def __call__(self, environ: Any, start_response: Any) -> list[bytes]:
        self.begun.set()
        assert self.go_on.wait(20)
        start_response("200 OK", [])
        return [b""]

    def request(self) -> asyncio.Future[None]:
        async def receive() -> dict[str, Any]:
            return {"type": "http.request", "body": b"", "more_body": False}

        async def send(message: dict[str, Any]) -> None:
            pass

        return asyncio.ensure_future(self.wrapped(SCOPE, receive, send))

    async def until(self, done: Callable[[], bool]) -> None:
        while not done():
            await asyncio.sleep(0)

    @property
    def requests(self) -> int:
        return int(self.row[THREAD_REQUESTS])

    @property
    def waits(self) -> int:
        return sum(thread_waits_in(self.row.tolist()))


def test_a_cancelled_request_holds_its_thread_until_the_application_returns() -> None:
    """Another request waits for the only thread meanwhile."""
    app = Held()

    async def run() -> None:
        first = app.request()
        await app.until(app.begun.is_set)
        first.cancel()
        await asyncio.wait([first])
        assert app.requests == 1
        second = app.request()
        await app.until(lambda: app.requests == 2)
        held_ns = app.meter.held_ns(time.monotonic_ns())
        app.go_on.set()
        await second
        await app.until(lambda: app.requests == 0)
        assert app.meter.held_ns(time.monotonic_ns()) >= held_ns > 0

    asyncio.run(run())
    app.wrapped._pool.shutdown()
    assert app.waits == 1


def test_a_request_that_never_gets_a_thread_has_no_wait() -> None:
    app = Held()

    async def run() -> None:
        first = app.request()
        await app.until(app.begun.is_set)
        second = app.request()
        await app.until(lambda: app.requests == 2)
        second.cancel()
        await asyncio.wait([second])
        assert app.requests == 1
        app.go_on.set()
        await first

    asyncio.run(run())
    app.wrapped._pool.shutdown()
    assert (app.requests, app.waits) == (0, 0)


def test_a_thread_that_outlives_the_event_loop_is_no_error(
    caplog: pytest.LogCaptureFixture,
) -> None:
    app = Held()

    async def run() -> None:
        first = app.request()
        await app.until(app.begun.is_set)
        first.cancel()
        await asyncio.wait([first])

    asyncio.run(run())
    app.go_on.set()
    app.wrapped._pool.shutdown()
    assert caplog.text == ""
