"""The lifespan protocol, with applications that follow it and that break it."""

from __future__ import annotations

import asyncio
import logging
import sys

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


def test_mode_on_requires_a_lifespan():
    with pytest.raises(BootError, match="KeyError"):
        run(without, "on")


def test_mode_off_does_not_call_the_application():
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


# --- exceptions that are not an Exception ---------------------------------------------------------


class Odd(BaseException):
    """An application's own subclass of BaseException."""


ENDINGS = [SystemExit(0), SystemExit(3), KeyboardInterrupt(), GeneratorExit(), Odd("odd")]
by_name = lambda error: f"{type(error).__name__}-{error}"  # noqa: E731


@pytest.mark.parametrize("mode", ["auto", "on"])
@pytest.mark.parametrize("asks", [False, True])
@pytest.mark.parametrize("error", ENDINGS, ids=by_name)
def test_an_application_that_would_end_the_process_at_startup_does_not_boot(mode, asks, error):
    async def app(scope, receive, send):
        if asks:
            await receive()
        raise error

    with pytest.raises(BootError, match=type(error).__name__):
        run(app, mode)


@pytest.mark.parametrize("mode", ["auto", "on"])
def test_an_application_that_is_cancelled_in_its_startup_does_not_boot(mode):
    async def app(scope, receive, send):
        await receive()
        raise asyncio.CancelledError

    with pytest.raises(BootError, match="CancelledError"):
        run(app, mode)


async def cancelled_at_once(scope, receive, send):
    raise asyncio.CancelledError


def test_an_application_that_is_cancelled_before_receive_has_no_lifespan():
    assert not run(cancelled_at_once).supported
    with pytest.raises(BootError, match="CancelledError"):
        run(cancelled_at_once, "on")


@pytest.mark.skipif(sys.version_info < (3, 11), reason="Python 3.10 has no groups of exceptions")
def test_an_exception_group_with_an_exit_counts_as_one():
    async def app(scope, receive, send):
        await receive()
        raise BaseExceptionGroup("tasks", [ValueError("x"), SystemExit(1)])  # noqa: F821

    with pytest.raises(BootError, match="tasks"):
        run(app)


def test_an_ordinary_error_at_startup_is_a_warning(caplog):
    async def app(scope, receive, send):
        await receive()
        raise RuntimeError("no database")

    assert not run(app).supported
    assert "lifespan.startup" in caplog.text
    assert "no database" in caplog.text


@pytest.mark.parametrize("error", [*ENDINGS, asyncio.CancelledError()], ids=by_name)
@pytest.mark.parametrize("stopping", [False, True])
def test_an_error_after_startup_is_logged_and_stays_in_its_task(caplog, error, stopping):
    async def app(scope, receive, send):
        await receive()
        await send({"type": "lifespan.startup.complete"})
        await asyncio.sleep(0)
        if stopping:
            await receive()
        raise error

    assert run(app).supported
    assert "Error in the application's lifespan" in caplog.text
    assert type(error).__name__ in caplog.text


def test_an_error_right_after_startup_fails_it():
    async def app(scope, receive, send):
        await receive()
        await send({"type": "lifespan.startup.complete"})
        raise SystemExit(1)

    with pytest.raises(BootError, match="SystemExit: 1"):
        run(app)


def test_a_worker_that_gives_up_its_start_logs_no_error(caplog):
    async def app(scope, receive, send):
        await receive()
        await receive()

    async def main():
        lifespan = Lifespan(app, "auto", log)
        starting = asyncio.ensure_future(lifespan.startup())
        await asyncio.sleep(0)
        starting.cancel()
        await asyncio.gather(starting, return_exceptions=True)
        lifespan.abandon()
        lifespan._task.cancel()
        await lifespan._task

    asyncio.run(main())
    assert not caplog.records


# --- messages out of turn -------------------------------------------------------------------------


def complete(what):
    return {"type": f"lifespan.{what}.complete"}


def failed(what, text):
    return {"type": f"lifespan.{what}.failed", "message": text}


@pytest.mark.parametrize("what", ["startup", "shutdown"])
def test_an_unexpected_failure_is_logged_with_its_message(caplog, what):
    async def app(scope, receive, send):
        await receive()
        await send(complete("startup"))
        await asyncio.sleep(0)
        await send(failed(what, "Traceback:\n\nOSError: the disk is gone"))
        assert (await receive())["type"] == "lifespan.shutdown"
        await send(complete("shutdown"))

    run(app)
    assert f"lifespan.{what}.failed" in caplog.text
    assert "OSError: the disk is gone" in caplog.text


def test_a_failed_shutdown_is_logged_with_its_message(caplog):
    async def app(scope, receive, send):
        await receive()
        await send(complete("startup"))
        await receive()
        await send(failed("shutdown", "can't close"))

    run(app)
    assert "lifespan shutdown failed: can't close" in caplog.text


def test_a_failure_sent_after_an_error_is_logged_with_its_message(caplog):
    async def app(scope, receive, send):
        await receive()
        await send(complete("startup"))
        await receive()
        await send(failed("shutdown", "first"))
        await send(failed("shutdown", "second"))

    run(app)
    assert "first" in caplog.text
    assert "second" in caplog.text


@pytest.mark.parametrize("mode", ["auto", "on"])
def test_the_first_of_two_failures_of_a_startup_counts(caplog, mode):
    async def app(scope, receive, send):
        await receive()
        await send(failed("startup", "first"))
        await send(failed("startup", "second"))

    with pytest.raises(BootError, match="first"):
        run(app, mode)
    assert "second" in caplog.text


def test_a_failed_shutdown_in_answer_to_startup_fails_it():
    async def app(scope, receive, send):
        await receive()
        await send(failed("shutdown", "confused"))

    with pytest.raises(BootError, match="confused"):
        run(app)


def test_complete_does_not_take_a_failure_back(caplog):
    async def app(scope, receive, send):
        await receive()
        await send(failed("startup", "no database"))
        await send(complete("startup"))

    with pytest.raises(BootError, match="no database"):
        run(app)
    assert "lifespan.startup.complete was sent after the lifespan had failed" in caplog.text


@pytest.mark.parametrize("kind", ["lifespan.shutdown.complete", "http.response.start", "odd"])
def test_a_wrong_answer_to_startup_does_not_count(kind):
    async def app(scope, receive, send):
        await receive()
        await send({"type": kind})

    assert not run(app).supported
    with pytest.raises(BootError, match=kind):
        run(app, "on")


def test_completing_startup_twice_is_a_warning(caplog):
    async def app(scope, receive, send):
        await receive()
        await send(complete("startup"))
        await send(complete("startup"))
        assert (await receive())["type"] == "lifespan.shutdown"
        await send(complete("shutdown"))

    assert run(app).supported
    assert [record.levelname for record in caplog.records] == ["WARNING"]


@pytest.mark.parametrize("kind", ["lifespan.shutdown.complete", "lifespan.odd"])
def test_a_wrong_message_later_is_an_error_of_the_application(caplog, kind):
    async def app(scope, receive, send):
        await receive()
        await send(complete("startup"))
        await asyncio.sleep(0)
        await send({"type": kind})

    run(app)
    assert kind in caplog.text
