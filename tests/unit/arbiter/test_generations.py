"""The settings of each generation: code of the configuration runs within a limit."""

from __future__ import annotations

import signal

import pytest

from servo.arbiter import generations
from servo.arbiter.generations import Generations
from servo.arbiter.limit import CodeLimit
from servo.settings.sources import Settings

# pytest-timeout's own way is SIGALRM, too.
pytestmark = pytest.mark.timeout(method="thread")


def test_a_log_handler_that_hangs_when_a_generation_is_dropped(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def hang(_settings: Settings) -> None:
        begun.append(True)
        signal.pause()

    begun: list[bool] = []
    monkeypatch.setattr(generations, "_set_up_logging", hang)
    settings = Settings({"app": "x:app", "hook_timeout": 0.05}, {})
    Generations(settings, lambda: settings, CodeLimit()).drop(2)
    assert begun == [True]
