"""The settings of each generation: code of the configuration runs within a limit."""

from __future__ import annotations

import signal

import pytest

from servo.arbiter import generations
from servo.arbiter.generations import Generations, check_preload
from servo.arbiter.limit import CodeLimit
from servo.arbiter.processes import spawn
from servo.errors import ConfigError
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


def test_the_logs_follow_the_current_generation(monkeypatch: pytest.MonkeyPatch) -> None:
    """A reload reads its settings before an older generation returns, and is adopted later."""
    levels = []
    monkeypatch.setattr(
        generations, "_set_up_logging", lambda settings: levels.append(settings.loglevel)
    )
    old, new = (Settings({"app": "x:app", "loglevel": each}, {}) for each in ("info", "debug"))
    found = Generations(old, lambda: new, CodeLimit())
    assert found.load(2) is None
    found.adopt(1)
    found.adopt(2)
    assert levels == ["debug", "info", "debug"]


def test_molds_need_a_system_that_has_subreapers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spawn, "adopt_orphans", lambda: "darwin has none")
    check_preload(Settings({"app": "x:app"}, {}))
    settings = Settings({"app": "x:app", "preload_app": True}, {"preload_app": "flag --preload"})
    text = r"preload_app \(flag --preload\) works on Linux only: darwin has none; leave it out"
    with pytest.raises(ConfigError, match=text):
        check_preload(settings)
    with pytest.raises(ConfigError, match=text):
        Generations(settings, lambda: settings, CodeLimit()).read()
