"""PM2's ecosystem files."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from servo.cli.migration import pm2
from servo.cli.migration.pm2 import migrate_pm2, read_ecosystem
from servo.errors import ConfigError

API: dict[str, Any] = {
    "name": "api",
    "script": "uvicorn",
    "args": "main:app --port 8001 --workers 4",
    "cwd": "/srv/api",
    "env": {"MODE": "prod"},
    "env_staging": {"MODE": "staging"},
    "max_memory_restart": "300MB",
    "kill_timeout": 5000,
    "instances": 2,
    "autorestart": True,
    "made_up": 1,
}


def test_an_app(tmp_path: Path) -> None:
    (found,) = migrate_pm2({"apps": [API]}, tmp_path / "ecosystem.json")
    assert found.name == "api"
    assert found.values == {
        "app": "main:app",
        "bind": ["127.0.0.1:8001"],
        "workers": 4,
        "proc_name": "api",
        "chdir": "/srv/api",
        "raw_env": ["MODE=prod"],
        "max_worker_memory": "300M",
        "graceful_timeout": 5.0,
    }
    options = [note.partition(":")[0] for note in found.notes]
    assert options == ["env_staging", "instances", "autorestart", "made_up"]


@pytest.mark.parametrize(
    ("app", "values"),
    [
        ({"script": "gunicorn", "args": ["a:b"], "instances": 3}, {"workers": 3}),
        ({"script": "gunicorn a:b", "instances": "max"}, {"app": "a:b"}),
        ({"script": "-m", "args": "granian a:b", "interpreter": "python3"}, {"app": "a:b"}),
        ({"script": "gunicorn", "args": "a:b", "watch": ["src"]}, {"reload_dirs": ["src"]}),
        ({"script": "gunicorn", "args": "a:b", "max_restarts": 4}, {"max_boot_failures": 4}),
    ],
)
def test_forms_of_an_app(app: dict[str, Any], values: dict[str, Any], tmp_path: Path) -> None:
    (found,) = migrate_pm2([app], tmp_path / "ecosystem.json")
    assert values.items() <= found.values.items()


def test_programs_that_servo_does_not_replace(tmp_path: Path) -> None:
    (found,) = migrate_pm2({"name": "job", "script": "job.py"}, tmp_path / "e.json")
    assert not found.values
    assert "job.py" in found.notes[0]


def test_kinds_of_files(tmp_path: Path) -> None:
    for name, text in {
        "e.json": json.dumps({"apps": [API]}),
        "e.yml": f"apps: [{json.dumps(API)}]",
    }.items():
        (tmp_path / name).write_text(text)
        assert read_ecosystem(tmp_path / name) == {"apps": [API]}


def test_javascript(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "ecosystem.config.js"
    path.write_text(f"module.exports = () => ({{ apps: [{json.dumps(API)}] }});")
    if shutil.which("node") is not None:
        assert read_ecosystem(path) == {"apps": [API]}
        path.write_text("throw new Error('broken')")
        with pytest.raises(ConfigError, match="node can't run"):
            read_ecosystem(path)
    monkeypatch.setattr(pm2.shutil, "which", lambda _name: None)
    with pytest.raises(ConfigError, match="node is not installed"):
        read_ecosystem(path)


@pytest.mark.parametrize("text", ["{", '{"apps": 3}', "[1]"])
def test_what_is_no_ecosystem_file(tmp_path: Path, text: str) -> None:
    path = tmp_path / "e.json"
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"e\.json"):
        migrate_pm2(read_ecosystem(path), path)
