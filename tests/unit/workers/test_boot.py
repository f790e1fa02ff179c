"""A worker process from the fork to its exit code, with the test as its arbiter."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from unit.workers.fakes import BootedWorker

from servo.ipc.messages import EXIT_APP, EXIT_BOOT, BootFailed, Booting, Draining, Ready, Stop
from servo.shared_memory import row_layout
from servo.workers.boot import shorten

Make = Callable[..., BootedWorker]

APP = """
def app(environ, start_response):
    return []

async def asgi(scope, receive, send):
    await receive()
    await send({"type": "lifespan.startup.failed", "message": "no database"})
"""


@pytest.fixture
def boot(tmp_path: Path) -> Iterator[Make]:
    (tmp_path / "booted_app.py").write_text(APP)
    (tmp_path / "broken_app.py").write_text("raise ValueError('broken at import')\n")
    made: list[BootedWorker] = []

    def start(app: str = "booted_app:app", **values: Any) -> BootedWorker:
        made.append(BootedWorker(app=app, chdir=str(tmp_path), **values))
        return made[-1]

    yield start
    for worker in made:
        worker.close()


def failure(worker: BootedWorker) -> BootFailed:
    worker.until()
    (found,) = [each for each in worker.messages if isinstance(each, BootFailed)]
    return found


@pytest.mark.parametrize("worker_class", ["sync", "thread", "async"])
def test_a_worker_boots_serves_and_ends(boot: Make, worker_class: str) -> None:
    worker = boot(worker_class=worker_class)
    worker.until(Ready)
    assert worker.kinds == [Booting, Ready]
    row = worker.world.row
    assert row[row_layout.PID] == worker.child.pid
    assert row[row_layout.STATE] == row_layout.STATE_READY
    worker.world.tell(Stop(quick=False))
    worker.until()
    assert Draining in worker.kinds
    assert worker.child.end() == 0


def test_hooks_are_called_in_their_order(boot: Make, tmp_path: Path) -> None:
    path = tmp_path / "calls"

    def note(name: str) -> Callable[..., None]:
        def hook(*given: Any) -> None:
            with path.open("a") as file:
                print(name, given[-1].booted, file=file)

        return hook

    names = ("post_fork", "post_worker_init", "worker_int", "worker_exit")
    worker = boot(hooks={name: note(name) for name in names})
    worker.until(Ready)
    worker.world.tell(Stop(quick=True))
    assert worker.child.end() == 0
    assert path.read_text().split("\n") == [
        "post_fork False",
        "post_worker_init True",
        "worker_int True",
        "worker_exit True",
        "",
    ]


def test_the_environment_has_the_slot_from_the_first_hook_on(boot: Make, tmp_path: Path) -> None:
    path = tmp_path / "slot"

    def note(*_: Any) -> None:
        path.write_text(os.environ["SERVO_SLOT"])

    worker = boot(hooks={"post_fork": note})
    worker.until(Ready)
    worker.world.tell(Stop(quick=True))
    assert worker.child.end() == 0
    assert path.read_text() == str(worker.world.context.slot)


def test_an_application_that_can_not_be_imported(boot: Make) -> None:
    worker = boot("broken_app:app")
    found = failure(worker)
    assert found.kind == "app"
    assert "broken at import" in found.text
    assert worker.child.end() == EXIT_APP
    assert Ready not in worker.kinds


def test_an_application_that_the_class_does_not_run(boot: Make) -> None:
    worker = boot("booted_app:asgi", worker_class="sync")
    assert "runs WSGI" in failure(worker).text
    assert worker.child.end() == EXIT_BOOT


def test_a_hook_that_raises_is_a_failure_to_boot(boot: Make) -> None:
    def broken(*_: object) -> None:
        raise ValueError("broken hook")

    worker = boot(hooks={"post_fork": broken})
    found = failure(worker)
    assert found.kind == "boot"
    assert found.text.startswith("ValueError: broken hook\nTraceback (most recent call last):\n")
    assert "in broken" in found.text
    assert worker.child.end() == EXIT_BOOT


def test_a_lifespan_that_fails_is_a_failure_to_boot(boot: Make) -> None:
    worker = boot("booted_app:asgi", worker_class="async")
    assert "no database" in failure(worker).text
    assert worker.child.end() == EXIT_BOOT


def test_without_an_arbiter_a_failure_is_logged(boot: Make, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    os.mkfifo(gate)

    def wait(*_: object) -> None:
        gate.read_bytes()  # until the test has closed the channel

    worker = boot("broken_app:app", hooks={"post_fork": wait})
    worker.until(Booting)
    worker.world.lose_arbiter()
    gate.write_bytes(b"x")
    assert b"broken at import" in worker.child.said()
    assert worker.child.end() == EXIT_APP


def test_sigabrt_calls_its_hook_and_ends_the_worker(boot: Make, tmp_path: Path) -> None:
    path = tmp_path / "aborted"

    def note(worker: Any) -> None:
        path.write_text(str(worker.aborted))

    worker = boot(hooks={"worker_abort": note})
    worker.until(Ready)
    os.kill(worker.child.pid, signal.SIGABRT)
    assert worker.child.end() == -signal.SIGABRT
    assert path.read_text() == "True"


def test_a_long_failure_keeps_its_first_line_and_its_end() -> None:
    assert shorten("short\ntext", 10) == "short\ntext"
    assert (
        shorten("ValueError: x\n" + "y" * 100 + "end", 30) == "ValueError: x\n" + "y" * 13 + "end"
    )
    assert shorten("x" * 100, 10) == "xxxxx\n"
