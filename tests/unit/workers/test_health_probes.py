"""The code of health checks: requests to applications, and calls of functions."""

from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import pytest

from servo.apps.asgi_scope import ASGIAdapter
from servo.apps.wsgi_environ import WSGIAdapter
from servo.errors import BootError
from servo.workers.health import Outcome
from servo.workers.health_probes import CheckThread, asgi_probe, within, wsgi_probe

LOG = logging.getLogger("test")


def wsgi(environ: Any, start_response: Any) -> list[bytes]:
    if environ["PATH_INFO"] == "/exit":
        sys.exit(3)
    start_response(f"{environ['PATH_INFO'][1:]} X", [])
    return [b"x"]


async def asgi(scope: Any, receive: Any, send: Any) -> None:
    if scope["path"] == "/exit":
        sys.exit(3)
    if scope["path"] == "/hang":
        await asyncio.Event().wait()
    await send({"type": "http.response.start", "status": int(scope["path"][1:]), "headers": []})
    await send({"type": "http.response.body", "body": b"x"})


WSGI = WSGIAdapter(wsgi, log=LOG, multithread=False, multiprocess=False)
ASGI = ASGIAdapter(asgi, log=LOG)

OUTCOMES = [
    ("/200", Outcome()),
    ("/302", Outcome()),
    ("/404", Outcome("answered 404", not_served=True)),
    ("/503", Outcome("answered 503")),
    ("/exit", Outcome("it raised SystemExit(3)")),
    ("checks:fine", Outcome()),
    ("checks:refuses", Outcome("it returned False")),
    ("checks:fails", Outcome("it raised OSError('no database')")),
]


@pytest.fixture(autouse=True)
def checks() -> Iterator[None]:
    """A module with functions that check."""
    module: Any = ModuleType("checks")

    def fails() -> None:
        raise OSError("no database")

    async def slow() -> None:
        fails()

    module.fine, module.refuses, module.fails, module.slow = (
        lambda: None,
        lambda: False,
        fails,
        slow,
    )
    module.word = "text"
    sys.modules["checks"] = module
    yield
    del sys.modules["checks"]


@pytest.mark.parametrize(("target", "outcome"), OUTCOMES)
def test_a_wsgi_application(target: str, outcome: Outcome) -> None:
    assert wsgi_probe(target, WSGI, "http")() == outcome


@pytest.mark.parametrize(
    ("target", "outcome"),
    [*OUTCOMES, ("checks:slow", Outcome("it raised OSError('no database')"))],
)
def test_an_asgi_application(target: str, outcome: Outcome) -> None:
    async def check() -> Any:
        found: Any = asgi_probe(target, ASGI, "http")()
        return found if isinstance(found, Outcome) else await within(30.0, lambda: found)

    assert asyncio.run(check()) == outcome


def test_a_check_that_takes_too_long_is_cancelled() -> None:
    probe: Any = asgi_probe("/hang", ASGI, "http")
    assert asyncio.run(within(0.01, probe)) == Outcome("no answer within 0.01 s")


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("checks:fin", r"health_check: checks has no attribute 'fin'; did you mean fine\?"),
        ("checks:word", "health_check: checks:word can't be called: it is an object of type str"),
        ("chekcs:fine", "health_check: there is no module 'chekcs'"),
        ("checks:slow", "health_check: checks:slow is an async function, but the app is a WSGI"),
    ],
)
def test_a_function_that_cannot_be_used(target: str, message: str) -> None:
    with pytest.raises(BootError, match=message):
        wsgi_probe(target, WSGI, "http")


def test_a_thread_runs_one_check_after_the_other() -> None:
    import queue

    outcomes: queue.SimpleQueue[Outcome] = queue.SimpleQueue()
    numbers = iter("12")
    thread = CheckThread(lambda: Outcome(next(numbers)), outcomes.put)
    for number in "12":
        thread.start()
        assert outcomes.get(timeout=30) == Outcome(number)
