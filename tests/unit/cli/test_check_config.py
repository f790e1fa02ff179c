"""`--check-config`: its checks, and their order."""

from __future__ import annotations

import os
from types import SimpleNamespace
from typing import Any, cast

import pytest

from servo.cli import check_config
from servo.errors import ConfigError
from servo.settings.sources import Settings

CHECKS = (
    "check_logging",
    "make_tls",
    "PidFile.check",
    "check_control_socket",
    "check_metrics",
    "check_dashboard",
    "drop_config_modules",
    "prepare_import_path",
    "load_app",
    "worker_for",
)


class Checks:
    """Stands in for the functions that a check calls: notes the calls, and fails at one."""

    def __init__(self) -> None:
        self.called: list[str] = []
        self.fails_at = ""
        self.tls: object = None

    def call(self, name: str, result: object = None) -> Any:
        def check(*_arguments: object) -> object:
            self.called.append(name)
            if name == self.fails_at:
                raise ConfigError(f"{name} failed")
            return self.tls if name == "make_tls" else result

        return check


@pytest.fixture
def checks(monkeypatch: pytest.MonkeyPatch) -> Checks:
    made = Checks()
    for name in CHECKS:
        if "." not in name:
            monkeypatch.setattr(check_config, name, made.call(name))
    pidfile = SimpleNamespace(check=made.call("PidFile.check"))
    monkeypatch.setattr(check_config, "PidFile", lambda path: pidfile if path == "p" else None)
    return made


def settings(**values: Any) -> Settings:
    given = {"pidfile": "p", "env": {}, "notes": (), "app": "shop:app", "interface": "auto"}
    return cast("Settings", SimpleNamespace(**{**given, **values}))


def test_the_order_is_that_of_a_start(checks: Checks) -> None:
    check_config.check(settings())
    assert checks.called == list(CHECKS)


def test_without_a_pidfile_there_is_none_to_check(checks: Checks) -> None:
    check_config.check(settings(pidfile=None))
    assert checks.called == [name for name in CHECKS if name != "PidFile.check"]


@pytest.mark.parametrize("name", CHECKS)
def test_the_first_failure_ends_the_check(checks: Checks, name: str) -> None:
    checks.fails_at = name
    with pytest.raises(ConfigError, match=f"{name} failed"):
        check_config.check(settings())
    assert checks.called == list(CHECKS[: CHECKS.index(name) + 1])


def test_warnings_go_to_stderr(checks: Checks, capsys: pytest.CaptureFixture[str]) -> None:
    checks.tls = SimpleNamespace(warnings=["the certificate expires soon"])
    notes = (
        ("debug", "ignoring a variable"),
        ("info", "reading a file"),
        ("warning", "spew has no counterpart"),
    )
    check_config.check(settings(notes=notes))
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == (
        "servo: warning: spew has no counterpart\nservo: warning: the certificate expires soon\n"
    )


def test_the_app_is_loaded_with_its_variables(
    checks: Checks, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SHOP_MODE", "before")
    seen: list[str] = []
    monkeypatch.setattr(
        check_config, "load_app", lambda *_arguments: seen.append(os.environ["SHOP_MODE"])
    )
    check_config.check(settings(env={"SHOP_MODE": "test"}))
    assert seen == ["test"]
