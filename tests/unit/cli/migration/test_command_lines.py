"""Command lines and files of gunicorn, uvicorn, hypercorn and granian."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from servo.cli.migration.command_lines import (
    migrate_command_line,
    migrate_file,
    server_of,
    split,
)
from servo.errors import ConfigError, UsageError


@pytest.mark.parametrize(
    ("text", "server"),
    [
        ("gunicorn app:app", "gunicorn"),
        ("/srv/venv/bin/uvicorn app:app", "uvicorn"),
        ("python3.12 -m hypercorn app:app", "hypercorn"),
        ("exec A=b granian app:app", "granian"),
        ("python3 -m http.server", None),
        ("node server.js", None),
        ("", None),
    ],
)
def test_which_server_a_command_line_starts(text: str, server: str | None) -> None:
    found = server_of(shlex.split(text))
    assert (found and found[0]) == server


def test_flags_of_uvicorn(tmp_path: Path) -> None:
    line = "LANG=C uvicorn main:make --factory --port 80 --host ::1 --quic-bind :4433"
    found = migrate_command_line(shlex.split(line), tmp_path)
    assert found.values == {
        "app": "main:make()",
        "bind": ["[::1]:80"],
        "raw_env": ["LANG=C"],
    }
    assert [note.partition(":")[0] for note in found.notes] == ["--quic-bind"]


def test_a_file_of_gunicorn_under_its_command_line(tmp_path: Path) -> None:
    (tmp_path / "gunicorn.conf.py").write_text(
        "workers = 3\nspew = True\nbind = '0.0.0.0:80'\nhelper = 5\n"
        "def post_fork(server, worker): pass\n"
    )
    line = "gunicorn -c gunicorn.conf.py -w 4 --reload-engine poll shop.wsgi"
    found = migrate_command_line(shlex.split(line), tmp_path)
    assert found.values == {"app": "shop.wsgi", "workers": 4, "bind": ["0.0.0.0:80"]}
    for word in ("spew", "post_fork", "--reload-engine"):
        assert word in " ".join(found.notes)


def test_the_file_alone(tmp_path: Path) -> None:
    path = tmp_path / "gunicorn.conf.py"
    path.write_text("workers = 3\nworker_class = 'uvicorn.workers.UvicornWorker'\n")
    assert migrate_file(path).values == {"workers": 3, "worker_class": "async"}


def test_a_file_of_hypercorn(tmp_path: Path) -> None:
    (tmp_path / "hypercorn.toml").write_text(
        'bind = "0.0.0.0:80"\nalpn_protocols = ["h2", "http/1.1"]\nworker_class = "uvloop"\n'
        'insecure_bind = "0.0.0.0:81"\nquic_bind = "0.0.0.0:82"\nodd = 1\n'
    )
    found = migrate_file(tmp_path / "hypercorn.toml")
    assert found.values == {
        "bind": ["0.0.0.0:80"],
        "http_protocols": ["h2", "h1"],
        "loop": "uvloop",
        "worker_class": "async",
    }
    options = [note.partition(":")[0] for note in found.notes]
    assert options == ["insecure_bind", "quic_bind", "odd"]


def test_what_cant_be_read(tmp_path: Path) -> None:
    (tmp_path / "hypercorn.toml").write_text("= 3")
    with pytest.raises(ConfigError, match=r"hypercorn\.toml can't be read"):
        migrate_file(tmp_path / "hypercorn.toml")
    with pytest.raises(ConfigError, match="no configuration file"):
        migrate_command_line(["gunicorn", "-c", "missing.py", "a:b"], tmp_path)
    with pytest.raises(UsageError, match="no flag --wrokers"):
        migrate_command_line(["gunicorn", "--wrokers", "3", "a:b"], tmp_path)
    with pytest.raises(UsageError, match="args can't be split"):
        split("'", "args")
