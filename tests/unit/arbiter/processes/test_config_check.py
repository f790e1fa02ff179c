"""The check of a configuration in a temporary child process."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from typing import Any

import pytest

from servo.arbiter.core import events
from servo.arbiter.processes.config_check import ConfigCheck
from servo.errors import ConfigError


def read_none() -> object:
    raise ConfigError("workers: 'many' is not valid (servo.toml:3)")


def read_long() -> object:
    raise ValueError("x" * 200_000)


def read_wrong() -> object:
    raise RuntimeError("on purpose")


def leave() -> object:
    raise SystemExit(3)


@pytest.mark.parametrize(
    ("read", "error"),
    [
        (lambda: object(), None),
        (read_none, "workers: 'many' is not valid (servo.toml:3)"),
        (leave, "it called sys.exit(3)"),
        (read_wrong, "RuntimeError: on purpose"),
        (lambda: os._exit(9), "reading it ended the process (exit code 9)"),
        (lambda: os.kill(os.getpid(), signal.SIGKILL), "ended the process (exit code -9)"),
        (read_long, "ValueError: xxx"),
    ],
)
def test_the_result(loop: Any, read: Callable[[], object], error: str | None) -> None:
    results: list[events.ConfigChecked] = []
    check = ConfigCheck(loop.table, 2, read, results.append)
    fd = check.fileno()
    loop.run_until(lambda: not loop.table.is_watched(fd))
    code = os.waitstatus_to_exitcode(os.waitpid(check.pid, 0)[1])
    check.on_exit(code)
    (result,) = results
    assert result.generation == 2
    if error is None:
        assert result.error is None
    else:
        assert result.error is not None
        assert error in result.error
    assert check.fileno() == -1


def test_a_check_can_be_cancelled(loop: Any) -> None:
    results: list[events.ConfigChecked] = []
    check = ConfigCheck(loop.table, 2, signal.pause, results.append)
    pid = check.pid
    check.kill()
    check.kill()
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL
    assert results == []
