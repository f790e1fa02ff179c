"""The lifespan protocol, with applications of every temper."""

from __future__ import annotations

import asyncio
import logging

import pytest

from servo.apps.lifespan import Lifespan
from servo.errors import BootError

log = logging.getLogger("test")


def run(app, mode="auto"):
    async def main():
        lifespan = Lifespan(app, mode, log)
        await asyncio.wait_for(lifespan.startup(), 5)
        await asyncio.wait_for(lifespan.shutdown(), 5)
        return lifespan

    return asyncio.run(main())


async def proper(scope, receive, send):
    assert scope["type"] == "lifespan"
    scope["state"]["db"] = "open"
    assert (await receive())["type"] == "lifespan.startup"
    await send({"type": "lifespan.startup.complete"})
    assert (await receive())["type"] == "lifespan.shutdown"
    scope["state"]["db"] = "closed"
    await send({"type": "lifespan.shutdown.complete"})


def test_startup_and_shutdown():
    assert run(proper).state == {"db": "closed"}


async def without(scope, receive, send):
    raise KeyError(scope["type"])


def test_auto_takes_an_application_without_lifespan():
    assert not run(without).supported


def test_on_insists():
    with pytest.raises(BootError, match="KeyError"):
        run(without, "on")


def test_off_does_not_ask():
    async def app(scope, receive, send):
        pytest.fail("asked")

    run(app, "off")


@pytest.mark.parametrize("mode", ["auto", "on"])
def test_a_failed_startup_ends_the_boot(mode):
    async def app(scope, receive, send):
        await receive()
        message = "Traceback:\n  ...\nRuntimeError: no database"
        await send({"type": "lifespan.startup.failed", "message": message})
        raise RuntimeError("no database")

    with pytest.raises(BootError, match=r"RuntimeError: no database$"):
        run(app, mode)


def test_an_application_that_returns_at_once_has_no_lifespan():
    async def app(scope, receive, send):
        return

    assert not run(app).supported


def test_a_failed_shutdown_is_logged(caplog):
    async def app(scope, receive, send):
        await receive()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        raise ValueError("can't close")

    run(app)
    assert "can't close" in caplog.text
