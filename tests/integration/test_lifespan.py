"""A lifespan that would end the worker's process: the boot fails, and no process remains."""

from __future__ import annotations

import signal
import sys
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from integration.raw import request, status, talk

if TYPE_CHECKING:
    from integration.conftest import Serve

pytestmark = pytest.mark.slow

GOOD = """
import asyncio, os, sys

asked = asyncio.Event()

async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        return await lifespan(receive, send)
    asked.set()
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"good"})

async def lifespan(receive, send):
    await receive()
    await send({"type": "lifespan.startup.complete"})
    await receive()
    await send({"type": "lifespan.shutdown.complete"})
"""
HEAD = GOOD.partition("async def lifespan")[0]


def release(body: str) -> str:
    """An app whose lifespan does this."""
    return HEAD + "async def lifespan(receive, send):\n" + textwrap.indent(body, "    ")


ASKED = "await receive()\n"
EXIT_IN_A_TASK = """
async def fails():
    sys.exit(5)
"""
FAILURES = {
    "exit": "sys.exit(0)",
    "interrupt": ASKED + "raise KeyboardInterrupt",
    "cancelled": ASKED + "raise asyncio.CancelledError",
    "awaited_task": EXIT_IN_A_TASK + ASKED + "await asyncio.create_task(fails())",
    "lost_task": EXIT_IN_A_TASK + ASKED + "task = asyncio.create_task(fails())\nawait receive()",
    "os_exit": ASKED + "os._exit(0)",
    "starlette": """
from starlette.applications import Starlette
async def startup(app):
    sys.exit(0)
    yield
await Starlette(lifespan=startup)({"type": "lifespan", "app": None, "state": {}}, receive, send)
""",
}
if sys.version_info >= (3, 11):
    FAILURES["group"] = EXIT_IN_A_TASK + (
        ASKED + "async with asyncio.TaskGroup() as group:\n    group.create_task(fails())"
    )


@pytest.fixture(params=["asyncio", "uvloop"])
def loop(request: pytest.FixtureRequest) -> str:
    if request.param == "uvloop":
        pytest.importorskip("uvloop")
    return str(request.param)


@pytest.mark.parametrize("name", FAILURES)
def test_no_server_starts_with_it(serve: Serve, tmp_path: Path, name: str, loop: str) -> None:
    (tmp_path / "app.py").write_text(release(FAILURES[name]))
    server = serve("app:app", "-k", "async", "--loop", loop, "-w", "1", ready=0)
    assert server.wait_exit() == 3
    assert "is ready" not in server.log()


@pytest.mark.parametrize("name", ["exit", "cancelled", "lost_task", "os_exit"])
def test_a_reload_to_it_is_rolled_back(serve: Serve, tmp_path: Path, name: str) -> None:
    path = tmp_path / "app.py"
    path.write_text(GOOD)
    server = serve("app:app", "-k", "async", "-w", "2", ready=2)
    pids = server.ready_pids()
    path.write_text(release(FAILURES[name]))
    server.signal(signal.SIGHUP)
    server.wait_log("rolled back")
    assert server.ready_pids() == pids
    assert talk(server, request()).endswith(b"good")


@pytest.mark.parametrize("how", ["sys.exit(1)", "raise KeyboardInterrupt"])
def test_what_it_raises_once_it_serves_costs_no_worker(
    serve: Serve, tmp_path: Path, how: str, loop: str
) -> None:
    body = f"""
async def fails():
    {how}
await receive()
await send({{"type": "lifespan.startup.complete"}})
await asked.wait()
task = asyncio.create_task(fails())
await asyncio.sleep(0)
{how}
"""
    (tmp_path / "app.py").write_text(release(body))
    server = serve("app:app", "-k", "async", "--loop", loop, "-w", "1")
    pids = server.ready_pids()
    assert status(talk(server, request())) == 200
    server.wait_log("Error in the application's lifespan")
    server.wait_log("A task of the application has raised")
    assert status(talk(server, request())) == 200
    assert server.worker_pids() == pids
    assert server.stop() == 0


def test_a_failure_that_nobody_asked_for_is_in_the_log(serve: Serve, tmp_path: Path) -> None:
    body = """
await receive()
await send({"type": "lifespan.startup.complete"})
await asked.wait()
await send({"type": "lifespan.shutdown.failed", "message": "the disk is gone"})
"""
    (tmp_path / "app.py").write_text(release(body))
    server = serve("app:app", "-k", "async", "-w", "1")
    talk(server, request())
    server.wait_log("lifespan.shutdown.failed was sent .*: the disk is gone")
