"""Server hooks and their arguments."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from servo.errors import ConfigError
from servo.settings.config_hooks import HOOKS, Hooks, read_hook
from servo.settings.sources import load_settings


def function_of(count: int) -> Callable[..., Any]:
    return eval(f"lambda {', '.join('abcdef'[:count])}: ({count}, {', '.join('abcdef'[:count])})")


@pytest.mark.parametrize("name", HOOKS)
def test_a_hook_takes_gunicorns_arguments(name: str) -> None:
    count = len(HOOKS[name][0])
    hook = function_of(count)
    assert read_hook(name, hook, "here:1") is hook
    for wrong in {0, 1, 5} - {count}:
        with pytest.raises(ConfigError, match=rf"{name}: the hook takes .* \(here:1\)"):
            read_hook(name, function_of(wrong), "here:1")


@pytest.mark.parametrize(
    ("count", "expected"),
    [(2, (2, "w", "r")), (3, (3, "w", "r", "e")), (4, (4, "w", "r", "e", "s"))],
)
def test_post_request_may_take_fewer(count: int, expected: tuple[object, ...]) -> None:
    hook = read_hook("post_request", function_of(count), "here")
    assert hook("w", "r", "e", "s") == expected


def test_any_callable_that_fits_will_do() -> None:
    class Callee:
        def __call__(self, server: object) -> str:
            return f"called with {server}"

        def method(self, server: object, worker: object) -> None: ...

    assert read_hook("on_exit", Callee(), "here")("x") == "called with x"
    assert read_hook("pre_fork", Callee().method, "here")
    assert read_hook("pre_fork", lambda *arguments: arguments, "here")
    assert read_hook("on_exit", lambda server, extra=1: extra, "here")
    assert read_hook("post_request", lambda *arguments: len(arguments), "here")(1, 2, 3, 4) == 4


def test_a_hook_may_be_a_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_hooks.py").write_text("def ended(server):\n    return 'ended'\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert read_hook("on_exit", "my_hooks.ended", "here")(None) == "ended"
    for path in ("my_hooks.missing", "missing.ended", "ended"):
        with pytest.raises(ConfigError, match=f"on_exit: can't load '{path}'"):
            read_hook("on_exit", path, "here")
    sys.modules.pop("my_hooks")


def test_not_a_function() -> None:
    with pytest.raises(ConfigError, match=r"on_exit: 3 is not a function \(here\)"):
        read_hook("on_exit", 3, "here")


def test_hooks_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "gunicorn.conf.py").write_text(
        "def on_starting(server):\n    return 'starting'\n\n"
        "post_fork = lambda server, worker: worker\nwhen_ready = None\n"
    )
    hooks = load_settings({}, {}, tmp_path).hooks
    assert hooks.on_starting is not None
    assert hooks.on_starting(None) == "starting"
    assert hooks.when_ready is None
    assert hooks.on_exit is None
    assert repr(hooks) == "Hooks(on_starting, post_fork)"
    (tmp_path / "gunicorn.conf.py").write_text("\ndef on_starting():\n    ...\n")
    with pytest.raises(
        ConfigError,
        match=r"on_starting: the hook takes \(\) but is called with \(server\) "
        r"\(gunicorn\.conf\.py:2\)",
    ):
        load_settings({}, {}, tmp_path)


def test_no_hooks() -> None:
    hooks = Hooks({})
    assert all(getattr(hooks, name) is None for name in HOOKS)
