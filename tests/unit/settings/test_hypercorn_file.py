"""hypercorn's TOML files."""

from __future__ import annotations

from pathlib import Path

import pytest

from servo.errors import ConfigError
from servo.settings.files import FileContent, read_config
from servo.settings.sources import load_settings

FILE = """
bind = ["127.0.0.1:9000", "unix:/run/app.sock"]
workers = 2
worker_class = "uvloop"
accesslog = "-"
access_log_format = "%(h)s %(r)s %(s)s"
errorlog = "-"
loglevel = "INFO"
keep_alive_timeout = 5
keep_alive_max_requests = 100
graceful_timeout = 10
shutdown_timeout = 60
startup_timeout = "2m"
read_timeout = 7
include_server_header = false
include_date_header = true
h2_max_concurrent_streams = 50
h11_max_incomplete_size = 8192
max_app_queue_size = 10
alpn_protocols = ["h2", "http/1.1"]
pid_path = "hypercorn.pid"
use_reloader = false
quic_bind = []
server_names = []
umask = 18
debug = false
verify_mode = "CERT_NONE"
wsgi_max_body_size = 1000
"""


def read(tmp_path: Path, text: str, name: str = "hypercorn.toml") -> FileContent:
    (tmp_path / name).write_text(text)
    return read_config(name, [tmp_path])


def test_a_whole_file(tmp_path: Path) -> None:
    (tmp_path / "hypercorn.toml").write_text(FILE)
    settings = load_settings({"config": "hypercorn.toml"}, {}, tmp_path)
    read = {
        name: getattr(settings, name)
        for name in vars(settings)
        if settings.source(name).startswith("hypercorn.toml:")
    }
    assert read == {
        "bind": ["127.0.0.1:9000", "unix:/run/app.sock"],
        "workers": 2,
        "worker_class": "async",
        "loop": "uvloop",
        "accesslog": "-",
        "access_log_format": "%(h)s %(r)s %(s)s",
        "errorlog": "-",
        "loglevel": "info",
        "keepalive": 5.0,
        "keepalive_requests": 100,
        "graceful_timeout": 10.0,
        "boot_timeout": 120.0,
        "header_timeout": 7.0,
        "body_timeout": 7.0,
        "server_header": "",
        "date_header": True,
        "http2_max_concurrent_streams": 50,
        "limit_request_head_size": 8192,
        "http_protocols": ["h2", "h1"],
        "pidfile": "hypercorn.pid",
        "reload": False,
        "umask": 0o022,
        "cert_reqs": 0,
        "limit_request_body": 1000,
    }
    assert settings.source("loop") == "hypercorn.toml:4"
    assert settings.notes == (
        (
            "warning",
            "ignoring what has no counterpart here: max_app_queue_size (a body waits until the app "
            "reads it; leave it out) (hypercorn.toml)",
        ),
    )


def test_what_can_not_be_left_out_is_refused_together(tmp_path: Path) -> None:
    text = 'server_names = ["a"]\nwrokers = 2\ninsecure_bind = ["[::]:80"]\nquic_bind = ["x"]\n'
    with pytest.raises(ConfigError) as caught:
        read(tmp_path, text)
    lines = str(caught.value).splitlines()
    assert [line.partition(")")[0] for line in lines] == [
        "server_names (hypercorn.toml:1",
        "insecure_bind (hypercorn.toml:3",
        "there is no setting wrokers (hypercorn.toml:2",
    ]


def test_other_worker_classes(tmp_path: Path) -> None:
    assert read(tmp_path, 'worker_class = "sync"').values["worker_class"].value == "sync"
    read(tmp_path, 'worker_class = "trio"')
    with pytest.raises(ConfigError, match=r"'trio' is not valid \(hypercorn.toml:1\); trio is not"):
        load_settings({"config": "hypercorn.toml"}, {}, tmp_path)


def test_debug_and_values_of_no_effect(tmp_path: Path) -> None:
    found = read(tmp_path, 'debug = true\nquic_bind = ["x:1"]\nlogger_class = "a.B"\n')
    assert found.values["loglevel"].value == "debug"
    assert [text.partition(" (")[0] for _, text in found.notes] == [
        "ignoring what has no counterpart here: quic_bind",
        "gunicorn's logger_class",
    ]


def test_only_files_of_that_name_are_read_so(tmp_path: Path) -> None:
    assert read(tmp_path, "keep_alive_timeout = 5", "prod.hypercorn.toml").values["keepalive"]
    with pytest.raises(ConfigError, match="did you mean keepalive"):
        read(tmp_path, "keep_alive_timeout = 5", "servo.toml")
