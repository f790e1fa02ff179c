"""uWSGI's ini files."""

from __future__ import annotations

from pathlib import Path

import pytest

from servo.cli.migration.uwsgi import is_uwsgi, migrate_uwsgi
from servo.errors import ConfigError

FILE = """
[other]
processes = 99
[uwsgi]
# a comment
base = /srv/shop
chdir = %(base)
module = shop.wsgi
master = true
processes = 8
cheaper = 2
socket = /run/shop.sock
http = :8080,more
env = A=1
env = B=2
reload-on-rss = 512
uid = www-data
logto = %d/shop.log
harakiri = 30
home = /srv/venv
nonsense = 1
"""


def test_a_usual_file(tmp_path: Path) -> None:
    path = tmp_path / "shop.ini"
    path.write_text(FILE)
    found = migrate_uwsgi(path)
    assert found.values == {
        "app": "shop.wsgi:application",
        "chdir": "/srv/shop",
        "workers": found.values["workers"],
        "bind": ["unix:/run/shop.sock", "0.0.0.0:8080"],
        "raw_env": ["A=1", "B=2"],
        "max_worker_memory": "512M",
        "user": "www-data",
        "errorlog": f"{tmp_path}//shop.log",
        "accesslog": f"{tmp_path}//shop.log",
    }
    assert 'workers = "2:8"' in found.to_toml()
    options = [note.partition(":")[0] for note in found.notes]
    assert options == ["socket", "harakiri", "home", "nonsense", "lazy-apps"]
    assert "/srv/venv/bin/servo" in " ".join(found.notes)


@pytest.mark.parametrize(
    ("lines", "values"),
    [
        ("wsgi-file = app.py\ncallable = app", {"app": "app.py:app"}),
        ("mount = /api=api.wsgi:app", {"app": "api.wsgi:app", "root_path": "/api"}),
        ("https = :443,a.pem,b.key", {"certfile": "a.pem", "keyfile": "b.key"}),
        ("daemonize = /var/log/x", {"daemon": True, "errorlog": "/var/log/x"}),
        ("logto = x\ndisable-logging", {"errorlog": "x"}),
    ],
)
def test_forms_of_options(tmp_path: Path, lines: str, values: dict[str, object]) -> None:
    path = tmp_path / "uwsgi.ini"
    path.write_text(f"[uwsgi]\nlazy-apps = true\n{lines}\n")
    found = migrate_uwsgi(path).values
    assert values.items() <= found.items()
    assert "accesslog" not in found


def test_a_number_of_workers_that_uwsgi_computes(tmp_path: Path) -> None:
    path = tmp_path / "uwsgi.ini"
    path.write_text("[uwsgi]\nworkers = %k\n")
    assert 'workers = "auto"' in migrate_uwsgi(path).to_toml()


def test_other_files(tmp_path: Path) -> None:
    assert is_uwsgi(FILE)
    assert not is_uwsgi("[program:uwsgi]\n")
    with pytest.raises(ConfigError, match="can't be read"):
        migrate_uwsgi(tmp_path / "missing.ini")
