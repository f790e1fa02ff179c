"""Warm-up: requests and calls before a mold forks."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from servo.apps.loader import LoadedApp
from servo.errors import BootError
from servo.settings.sources import Settings
from servo.workers.warm_up import warm_up

CALLED: list[str] = []


def function() -> None:
    CALLED.append("function")


def failing() -> None:
    raise ValueError("no database")


async def coroutine() -> None:
    """Is never called."""


def app(environ: dict[str, Any], start_response: Callable[..., Any]) -> list[bytes]:
    CALLED.append(f"{environ['wsgi.url_scheme']} {environ['PATH_INFO']}?{environ['QUERY_STRING']}")
    if environ["PATH_INFO"] == "/raises":
        raise ValueError("no template")
    status = {"/missing": "404 Not Found", "/moved": "302 Found"}.get(environ["PATH_INFO"])
    start_response(status or "200 OK", [])
    return []


def run(*targets: str, secure: bool = False, interface: str = "wsgi") -> None:
    settings = Settings({"app": "x:app", "warm_up": list(targets)}, {})
    warm_up(settings, LoadedApp(app, interface), secure)


def test_paths_and_functions_in_their_order() -> None:
    CALLED.clear()
    run()
    assert CALLED == []
    run("/a?b=c", f"{__name__}:function", "/moved", secure=True)
    assert CALLED == ["https /a?b=c", "function", "https /moved?"]


@pytest.mark.parametrize(
    ("target", "text"),
    [
        ("/missing", "GET /missing answered 404; name a path that works"),
        ("/raises", "GET /raises raised\n(.*\n)*ValueError: no template"),
        (f"{__name__}:failing", "failing raised\n(.*\n)*ValueError: no database"),
        (f"{__name__}:coroutine", "coroutine is an async function; name a plain one"),
        (f"{__name__}:functoin", "did you mean function"),
        ("no_such_module:f", "there is no module 'no_such_module'"),
    ],
)
def test_failures(target: str, text: str) -> None:
    with pytest.raises(BootError, match=f"warm_up: .*{text}"):
        run(target)


def test_an_asgi_app_has_no_loop_in_a_mold(tmp_path: Path) -> None:
    with pytest.raises(BootError, match=r"/ can't be requested: an ASGI app needs an event loop"):
        run("/", interface="asgi")
