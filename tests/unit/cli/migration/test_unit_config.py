"""NGINX Unit's configuration."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from servo.cli.migration.unit_config import is_unit, migrate_unit
from servo.errors import ConfigError

CONFIG: dict[str, Any] = {
    "listeners": {
        "*:80": {"pass": "applications/blog", "forwarded": {"source": ["10.0.0.0/8"]}},
        "127.0.0.1:443": {"pass": "applications/chat/main", "tls": {"certificate": "bundle"}},
        "*:8080": {"pass": "routes"},
    },
    "routes": [],
    "applications": {
        "blog": {
            "type": "python 3.11",
            "path": "/www/blog",
            "home": "/www/venv",
            "module": "blog.wsgi",
            "processes": {"max": 10, "spare": 2, "idle_timeout": 20},
            "environment": {"A": "b"},
            "limits": {"timeout": 10, "requests": 1000},
            "user": "www-data",
        },
        "chat": {
            "type": "python",
            "module": "chat",
            "callable": "make",
            "factory": True,
            "protocol": "asgi",
            "threads": 4,
        },
        "php": {"type": "php"},
    },
    "settings": {"http": {"max_body_size": 8388608, "idle_timeout": 30, "static": {}}},
    "access_log": "/var/log/access.log",
}


def test_each_application_becomes_a_server(tmp_path: Path) -> None:
    assert is_unit(CONFIG)
    blog, chat = migrate_unit(CONFIG, tmp_path / "config.json")
    assert blog.name == "blog"
    assert (
        blog.values.items()
        >= {
            "app": "blog.wsgi:application",
            "pythonpath": ["/www/blog"],
            "bind": ["0.0.0.0:80"],
            "forwarded_allow_ips": ["10.0.0.0/8"],
            "raw_env": ["A=b"],
            "max_requests": 1000,
            "request_timeout": 10.0,
            "scale_down_delay": 20.0,
            "user": "www-data",
            "keepalive": 30.0,
            "limit_request_body": 8388608,
            "accesslog": "/var/log/access.log",
        }.items()
    )
    assert 'workers = "2:10"' in blog.to_toml()
    assert (
        chat.values.items()
        >= {
            "app": "chat:make()",
            "interface": "asgi",
            "bind": ["127.0.0.1:443"],
            "threads": 4,
            "workers": 1,
        }.items()
    )
    notes = " ".join(blog.notes)
    for option in ("home", "listeners.*:8080", "applications.php", "routes", "http.static"):
        assert option in notes
    assert "listeners.127.0.0.1:443.tls" in " ".join(chat.notes)


def test_without_python() -> None:
    with pytest.raises(ConfigError, match="no application of type python"):
        migrate_unit({"applications": {"php": {"type": "php"}}}, Path("config.json"))
