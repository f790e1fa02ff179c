"""Finding an app in the source of files."""

from __future__ import annotations

from pathlib import Path

import pytest

from servo.apps.discovery import likely_app


@pytest.mark.parametrize(
    ("files", "app"),
    [
        ({"shop.py": "from flask import Flask\napp = Flask(__name__)\n"}, "shop:app"),
        ({"shop.py": "async def app(scope, receive, send): ...\n"}, "shop:app"),
        ({"wsgi.py": "application = 1\n", "helper.py": "import os\n"}, "wsgi:application"),
        ({"shop.py": "def create_app(): ...\n"}, "shop:create_app()"),
        ({"shop.py": "def create_app(): ...\napp = create_app()\n"}, "shop:app"),
        ({"shop.py": "def f():\n    app = 1\n"}, None),
        ({"shop.py": "app = 1\n", "blog.py": "app = 1\n"}, None),
        ({"shop.py": "app = 1\n", "broken.py": "app = \n"}, "shop:app"),
        ({"servo.conf.py": "app = 'shop:app'\n", "my-app.py": "app = 1\n"}, None),
        ({}, None),
    ],
)
def test_likely_app(tmp_path: Path, files: dict[str, str], app: str | None) -> None:
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    assert likely_app(tmp_path) == app


def test_files_that_can_not_be_read(tmp_path: Path) -> None:
    assert likely_app(tmp_path / "nowhere") is None
    (tmp_path / "directory.py").mkdir()
    (tmp_path / "nul.py").write_bytes(b"app = \0")
    (tmp_path / "huge.py").write_bytes(b"app = 1\n" + b"#" * (1 << 20))
    assert likely_app(tmp_path) is None
