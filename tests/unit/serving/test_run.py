"""`servo.run`, up to the start of the server; tests/integration/test_run.py serves with it."""

from __future__ import annotations

import asyncio
import os
import threading
from pathlib import Path
from typing import Any

import pytest

import servo
from servo.errors import AppImportError, BindError
from servo.serving import given_app
from servo.serving import run as run_module


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[Any]:
    """The arguments of `run_server`, instead of a server."""
    calls: list[Any] = []

    def run_server(settings: Any, reload_settings: Any) -> int:
        calls.extend([settings, reload_settings])
        return int(settings.backlog) if settings.backlog < 10 else 0

    for name in [name for name in os.environ if name.startswith(("SERVO_", "GUNICORN_"))]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PWD", str(tmp_path))
    monkeypatch.setattr(run_module, "run_server", run_server)
    monkeypatch.setattr(given_app, "app", None)
    return calls


def test_the_sources_are_those_of_the_command(started: list[Any], tmp_path: Path) -> None:
    (tmp_path / "servo.toml").write_text("threads = 3\nworkers = 9\n")
    (tmp_path / "inner").mkdir()
    servo.run("main:app", port=80, workers=2, chdir="inner")
    settings, reload_settings = started
    assert (settings.app, settings.bind) == ("main:app", ["127.0.0.1:80"])
    assert (settings.threads, settings.workers) == (3, 2)
    assert Path.cwd() == tmp_path / "inner"
    (tmp_path / "servo.toml").write_text("threads = 4\n")
    assert (reload_settings().threads, reload_settings().workers) == (4, 2)


def test_an_object(started: list[Any]) -> None:
    class App:
        def __call__(self, environ: Any, start_response: Any) -> list[bytes]:
            return []

    app = App()
    servo.run(app)
    assert started[0].app == given_app.NAME
    assert started[0].proc_name.endswith("App")
    assert given_app.app is app
    servo.run(lambda: app, factory=True)
    assert given_app.app is app


def test_a_factory_by_name(started: list[Any]) -> None:
    servo.run("main:create", factory=True)
    assert started[0].app == "main:create()"


def test_a_code_other_than_0_ends_the_program(started: list[Any]) -> None:
    with pytest.raises(SystemExit) as caught:
        servo.run("main:app", backlog=3)
    assert caught.value.code == 3


@pytest.mark.parametrize(
    ("error", "code", "text"),
    [
        (BindError("taken"), 1, "servo: error: taken\n"),
        (AppImportError("no app", "the traceback"), 4, "the traceback\n\nservo: error: no app\n"),
    ],
)
def test_errors(
    started: list[Any],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    error: Exception,
    code: int,
    text: str,
) -> None:
    def fails(*_args: object) -> int:
        raise error

    monkeypatch.setattr(run_module, "run_server", fails)
    with pytest.raises(SystemExit) as caught:
        servo.run("main:app")
    assert (caught.value.code, capsys.readouterr().err) == (code, text)


def test_wrong_options(started: list[Any], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(TypeError, match="no option wrokers"):
        servo.run("main:app", wrokers=2)
    with pytest.raises(SystemExit):
        servo.run("main:app", workers="many")
    assert "workers: 'many' is not valid (flag --workers)" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        servo.run(lambda environ, start_response: [], reload=True)
    assert "reload needs the app as text" in capsys.readouterr().err
    assert started == []


def test_only_in_the_main_thread(started: list[Any]) -> None:
    errors: list[BaseException] = []

    def call() -> None:
        try:
            servo.run("main:app")
        except RuntimeError as error:
            errors.append(error)

    thread = threading.Thread(target=call)
    thread.start()
    thread.join()
    assert "main thread" in str(errors[0])


def test_not_in_a_running_loop(started: list[Any]) -> None:
    async def call() -> None:
        servo.run("main:app")

    with pytest.raises(RuntimeError, match=r"use `await servo.serve"):
        asyncio.run(call())


def test_secrets_leave_the_environment(started: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SERVO_KEYFILE_PASSWORD", "secret")
    servo.run("main:app")
    assert started[0].keyfile_password == "secret"
    assert "SERVO_KEYFILE_PASSWORD" not in os.environ
