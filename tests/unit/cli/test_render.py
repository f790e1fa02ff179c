"""The output of the `servo` command."""

from __future__ import annotations

from pathlib import Path

import pytest

from servo.cli import render
from servo.settings.flags import parse_flags
from servo.settings.sources import load_settings


def test_fail(capsys: pytest.CaptureFixture[str]) -> None:
    render.print_error("it broke")
    render.print_error("it broke", "Traceback …\nOSError")
    err = capsys.readouterr().err
    assert err == "servo: error: it broke\nTraceback …\nOSError\n\nservo: error: it broke\n"


def test_columns_are_aligned(tmp_path: Path) -> None:
    directory = tmp_path / ("d" * 60)
    directory.mkdir()
    flags = parse_flags(["-w", "3", "--worker-tmp-dir", str(directory)])
    lines = render.config_table(load_settings(flags, {}, Path("/"))).splitlines()
    workers = next(line for line in lines if line.startswith("workers "))
    place = workers.index("flag --workers")
    (long,) = (n for n, line in enumerate(lines) if line.startswith("worker_tmp_dir"))
    assert lines[long].endswith(str(directory))
    assert lines[long + 1] == " " * place + "flag --worker-tmp-dir"
    sources = {line[place:] for line in lines if "  default" in line}
    assert sources == {"default"}
    assert lines == [line.rstrip() for line in lines]
