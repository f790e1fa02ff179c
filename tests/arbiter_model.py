"""Runs an arbiter with model workers, in a child process of the test.

The model workers control the test: they signal the arbiter and wait for its orders. No code
sleeps.
"""

from __future__ import annotations

import json
import os
import select
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from servo.arbiter.processes import spawn
from servo.arbiter.start import run_server
from servo.errors import ServoError
from servo.ipc import messages as msg
from servo.ipc.channel import ChannelClosed
from servo.logs import error_log as log_module
from servo.settings.config_hooks import Hooks
from servo.settings.sources import Settings
from servo.workers.context import WorkerContext

Worker = Callable[[WorkerContext], int]


@dataclass
class Outcome:
    """How a server ended: its code, what its hooks noted, its log."""

    code: int
    notes: list[Any] = field(default_factory=list)
    log: str = ""


def serve(
    tmp_path: Path,
    worker: Worker,
    *,
    hooks: dict[str, Callable[..., Any]] | None = None,
    reload: Callable[[], Settings] | None = None,
    note: list[Any] | None = None,
    **values: Any,
) -> Outcome:
    """Run a server until it ends."""
    values = {"app": "x:app", "bind": [f"unix:{tmp_path}/s"], "loglevel": "debug", **values}
    settings = Settings(
        {**values, "workers": values.get("workers", 1)}, {}, hooks=Hooks(hooks or {})
    )
    notes = [] if note is None else note
    log, result = tmp_path / "log", tmp_path / "result"

    def main() -> int:
        with log.open("ab") as file:
            os.dup2(file.fileno(), 2)
        # Another test may have set the log up in the process that this one was forked from.
        log_module.follow_standard_streams()
        model = ModuleType("servo.workers.boot")
        model.run_worker = worker  # type: ignore[attr-defined]
        sys.modules["servo.workers.boot"] = model
        try:
            code = run_server(settings, reload or (lambda: settings))
        except ServoError as error:
            notes.append(str(error))
            code = error.exit_code
        with pytest.raises(ChildProcessError):
            os.waitpid(-1, os.WNOHANG)
        result.write_text(json.dumps(notes))
        return code

    pid = spawn.fork(main, lambda: None)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    text = log.read_text()
    return Outcome(code, json.loads(result.read_text()) if result.exists() else [text], text)


def orders(context: WorkerContext) -> list[msg.Message]:
    """Wait for the arbiter's next messages."""
    poller = select.poll()
    poller.register(context.channel.fileno(), select.POLLIN)
    poller.poll()
    return context.channel.receive()


def gets_ready(context: WorkerContext) -> None:
    context.channel.send(msg.Booting())
    context.channel.send(msg.Ready())


def obeys(context: WorkerContext) -> int:
    """Ready, and serves until told to end."""
    gets_ready(context)
    try:
        while True:
            for message in orders(context):
                if isinstance(message, (msg.Retire, msg.Stop)):
                    context.channel.send(msg.Draining())
                    return 0
    except ChannelClosed:
        return 0


def asks_to_stop(context: WorkerContext) -> int:
    os.kill(context.arbiter_pid, signal.SIGTERM)
    return obeys(context)
