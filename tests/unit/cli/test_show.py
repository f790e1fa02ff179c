"""The output of `servoctl` for people."""

from __future__ import annotations

from pathlib import Path

from servo.cli import show


def test_the_log_file_lies_where_the_server_is(tmp_path: Path) -> None:
    (tmp_path / "error.log").write_text("")
    rows = [{"name": "errorlog", "value": "error.log"}, {"name": "chdir", "value": str(tmp_path)}]
    assert show.log_path({"settings": rows}) == str(tmp_path / "error.log")
