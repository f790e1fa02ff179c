"""The start of a server: opened resources, their release, and the reports of errors."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import pytest
from arbiter_model import Outcome, asks_to_stop, obeys, serve

from servo.arbiter import start
from servo.arbiter.loop import Arbiter
from servo.errors import BindError, ConfigError, ServoError
from servo.settings.sources import Settings
from servo.workers.context import WorkerContext


def leave(*_args: object) -> None:
    raise SystemExit(7)


def test_on_starting_can_leave(tmp_path: Path) -> None:
    outcome = serve(tmp_path, obeys, hooks={"on_starting": leave})
    assert outcome.code == ConfigError.exit_code
    assert "the on_starting hook failed: 7" in outcome.notes[0]


def test_on_starting_can_refuse(tmp_path: Path) -> None:
    def on_starting(_server: object) -> None:
        raise RuntimeError("no database")

    outcome = serve(tmp_path, obeys, hooks={"on_starting": on_starting})
    assert outcome.code == ConfigError.exit_code
    assert "the on_starting hook failed: no database" in outcome.notes[0]


def never(_context: WorkerContext) -> int:
    raise AssertionError("no worker starts")


def refused(tmp_path: Path, error: type[ServoError], **values: Any) -> Outcome:
    """A start that fails: nothing that it made is left."""
    outcome = serve(tmp_path, never, **values)
    assert outcome.code == error.exit_code
    assert not (tmp_path / "s").exists()
    assert not (tmp_path / "pid").exists()
    return outcome


def test_a_taken_port_is_said_and_the_pidfile_is_removed(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        outcome = refused(
            tmp_path,
            BindError,
            bind=[f"unix:{tmp_path}/s", f"127.0.0.1:{port}"],
            pidfile=str(tmp_path / "pid"),
        )
    assert f"127.0.0.1:{port}" in outcome.notes[0]


def test_a_missing_certificate_is_said_before_anything_is_bound(tmp_path: Path) -> None:
    missing = str(tmp_path / "cert.pem")
    outcome = refused(tmp_path, ConfigError, certfile=missing, keyfile=missing)
    assert "cert.pem" in outcome.notes[0]
    assert "Listening" not in outcome.log


def test_everything_is_closed_at_the_end(tmp_path: Path) -> None:
    pidfile = tmp_path / "pid"
    outcome = serve(tmp_path, asks_to_stop, pidfile=str(pidfile))
    assert outcome.code == 0
    assert not pidfile.exists()
    assert not (tmp_path / "s").exists()


def test_a_failure_while_closing_does_not_keep_the_rest_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_scoreboard: object) -> None:
        raise OSError("on purpose")

    monkeypatch.setattr("servo.shared_memory.scoreboard.Scoreboard.close", fail)
    outcome = serve(tmp_path, asks_to_stop, pidfile=str(tmp_path / "pid"))
    assert outcome.code == 0
    assert "A system call failed at the end of the server" in outcome.log
    assert not (tmp_path / "pid").exists()


def test_an_error_of_the_arbiters_own_is_logged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_arbiter: Arbiter) -> int:
        raise RuntimeError("on purpose")

    monkeypatch.setattr(Arbiter, "serve", fail)
    outcome = serve(tmp_path, never, pidfile=str(tmp_path / "pid"))
    assert outcome.code == 1
    assert "The arbiter ends because of an error in its own code" in outcome.log
    assert "RuntimeError: on purpose" in outcome.log
    assert not (tmp_path / "pid").exists()


@pytest.mark.parametrize(
    ("values", "capacity"),
    [
        ({"workers": 4}, 256),
        ({"workers": 200, "reload_batch": 3}, 403),
        ({"workers": 4, "scoreboard_size": 9}, 9),
    ],
)
def test_the_scoreboard_has_rows_for_two_generations(values: dict[str, Any], capacity: int) -> None:
    assert start._capacity(Settings({"app": "x:app", **values}, {})) == capacity
