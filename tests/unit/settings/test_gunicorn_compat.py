"""gunicorn's configuration: its settings, worker classes and values."""

from __future__ import annotations

from pathlib import Path

import pytest

from servo.errors import ConfigError, UsageError
from servo.settings.config_hooks import HOOKS
from servo.settings.flags import parse_flags
from servo.settings.gunicorn_compat import as_gunicorn_address
from servo.settings.sources import Settings, load_settings


@pytest.mark.parametrize(
    ("name", "means"),
    [
        ("auto", "auto"),
        ("sync", "sync"),
        ("thread", "thread"),
        ("async", "async"),
        ("gthread", "thread"),
        ("asgi", "async"),
        ("uvicorn.workers.UvicornWorker", "async"),
        ("uvicorn.workers.UvicornH11Worker", "async"),
        ("uvicorn_worker.UvicornWorker", "async"),
        ("uvicorn_worker._workers.UvicornWorker", "async"),
        ("gunicorn.workers.sync.SyncWorker", "sync"),
        ("gunicorn.workers.gthread.ThreadWorker", "thread"),
        ("gunicorn.workers.gasgi.ASGIWorker", "async"),
        ("shop.workers.Special", "shop.workers.Special"),
    ],
)
def test_worker_classes(tmp_path: Path, name: str, means: str) -> None:
    assert load_settings(parse_flags(["-k", name]), {}, tmp_path).worker_class == means


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("gevent", "green threads are not supported: use --worker-class thread"),
        ("eventlet", "green threads are not supported"),
        ("gunicorn.workers.ggevent.GeventWorker", "green threads are not supported"),
        ("tornado", "Tornado's own loop is not supported"),
        ("snyc", r"worker_class: 'snyc' is not valid \(flag --worker-class\); expected auto, sync"),
        ("shop workers.Special", "expected auto, sync, thread, async, or the dotted path"),
    ],
)
def test_worker_classes_that_cannot_be(tmp_path: Path, name: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        load_settings(parse_flags(["-k", name]), {}, tmp_path)


def test_a_class_in_a_file(tmp_path: Path) -> None:
    path = tmp_path / "servo.conf.py"
    path.write_text("class Special: ...\nworker_class = Special\n")
    assert load_settings({}, {}, tmp_path).worker_class == "__config__.Special"
    path.write_text("def f():\n  class Special: ...\n  return Special\nworker_class = f()\n")
    with pytest.raises(ConfigError, match=r"worker_class: .*\(servo\.conf\.py:4\)"):
        load_settings({}, {}, tmp_path)


@pytest.mark.parametrize(
    ("line", "name", "value"),
    [
        ("bind = '0.0.0.0:80'", "bind", ["0.0.0.0:80"]),
        ("bind = ['a:1', 'unix:/x,y']", "bind", ["a:1", "unix:/x,y"]),
        ("workers = '4'", "workers", 4),
        ("timeout = 0", "timeout", 0.0),
        ("keepalive = 5", "keepalive", 5.0),
        ("umask = 0o027", "umask", 0o27),
        ("umask = '0027'", "umask", 0o27),
        ("user = 'root'", "user", 0),
        ("forwarded_allow_ips = '10.0.0.1, 10.1.0.0/16'", "forwarded_allow_ips",
         ["10.0.0.1", "10.1.0.0/16"]),
        ("asgi_lifespan = True", "lifespan", "on"),
        ("http_parser = 'fast'", "http_parser", "httptools"),
        ("http_parser = 'python'", "http_parser", "h11"),
        ("raw_env = ['A=1']", "raw_env", ["A=1"]),
        ("pythonpath = 'a,b'", "pythonpath", ["a", "b"]),
        ("loglevel = 'WARN'", "loglevel", "warning"),
        ("accesslog = '-'", "accesslog", "-"),
        ("accesslog = None", "accesslog", None),
        ("sendfile = None", "sendfile", True),
        ("wsgi_app = 'shop:app'", "app", "shop:app"),
        ("asgi_lifespan = 'off'", "lifespan", "off"),
    ],
)  # fmt: skip
def test_values_of_gunicorn_files(tmp_path: Path, line: str, name: str, value: object) -> None:
    (tmp_path / "gunicorn.conf.py").write_text(line + "\n")
    settings = load_settings({}, {}, tmp_path)
    assert getattr(settings, name) == value
    assert [level for level, _ in settings.notes] == ["info"]


def test_harmless_values_are_not_reported(tmp_path: Path) -> None:
    lines = ["proxy_protocol = 'off'", "protocol = 'http'", "reload_engine = 'auto'"]
    (tmp_path / "gunicorn.conf.py").write_text("\n".join([*lines, "spew = False"]))
    flags = parse_flags(["--proxy-protocol", "off"])
    settings = load_settings(flags, {"SERVO_SPEW": "false"}, tmp_path)
    assert [level for level, _ in settings.notes] == ["info"]


def test_a_helper_named_like_one_of_our_settings(tmp_path: Path) -> None:
    path = tmp_path / "gunicorn.conf.py"
    path.write_text("log_format = '%(message)s'\nworkers = 2\n")
    settings = load_settings({}, {}, tmp_path)
    assert (settings.log_format, settings.workers) == ("text", 2)
    assert settings.source("log_format") == "default"
    assert settings.notes[1][0] == "warning"
    assert "log_format: '%(message)s' is not valid (gunicorn.conf.py:1)" in settings.notes[1][1]
    path.write_text("workers = 'many'\n")
    with pytest.raises(ConfigError, match=r"'many' is not valid \(gunicorn\.conf\.py:1\)"):
        load_settings({}, {}, tmp_path)


# --- what hooks read of `cfg` ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("bind", "address"),
    [
        ("127.0.0.1:80", ("127.0.0.1", 80)),
        ("[::1]:8000", ("::1", 8000)),
        ("localhost", ("localhost", 8000)),
        ("unix:/run/app.sock", "/run/app.sock"),
        ("unix:///run/app.sock", "/run/app.sock"),
        ("@name", "@name"),
        ("fd://3", "fd://3"),
    ],
)
def test_addresses_are_gunicorns(bind, address):
    assert as_gunicorn_address(bind) == address


def test_every_setting_of_gunicorns_is_in_cfg():
    from gunicorn.config import Config

    cfg = Settings({}, {})
    views = cfg.settings
    absent = [name for name in Config().settings if name not in views and name not in HOOKS]
    assert absent == []
    for name in Config().settings:
        if name not in HOOKS and not callable(getattr(cfg, name)):
            assert views[name].get() == getattr(cfg, name), name
