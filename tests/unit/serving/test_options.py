"""Keyword arguments of `servo.run` and `servo.Server` as flags."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest

from servo.serving.options import flags_of
from servo.settings.sources import load_settings


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"host": "0.0.0.0", "port": 80}, {"bind": ["0.0.0.0:80"]}),
        ({"bind": ["a:1", "b:2"]}, {"bind": ["a:1", "b:2"]}),
        ({"fd": 3}, {"bind": ["fd://3"]}),
        ({"uds": Path("x.sock")}, {"bind": ["unix:x.sock"]}),
        ({"workers": 4, "limit_max_requests": 5}, {"workers": 4, "max_requests": 5}),
        ({"log_level": "warning"}, {"loglevel": "warning"}),
        ({"log_level": logging.ERROR}, {"loglevel": "error"}),
        ({"log_level": 5}, {"loglevel": "debug"}),
        ({"log_config": {"version": 1}}, {"logconfig_dict": {"version": 1}}),
        ({"access_log": True}, {"accesslog": "-"}),
        ({"access_log": False}, {"accesslog": None}),
        ({"server_header": False}, {"server_header": ""}),
        ({"server_header": True, "date_header": True}, {"date_header": True}),
        ({"proxy_headers": True}, {}),
        ({"proxy_headers": False}, {"forwarded_fields": []}),
        ({"forwarded_allow_ips": ["10.0.0.0/8"]}, {"forwarded_allow_ips": ["10.0.0.0/8"]}),
        ({"forwarded_allow_ips": "*"}, {"forwarded_allow_ips": ["*"]}),
        ({"ssl_certfile": Path("c"), "ssl_keyfile": "k"}, {"certfile": "c", "keyfile": "k"}),
        ({"ssl_keyfile_password": "secret"}, {"keyfile_password": "secret"}),
        ({"ssl_cert_reqs": 2}, {"cert_reqs": 2}),
        ({"timeout_keep_alive": 5, "timeout_graceful_shutdown": None}, {"keepalive": 5.0}),
        ({"graceful_timeout": "5m", "keep_alive": 1}, {"graceful_timeout": 300.0,
                                                       "keepalive": 1.0}),
        ({"ws_max_size": 10, "ws_per_message_deflate": False, "ws": "wsproto"},
         {"websocket_max_message_size": 10, "websocket_per_message_deflate": False}),
        ({"lifespan": "on", "loop": "asyncio", "http": "h11", "interface": "asgi3"},
         {"lifespan": "on", "loop": "asyncio", "http_parser": "h11", "interface": "asgi"}),
        ({"reload_includes": ["*.html"], "reload_excludes": ["x"]},
         {"reload_include": ["*.html"], "reload_exclude": ["x"]}),
        ({"headers": [("a", "b"), ["C", "d"]]}, {"response_headers": ["a: b", "C: d"]}),
        ({"factory": False, "reset_contextvars": True}, {}),
        ({"keep_alive_timeout": 5}, {"keepalive": 5.0}),
    ],
)  # fmt: skip
def test_options_of_uvicorn_and_of_servo(
    tmp_path: Path, options: dict[str, Any], expected: dict[str, Any]
) -> None:
    settings = load_settings(flags_of(options), {}, tmp_path)
    given = [name for name in vars(settings) if settings.source(name) != "default"]
    assert {name: getattr(settings, name) for name in given} == expected


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("prot", "^there is no option prot$"),
        ("wrokers", r"there is no option wrokers; did you mean workers\?"),
        ("ssl_context_factory", "ssl_context_factory: use the ssl_context hook"),
    ],
)
def test_unknown_options(name: str, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        flags_of({name: 1})
