"""Requests that Servo makes to the application without a connection."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from typing import Any

import pytest

from servo.apps.asgi_scope import ASGIAdapter
from servo.apps.in_process import get_asgi, get_wsgi
from servo.apps.wsgi_environ import WSGIAdapter

LOG = logging.getLogger("test")


def wsgi(app: Any) -> WSGIAdapter:
    return WSGIAdapter(app, log=LOG, multithread=False, multiprocess=False, root_path="/shop")


def asgi(app: Any) -> ASGIAdapter:
    return ASGIAdapter(app, log=LOG, root_path="/shop")


class Body:
    """A response body that notes its end."""

    closed = False

    def __iter__(self) -> Iterator[bytes]:
        yield b"x"

    def close(self) -> None:
        self.closed = True


def test_a_wsgi_application_sees_an_ordinary_request() -> None:
    seen: dict[str, Any] = {}
    body = Body()

    def app(environ: Any, start_response: Any) -> Body:
        seen.update(environ)
        start_response("204 No Content", [])("written")
        return body

    assert get_wsgi(wsgi(app), "/shop/healthz?full=1", "https") == 204
    assert (seen["REQUEST_METHOD"], seen["PATH_INFO"]) == ("GET", "/healthz")
    assert (seen["SCRIPT_NAME"], seen["QUERY_STRING"]) == ("/shop", "full=1")
    assert (seen["HTTP_HOST"], seen["REMOTE_ADDR"]) == ("localhost", "127.0.0.1")
    assert (seen["wsgi.url_scheme"], seen["wsgi.input"].read()) == ("https", b"")
    assert body.closed


def test_an_asgi_application_sees_an_ordinary_request() -> None:
    seen: dict[str, Any] = {}

    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen.update(scope)
        seen["first"] = await receive()
        await send({"type": "http.response.start", "status": 204, "headers": []})
        await send({"type": "http.response.body", "body": b"x", "more_body": True})
        await send({"type": "http.response.body"})
        seen["second"] = await receive()

    assert asyncio.run(get_asgi(asgi(app), "/shop/healthz?full=1")) == 204
    assert (seen["method"], seen["path"], seen["root_path"]) == ("GET", "/shop/healthz", "/shop")
    assert (seen["query_string"], dict(seen["headers"])[b"host"]) == (b"full=1", b"localhost")
    assert seen["first"] == {"type": "http.request", "body": b"", "more_body": False}
    assert seen["second"] == {"type": "http.disconnect"}


def test_an_application_without_a_response() -> None:
    async def silent(_scope: Any, _receive: Any, _send: Any) -> None:
        return None

    with pytest.raises(RuntimeError, match="without calling start_response"):
        get_wsgi(wsgi(lambda _environ, _start: []), "/")
    with pytest.raises(RuntimeError, match="without a response"):
        asyncio.run(get_asgi(asgi(silent), "/"))


def test_what_the_application_raises_is_raised() -> None:
    def app(_environ: Any, _start_response: Any) -> list[bytes]:
        raise OSError("no database")

    with pytest.raises(OSError, match="no database"):
        get_wsgi(wsgi(app), "/")
