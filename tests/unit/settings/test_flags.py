"""The flags of the command line."""

from __future__ import annotations

import pytest

from servo.errors import UsageError
from servo.settings.flags import all_flags, parse_flags
from servo.settings.schema import SETTINGS
from servo.settings.setting import Setting


def test_nothing_given_is_nothing() -> None:
    assert parse_flags([]) == {}


def test_the_app_stands_anywhere() -> None:
    expected = {"app": "shop:app", "workers": "2", "daemon": True}
    assert parse_flags(["shop:app", "-w", "2", "-D"]) == expected
    assert parse_flags(["-w2", "-D", "shop:app"]) == expected
    assert parse_flags(["-D", "--workers=2", "--", "shop:app"]) == expected


@pytest.mark.parametrize("setting", SETTINGS.values(), ids=SETTINGS)
def test_every_spelling_of_a_flag_means_its_setting(setting: Setting) -> None:
    for flag in all_flags(setting):
        if setting.no_flag and flag == setting.no_flag[0]:
            assert parse_flags([flag]) == {setting.name: setting.no_flag[1]}
        elif setting.is_switch:
            # gunicorn's --no-control-socket switches something on: control_socket_disable.
            on = flag == setting.main_flag or not flag.startswith("--no-")
            assert parse_flags([flag]) == {setting.name: on}
        elif setting.type.many:
            assert parse_flags([flag, "a", flag, "b"]) == {setting.name: ["a", "b"]}
        else:
            assert parse_flags([flag, "value"]) == {setting.name: "value"}


@pytest.mark.parametrize(
    ("arguments", "given"),
    [
        (["--limit-request-field_size", "9"], {"limit_request_field_size": "9"}),
        (["--limit-request-field-size", "9"], {"limit_request_field_size": "9"}),
        (["-e", "A=1,2", "--env", "B=3"], {"raw_env": ["A=1,2", "B=3"]}),
        (["-p", "x.pid"], {"pidfile": "x.pid"}),
        (["--pid", "x.pid"], {"pidfile": "x.pid"}),
        (["--access-logfile", "-"], {"accesslog": "-"}),
        (["--log-file", "-"], {"errorlog": "-"}),
        (["--error-logfile=e.log"], {"errorlog": "e.log"}),
        (["--access-logformat", "-%(h)s"], {"access_log_format": "-%(h)s"}),
        (["-t", "5", "-k", "gthread"], {"timeout": "5", "worker_class": "gthread"}),
        (["--no-sendfile"], {"sendfile": False}),
        (["--no-server-header"], {"server_header": ""}),
        (["--server-header", "mine"], {"server_header": "mine"}),
        (["--proxy-protocol", "-w", "2"], {"proxy_protocol": "auto", "workers": "2"}),
        (["--proxy-protocol", "v2"], {"proxy_protocol": "v2"}),
        (["--reload", "--no-reload"], {"reload": False}),
        (["--asgi-loop", "uvloop"], {"loop": "uvloop"}),
        (["--asgi-lifespan", "off"], {"lifespan": "off"}),
    ],
)
def test_gunicorns_ways(arguments: list[str], given: dict[str, object]) -> None:
    assert parse_flags(arguments) == given


def test_gunicorns_other_flags_are_understood_with_their_arguments() -> None:
    given = parse_flags(["-R", "--certfile", "c.pem", "--spew", "--dirty-app", "x", "shop:app"])
    assert given.pop("app") == "shop:app"
    assert set(given) == {"enable_stdio_inheritance", "certfile", "spew", "dirty_apps"}


def test_the_flags_of_other_servers_have_names_of_their_own() -> None:
    given = parse_flags(
        ["--host", "::", "--no-ws", "--quic-bind", "a:1", "--quic-bind", "b:1", "shop:app"]
    )
    assert given == {
        "app": "shop:app",
        "peer_host": "::",
        "peer_no_ws": True,
        "peer_quic_bind": ["a:1", "b:1"],
    }


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--wrokers", "2"], r"there is no flag --wrokers; did you mean --workers\?"),
        (["--no-relaod"], r"did you mean --no-reload\?"),
        (["--zzzzzzzz"], r"there is no flag --zzzzzzzz$"),
        (["-Z"], r"there is no flag -Z"),
        (["--workers"], r"'--workers' requires an argument"),
        (["--reload=yes"], r"'--reload' does not take a value"),
        (["one:app", "two:app"], r"\(two:app\): one app can be served"),
        (["--address", "0.0.0.0"], r"use --bind HOST:PORT"),
        (["--access-log", "a.log", "one:app"], r"one app can .*: --access-logfile FILE$"),
        (["--help"], r"there is no flag --help"),  # only the `servo` command has it
    ],
)
def test_mistakes(arguments: list[str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        parse_flags(arguments)
