"""A WSGI application in the `async` worker has the same rules as in blocking workers."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import pytest

from servo.apps.wsgi_environ import WSGIAdapter
from servo.apps.wsgi_in_async import WSGIInAsync

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
        wrapped = WSGIInAsync(adapter, 1, 1 << 20, None)
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
