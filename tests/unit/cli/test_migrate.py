"""`servo migrate`."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from servo.cli.main import main
from servo.settings.sources import load_settings


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_what_is_printed_can_be_read(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [
        "migrate",
        "uvicorn",
        "main:app",
        "--host",
        "0.0.0.0",
        "--workers",
        "4",
        "--reload-tick",
    ]
    assert main([*words, "50"]) == 0
    out, err = capsys.readouterr()
    assert "one thing has no exact counterpart" in err
    (here / "servo.toml").write_text(out)
    settings = load_settings({}, {}, here)
    assert (settings.app, settings.bind, settings.workers) == ("main:app", ["0.0.0.0:8000"], 4)


def test_several_apps_become_several_files(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    apps = [
        {"name": name, "script": "gunicorn", "args": f"{name}:app"} for name in ("one", "../two")
    ]
    (here / "ecosystem.json").write_text(json.dumps({"apps": apps}))
    assert main(["migrate", "ecosystem.json"]) == 0
    assert "# --- one.toml ---" in capsys.readouterr().out
    assert main(["migrate", "-o", "apps", "ecosystem.json"]) == 0
    assert {path.name for path in (here / "apps").iterdir()} == {"one.toml", "two.toml"}
    # Nothing is overwritten.
    assert main(["migrate", "-o", "apps", "ecosystem.json"]) == 1
    assert "exists already" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("x.ini", "[supervisord]", r"no section \[uwsgi\]"),
        ("x.xml", "", "of an unknown kind"),
        ("config.json", "{", "can't be read"),
        (None, "", "is no file and none of gunicorn"),
    ],
)
def test_what_cant_be_migrated(
    here: Path, capsys: pytest.CaptureFixture[str], name: str | None, text: str, message: str
) -> None:
    if name is not None:
        (here / name).write_text(text)
    assert main(["migrate", name or "nothing"]) in (1, 2)
    assert re.search(message, capsys.readouterr().err)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("uwsgi.ini", "[uwsgi]\nmodule = a:b\n"),
        ("config.json", '{"applications": {"a": {"type": "python", "module": "a"}}}'),
        ("gunicorn.conf.py", "wsgi_app = 'a:b'\n"),
    ],
)
def test_files_are_told_apart(
    here: Path, capsys: pytest.CaptureFixture[str], name: str, text: str
) -> None:
    (here / name).write_text(text)
    assert main(["migrate", name]) == 0
    assert 'app = "a:' in capsys.readouterr().out


def test_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["migrate", "--help"]) == 0
    assert "ecosystem.config.js" in capsys.readouterr().out
    assert main(["migrate"]) == 2
