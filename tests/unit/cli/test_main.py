"""The `servo` command, except for running a server."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from servo import __version__
from servo.cli import main as cli
from servo.errors import BindError, BootError, ConfigError
from servo.http.h1 import connection
from servo.settings.gunicorn_compat import FOREIGN
from servo.settings.schema import SETTINGS
from servo.settings.sources import Settings

APP = "def app(environ, start_response): ...\n"


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    for name in list(os.environ):
        if name.startswith(("SERVO_", "GUNICORN_")) or name in ("PORT", "WEB_CONCURRENCY"):
            monkeypatch.delenv(name)
    (tmp_path / "shop.py").write_text(APP)
    before = {*sys.modules}
    yield tmp_path
    for name in {*sys.modules} - before:
        if str(tmp_path) in (getattr(sys.modules[name], "__file__", None) or ""):
            del sys.modules[name]


class Server:
    """Stands in for `run_server`, and records the arguments of the call."""

    def __init__(self) -> None:
        self.settings: Settings
        self.reload_settings: Callable[[], Settings]
        self.outcome: int | Exception = 0

    def __call__(
        self, settings: Settings, reload_settings: Callable[[], Settings], *_: object
    ) -> int:
        self.settings, self.reload_settings = settings, reload_settings
        if isinstance(self.outcome, Exception):
            raise self.outcome
        return self.outcome


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Server:
    made = Server()
    module: Any = ModuleType("servo.arbiter.start")
    module.run_server = made
    monkeypatch.setitem(sys.modules, "servo.arbiter.start", module)
    return made


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    code = cli.main(arguments)
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(capsys, "--version")
    assert (code, err) == (0, "")
    assert out.startswith(f"servo {__version__} (CPython 3.")
    # What is tested here is the source, unless `make test-compiled` has compiled it.
    compiled = not str(connection.__file__).endswith(".py")
    assert out.endswith(", compiled)\n" if compiled else ", plain)\n")


def test_help_has_every_setting_in_its_section(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(capsys, "--help")
    assert (code, err) == (0, "")
    assert out.startswith("Usage: servo [FLAGS] APP\n")
    for setting in SETTINGS.values():
        assert f"\n{setting.section}:\n" in out
        assert setting.name == "app" or setting.main_flag.removeprefix("--") in out
    assert not any(foreign.flags and foreign.flags[-1] + " " in out for foreign in FOREIGN.values())
    assert run(capsys, "-h") == (0, out, "")
    assert run(capsys, "shop:app", "--wor", "--help")[0] == 2


def test_the_server_runs(capsys: pytest.CaptureFixture[str], server: Server) -> None:
    server.outcome = 3
    assert run(capsys, "shop:app", "-w", "2", "-k", "gthread") == (3, "", "")
    assert server.settings.app == "shop:app"
    assert server.settings.workers == 2
    assert server.settings.worker_class == "thread"


@pytest.mark.parametrize(
    ("error", "code"), [(BindError("taken"), 1), (ConfigError("wrong"), 1), (BootError("no"), 3)]
)
def test_an_error_of_the_arbiter(
    capsys: pytest.CaptureFixture[str], server: Server, error: Exception, code: int
) -> None:
    server.outcome = error
    assert run(capsys, "shop:app") == (code, "", f"servo: error: {error}\n")


def test_a_reload_reads_everything_again(
    capsys: pytest.CaptureFixture[str],
    server: Server,
    home: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (home / "sizes.py").write_text("WORKERS = 2\n")
    (home / "servo.conf.py").write_text("from sizes import WORKERS as workers\n")
    monkeypatch.setenv("SERVO_TIMEOUT", "7")
    run(capsys, "shop:app", "-b", ":1")
    monkeypatch.setenv("SERVO_TIMEOUT", "8")
    (home / "elsewhere").mkdir()
    monkeypatch.chdir(home / "elsewhere")
    (home / "sizes.py").write_text("WORKERS = 2 + 1\n")
    new = server.reload_settings()
    assert (server.settings.workers, new.workers) == (2, 3)
    assert (new.app, new.bind, new.timeout) == ("shop:app", [":1"], 7)
    assert new.chdir == str(home.resolve())
    (home / "servo.conf.py").write_text("workers = 'many'\n")
    with pytest.raises(ConfigError, match="'many'"):
        server.reload_settings()
    (home / "servo.conf.py").write_text("workers = 5\n")
    assert server.reload_settings().workers == 5


def test_a_reload_without_an_app_is_refused(
    capsys: pytest.CaptureFixture[str], server: Server, home: Path
) -> None:
    (home / "servo.toml").write_text("app = 'shop:app'\n")
    assert run(capsys)[0] == 0
    (home / "servo.toml").write_text("")
    with pytest.raises(ConfigError, match="no app was given"):
        server.reload_settings()


def test_notes_are_the_arbiters_to_log(capsys: pytest.CaptureFixture[str], server: Server) -> None:
    assert run(capsys, "shop:app", "--spew") == (0, "", "")
    ((level, text),) = server.settings.notes
    assert level == "warning"
    assert "here: --spew (use a tracer" in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            (),
            "no app was given; run servo APP (perhaps: servo shop:app), where APP is module:",
        ),
        (("shop:app", "--foo"), "there is no flag --foo\nTry"),
        (("shop:app", "--wrokers", "2"), "there is no flag --wrokers; did you mean --workers?"),
        (("shop:app", "-w", "many"), "workers: 'many' is not valid (flag --workers)"),
        (("shop:app", "other:app"), "one app can be served"),
    ],
)
def test_usage_errors(
    capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], message: str
) -> None:
    code, out, err = run(capsys, *arguments)
    assert (code, out) == (2, "")
    assert err.startswith("servo: error: ")
    assert message in err
    assert err.endswith("Try 'servo --help'.\n")


def test_configuration_errors(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SERVO_WROKERS", "2")
    code, _, err = run(capsys, "shop:app")
    assert code == 1
    assert err.endswith("SERVO_WROKERS; did you mean SERVO_WORKERS?\n")


def test_check_config(
    capsys: pytest.CaptureFixture[str], home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run(capsys, "shop:app", "--check-config") == (0, "configuration OK\n", "")
    inner = home / "inner"
    inner.mkdir()
    (inner / "web.py").write_text("import os\nassert os.environ['A'] == '1'\n" + APP)
    monkeypatch.setenv("A", "0")  # restored afterwards
    code, out, err = run(capsys, "web", "--chdir", "inner", "-e", "A=1", "--check-config", "--spew")
    assert (code, out) == (0, "configuration OK\n")
    assert err.startswith("servo: warning: ignoring what has no counterpart here: --spew (")


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ((), 2, "no app was given"),
        (("nope:app",), 4, "there is no module 'nope'"),
        (("shop:ap",), 4, "did you mean app?"),
        (("broken:app",), 4, "importing broken failed: OSError: no database"),
        (("shop:app", "-k", "my.Worker"), 3, "my.Worker"),
        (("shop:app", "--error-logfile", "/no/x"), 1, "log file /no/x: No such file or directory"),
        (("shop:app", "--access-logfile", "/no/x"), 1, "log file /no/x: No such file or directory"),
        (("shop:app", "--logconfig-dict", '{"version":2}'), 1, "Unsupported version: 2"),
        (("shop:app", "--pid", "/no/x"), 1, "pidfile /no/x: No such file or directory"),
        (("shop:app", "--control-socket", "/no/x"), 1, "control_socket: /no/x.lock: No such file"),
        (("shop:app", "-b", "host:port:x"), 2, "(flag --bind)"),
        (("shop:app", "--metrics-bind", "no where"), 2, "(flag --metrics-bind)"),
        (("shop:app", "-c", "python:nosuch"), 1, "nosuch"),
        (("shop:app", "-c", "x" * 300), 1, ": File name too long"),
        (("x" * 300 + ".py",), 4, "can't be looked for: File name too long"),
        (("shop:app", "--reload-dir", "nosuch"), 2, "existing directories"),
        (("asgi:app", "-k", "sync"), 3, "asgi:app is an ASGI application, and worker class 'sync'"),
    ],
)
def test_check_config_finds(
    capsys: pytest.CaptureFixture[str],
    home: Path,
    arguments: tuple[str, ...],
    code: int,
    message: str,
) -> None:
    (home / "broken.py").write_text("raise OSError('no database')\n")
    (home / "asgi.py").write_text("async def app(scope, receive, send):\n    pass\n")
    found, out, err = run(capsys, *arguments, "--check-config")
    assert (found, out) == (code, "")
    assert "servo: error: " in err
    assert message in err


def test_check_config_leaves_nothing(capsys: pytest.CaptureFixture[str], home: Path) -> None:
    before = {*home.iterdir()}
    files = {"--error-logfile": "e", "--access-logfile": "a", "--pid": "p", "--control-socket": "c"}
    arguments = [word for pair in files.items() for word in pair]
    assert run(capsys, "shop:app", *arguments, "--check-config")[0] == 0
    assert {*home.iterdir()} == before


def test_relative_paths_start_at_chdir(
    capsys: pytest.CaptureFixture[str], home: Path, server: Server
) -> None:
    (home / "inner").mkdir()
    assert run(capsys, "shop:app", "--chdir", "inner", "--pid", "x/pid")[0] == 0
    assert Path.cwd() == (home / "inner").resolve()


def test_a_directory_that_can_not_be_entered(
    capsys: pytest.CaptureFixture[str], home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_path: str) -> None:
        raise PermissionError(13, "Permission denied")

    (home / "inner").mkdir()
    monkeypatch.setattr(os, "chdir", refuse)
    code, _, err = run(capsys, "shop:app", "--chdir", "inner")
    monkeypatch.undo()
    assert code == 1
    assert "inner: Permission denied (flag --chdir)" in err


def test_the_traceback_of_an_app_comes_before_the_message(
    capsys: pytest.CaptureFixture[str], home: Path
) -> None:
    (home / "broken.py").write_text("raise OSError('no database')\n")
    _, _, err = run(capsys, "broken:app", "--check-config")
    lines = err.splitlines()
    assert lines[0] == "Traceback (most recent call last):"
    assert lines[-1] == "servo: error: importing broken failed: OSError: no database"


def test_an_error_of_servos_own_has_an_exit_code_of_its_own(
    capsys: pytest.CaptureFixture[str], home: Path, server: Server
) -> None:
    """systemd restarts the server after it, but not after a wrong configuration."""
    server.outcome = RuntimeError("on purpose")
    code, _, err = run(capsys, "shop:app")
    assert code == 70
    assert err.startswith("Traceback (most recent call last):\n")
    assert err.endswith("RuntimeError: on purpose\n")


def test_print_config(
    capsys: pytest.CaptureFixture[str], home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (home / "servo.toml").write_text("\ntimeout = 5\n")
    monkeypatch.setenv("SERVO_BACKLOG", "7")
    code, out, err = run(capsys, "--print-config", "-w", "auto")
    assert (code, err) == (0, "")
    rows = {line.split()[0]: line.split() for line in out.splitlines() if line[0] != " "}
    assert list(rows) == list(SETTINGS)
    assert rows["timeout"] == ["timeout", "5", "seconds", "servo.toml:2"]
    assert rows["backlog"] == ["backlog", "7", "connections", "environment", "SERVO_BACKLOG"]
    assert rows["workers"] == ["workers", "auto", "processes", "flag", "--workers"]
    assert rows["accesslog"] == ["accesslog", "none", "default"]


def test_print_and_check(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "shop:app", "--print-config", "--check-config")
    assert code == 0
    assert out.endswith("\nconfiguration OK\n")


def test_the_current_directory_is_gone(
    capsys: pytest.CaptureFixture[str], home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (home / "gone").mkdir()
    monkeypatch.chdir(home / "gone")
    (home / "gone").rmdir()
    code, _, err = run(capsys, "shop:app")
    assert (code, err) == (1, "servo: error: the current directory no longer exists\n")


def test_an_interrupt_while_the_app_loads(capsys: pytest.CaptureFixture[str], home: Path) -> None:
    (home / "slow.py").write_text("raise KeyboardInterrupt\n")
    assert run(capsys, "slow:app", "--check-config") == (130, "", "")


def test_arguments_are_the_programs_own_by_default(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["servo", "--version"])
    assert cli.main() == 0
    assert capsys.readouterr().out.startswith("servo ")


def test_a_switch_of_uvicorn_that_takes_a_text_here(capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = run(capsys, "--server-header", "shop:app")
    assert code == 2
    assert "; --server-header takes a text, and has got 'shop:app'\n" in err
