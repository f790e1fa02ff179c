"""Settings from several sources: precedence, the recorded source, and errors."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import pytest

from servo.errors import ConfigError, UsageError
from servo.http.limits import Limits
from servo.settings.flags import parse_flags
from servo.settings.schema import SETTINGS
from servo.settings.sources import Settings, drop_config_modules, load_settings, take_secrets


def load(
    directory: Path, *arguments: str, environ: dict[str, str] | None = None, **files: str
) -> Settings:
    for name, text in files.items():
        path = directory / name.replace("__", ".")
        path.write_text(text)
    return load_settings(parse_flags(arguments), environ or {}, directory)


def test_defaults(tmp_path: Path) -> None:
    settings = load(tmp_path)
    for name, setting in SETTINGS.items():
        expected = str(tmp_path.resolve()) if name == "chdir" else setting.default
        assert getattr(settings, name) == expected
        assert settings.source(name) == "default"
    assert settings.limits == Limits()
    assert settings.notes == ()


@pytest.mark.parametrize(
    ("variable", "text", "name", "value"),
    [
        ("PORT", "5000", "bind", ["0.0.0.0:5000"]),
        ("WEB_CONCURRENCY", "3", "workers", 3),
        ("FORWARDED_ALLOW_IPS", "10.0.0.0/8,::1", "forwarded_allow_ips", ["10.0.0.0/8", "::1"]),
        ("FORWARDED_ALLOW_IPS", "*", "forwarded_allow_ips", ["*"]),
        ("SENDFILE", "no", "sendfile", False),
    ],
)
def test_platform_variables_are_defaults(
    tmp_path: Path, variable: str, text: str, name: str, value: object
) -> None:
    settings = load(tmp_path, environ={variable: text})
    assert getattr(settings, name) == value
    assert settings.source(name) == f"environment {variable}"
    assert load(tmp_path, environ={variable: ""}).source(name) == "default"


def test_times_have_units_in_every_source(tmp_path: Path) -> None:
    settings = load(
        tmp_path,
        *("--graceful-timeout", "5m"),
        environ={"SERVO_HEADER_TIMEOUT": "500ms"},
        servo__toml='keepalive = "1h30m"\nbody_timeout = 9\n',
    )
    assert (settings.graceful_timeout, settings.header_timeout) == (300.0, 0.5)
    assert (settings.keepalive, settings.body_timeout) == (5400.0, 9.0)
    expected = r"timeout: '5 min' is not valid \(flag --timeout\); expected seconds, .* 5m or 1h30m"
    with pytest.raises(UsageError, match=expected):
        load(tmp_path, "--timeout", "5 min")


LAYERS = [
    ("environment WEB_CONCURRENCY", 2),
    ("servo.toml:1", 3),
    ("environment SERVO_CMD_ARGS, --workers", 4),
    ("environment SERVO_WORKERS", 5),
    ("flag --workers", 6),
]


@pytest.mark.parametrize("count", range(1, len(LAYERS) + 1))
def test_precedence(tmp_path: Path, count: int) -> None:
    environ = {"WEB_CONCURRENCY": "2"}
    arguments = []
    if count > 1:
        (tmp_path / "servo.toml").write_text("workers = 3\n")
    if count > 2:
        environ["SERVO_CMD_ARGS"] = "-w 4"
    if count > 3:
        environ["SERVO_WORKERS"] = "5"
    if count > 4:
        arguments = ["-w", "6"]
    settings = load(tmp_path, *arguments, environ=environ)
    assert (settings.source("workers"), settings.workers) == LAYERS[count - 1]


def test_gunicorn_cmd_args_stand_in_for_ours(tmp_path: Path) -> None:
    environ = {"GUNICORN_CMD_ARGS": "--workers=4 -k gthread --spew"}
    settings = load(tmp_path, environ=environ)
    assert (settings.workers, settings.worker_class) == (4, "thread")
    assert settings.notes[0] == ("info", "reading GUNICORN_CMD_ARGS: there is no SERVO_CMD_ARGS")
    expected = "here: --spew (use a tracer or a profiler) (environment GUNICORN_CMD_ARGS)"
    assert settings.notes[1][1].endswith(expected)
    settings = load(tmp_path, environ={**environ, "SERVO_CMD_ARGS": "-w 2"})
    assert (settings.workers, settings.worker_class, settings.notes) == (2, "auto", ())


def test_cmd_args_name_the_configuration_file(tmp_path: Path) -> None:
    environ = {"GUNICORN_CMD_ARGS": "-c other.py"}
    assert load(tmp_path, environ=environ, other__py="workers = 7\n").workers == 7


def test_the_environment_gives_lists_tables_and_switches(tmp_path: Path) -> None:
    environ = {
        "SERVO_BIND": "127.0.0.1:1,[::1]:2",
        "SERVO_RAW_ENV": '["A=1,2", "B="]',
        "SERVO_SECURE_SCHEME_HEADERS": '{"X-SSL": "1"}',
        "SERVO_DATE_HEADER": "off",
        "SERVO_KEEPALIVE": "",
        "SERVO_APP": "shop:app",
        "SERVO_UMASK": "022",
    }
    settings = load(tmp_path, environ=environ)
    assert settings.bind == ["127.0.0.1:1", "[::1]:2"]
    assert settings.env == {"A": "1,2", "B": ""}
    assert settings.secure_scheme_headers == {"X-SSL": "1"}
    assert settings.date_header is False
    assert settings.keepalive is None
    assert settings.app == "shop:app"
    assert settings.umask == 0o22


@pytest.mark.parametrize(
    "variable", ["SERVO__HANDOVER", "SERVOMOTOR", "SERVO_SLOT", "SERVO_COMPILE"]
)
def test_variables_that_are_ignored(tmp_path: Path, variable: str) -> None:
    """Servo's own processes use variables with two underscores, and workers have SERVO_SLOT."""
    assert load(tmp_path, environ={variable: "x"}).notes == ()


def test_variables_of_kubernetes_are_passed_over_in_one_line(tmp_path: Path) -> None:
    environ = {
        "SERVO_WORKERS": "3",
        "SERVO_WORKERS_SERVICE_HOST": "10.0.0.1",
        "SERVO_WORKERS_PORT": "tcp://10.0.0.1:8000",
        "SERVO_BIND_SERVICE_PORT": "80",
    }
    settings = load(tmp_path, environ=environ)
    assert settings.workers == 3
    shown = "SERVO_BIND_SERVICE_PORT, SERVO_WORKERS_PORT, SERVO_WORKERS_SERVICE_HOST"
    text = f"ignoring Kubernetes' variables for services: {shown}"
    assert settings.notes == (("debug", text),)


@pytest.mark.parametrize("value", ["tcp://10.0.0.1:80", "10.0.0.1", "80", "tcp"])
@pytest.mark.parametrize(
    "name", ["app", "proc_name", "access_log_format", "metrics_bind", "statsd_prefix"]
)
def test_a_value_of_that_form_is_a_settings_own(tmp_path: Path, name: str, value: str) -> None:
    settings = load(tmp_path, environ={SETTINGS[name].variable: value})
    assert getattr(settings, name) == value
    assert settings.notes == ()


def test_a_service_named_like_a_setting(tmp_path: Path) -> None:
    environ = {"SERVO_REUSE_PORT": "tcp://10.0.0.1:80"}
    settings = load(tmp_path, environ=environ)
    assert settings.source("reuse_port") == "default"
    assert [level for level, _ in settings.notes] == ["debug"]
    with pytest.raises(ConfigError, match="reuse_port: 'tcp' is not valid"):
        load(tmp_path, environ={"SERVO_REUSE_PORT": "tcp"})


@pytest.mark.parametrize(
    ("environ", "message"),
    [
        ({"SERVO_WROKERS": "2"}, r"SERVO_WROKERS; did you mean SERVO_WORKERS\?"),
        ({"SERVO_workers": "2"}, r"SERVO_workers; did you mean SERVO_WORKERS\?"),
        ({"SERVO_WROKERS": "10.0.0.1"}, r"SERVO_WROKERS; did you mean SERVO_WORKERS\?"),
        ({"SERVO_APP_SERVICE_HOST": "shop:app"}, "SERVO_APP_SERVICE_HOST"),
        ({"SERVO_APP_PORT": "8000"}, "SERVO_APP_PORT"),
        ({"SERVO_BIND": "tcp://10.0.0.1:80", "SERVO_PORT": "80"}, "SERVO_PORT"),
        ({"SERVO_COMPILED": "1"}, "environment variable SERVO_COMPILED"),
        ({"SERVO_CMD_ARG": ""}, r"did you mean SERVO_CMD_ARGS\?"),
        ({"SERVO_QQQQQQQQQQQQQQ": ""}, r"environment variable SERVO_QQQQQQQQQQQQQQ$"),
        (
            {"SERVO_WORKERS": "many"},
            r"workers: 'many' is not valid \(environment SERVO_WORKERS\); "
            r'expected a whole number from 1 to 4096 or "auto"',
        ),
        ({"WEB_CONCURRENCY": "many"}, r"workers: 'many' .*environment WEB_CONCURRENCY"),
        ({"SERVO_WORKERS": ""}, r"workers: ''"),
        ({"SERVO_CMD_ARGS": "--wrokers 2"}, r"--workers\? \(environment SERVO_CMD_ARGS\)"),
        ({"SERVO_CMD_ARGS": "-w many"}, r"'many' .*\(environment SERVO_CMD_ARGS, --workers\)"),
        ({"SERVO_CMD_ARGS": "-w '"}, r"quotation \(environment SERVO_CMD_ARGS\)"),
        ({"GUNICORN_CMD_ARGS": "--nope"}, r"--nope.*\(environment GUNICORN_CMD_ARGS\)"),
        ({"SERVO_CHDIR": "missing"}, r"chdir: 'missing' .*SERVO_CHDIR.* existing directory"),
        ({"SERVO_CONFIG": "missing.toml"}, r"no configuration file missing\.toml"),
    ],
)
def test_mistakes_in_the_environment(tmp_path: Path, environ: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        load(tmp_path, environ=environ)
    assert not isinstance(caught.value, UsageError)


def test_a_bad_value_is_an_error_even_where_another_wins(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="SERVO_WORKERS"):
        load(tmp_path, "-w", "2", environ={"SERVO_WORKERS": "many"})


def test_a_bad_value_of_a_flag_is_a_usage_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"loglevel: 'loud' is not valid \(flag --log-level\)"):
        load(tmp_path, "--log-level", "loud")
    with pytest.raises(UsageError, match=r"there is no setting wrokers; did you mean workers\?"):
        load_settings({"wrokers": 2}, {}, tmp_path)


def test_a_hard_memory_limit_leaves_room_for_the_soft_one(tmp_path: Path) -> None:
    flags = ["--max-worker-memory", "1G", "--max-worker-memory-hard"]
    with pytest.raises(UsageError, match=r"max_worker_memory_hard: .* is not more than"):
        load(tmp_path, *flags, "512M")
    with pytest.raises(ConfigError, match="50% is not more than max_worker_memory, 50%"):
        load(
            tmp_path, environ={variable("max_worker_memory" + end): "50%" for end in ("", "_hard")}
        )
    for hard in ("2G", "90%", "0"):
        load(tmp_path, *flags, hard)


@pytest.mark.parametrize(
    ("name", "flag", "value"),
    [("refork_after", "--refork-after", "5"), ("warm_up", "--warm-up", "/start")],
)
def test_settings_of_molds_need_molds(tmp_path: Path, name: str, flag: str, value: str) -> None:
    text = rf"{name}: {value} has no effect without preload_app .*; add --preload, or leave {name}"
    with pytest.raises(UsageError, match=text):
        load(tmp_path, flag, value)
    with pytest.raises(ConfigError, match=text):
        load(tmp_path, environ={variable(name): value})
    load(tmp_path, flag, value, "--preload")


def test_no_reforks_need_no_molds(tmp_path: Path) -> None:
    load(tmp_path, "--refork-after", "0")


def variable(name: str) -> str:
    return SETTINGS[name].variable


def test_gunicorn_settings_without_counterpart_are_reported(tmp_path: Path) -> None:
    notes: list[str] = []
    flags = parse_flags(["--ssl-version", "TLSv1_2", "-R"])
    settings = load_settings(flags, {"SERVO_SPEW": "1"}, tmp_path, notes.append)
    assert [level for level, _ in settings.notes] == ["warning"] * 2
    assert notes == [text for _, text in settings.notes]
    assert "gunicorn's spew (environment SERVO_SPEW)" in notes[0]
    assert notes[1] == (
        "ignoring what has no counterpart here: --ssl-version (set tls_minimum_version (gunicorn "
        "ignores it, too)), --enable-stdio-inheritance (a daemon's output goes to errorlog; use "
        "capture_output). The command line without it: servo"
    )


def test_chdir(tmp_path: Path) -> None:
    inner = tmp_path / "inner"
    inner.mkdir()
    (inner / "servo.toml").write_text("workers = 3\nlogconfig = 'log.ini'\n")
    (inner / "log.ini").touch()
    settings = load(tmp_path, "--chdir", "inner")
    assert settings.chdir == str(inner.resolve())
    assert settings.workers == 3  # from the file in chdir: the start directory has none
    assert load(tmp_path, "--chdir", "inner", servo__toml="").workers == 1


def test_settings_do_not_change(tmp_path: Path) -> None:
    settings = load(tmp_path)
    with pytest.raises(AttributeError, match="can't be changed"):
        settings.workers = 3
    with pytest.raises(AttributeError, match="can't be changed"):
        del settings.workers
    with pytest.raises(AttributeError, match="can't be changed"):
        settings.hooks.on_exit = print  # type: ignore[attr-defined]
    with pytest.raises(AttributeError, match="no setting 'wrokers'"):
        _ = settings.wrokers
    with pytest.raises(AttributeError, match="no hook 'on_start'"):
        _ = settings.hooks.on_start


def test_repr_shows_the_given_settings(tmp_path: Path) -> None:
    assert repr(load(tmp_path, "-w", "2")) == "Settings(workers=2)"


def made(**values: Any) -> Settings:
    sources = dict.fromkeys(values, "the test")
    return Settings(values, sources, cpus=lambda: 4)


@pytest.mark.parametrize(
    ("values", "interface", "expected"),
    [
        ({}, "wsgi", "sync"),
        ({}, "asgi", "async"),
        ({"threads": 2}, "wsgi", "thread"),
        ({"threads": 2}, "asgi", "async"),
        ({"worker_class": "sync"}, "asgi", "sync"),
        ({"worker_class": "sync", "threads": 2}, "wsgi", "thread"),
        ({"worker_class": "thread"}, "wsgi", "thread"),
        ({"worker_class": "async"}, "wsgi", "async"),
        ({"worker_class": "async", "threads": 8}, "wsgi", "async"),
        ({"worker_class": "my.Worker"}, "wsgi", "my.Worker"),
    ],
)
def test_worker_class_follows_the_interface(
    values: dict[str, Any], interface: str, expected: str
) -> None:
    assert made(**values).worker_class_for(interface) == expected


@pytest.mark.parametrize(
    ("values", "count"),
    [
        ({"workers": 3}, 3),
        ({"workers": "2:16"}, 2),
        ({"workers": "auto"}, 4),  # the app's interface isn't known yet
        ({"workers": "auto", "interface": "asgi"}, 4),
        ({"workers": "auto", "interface": "wsgi"}, 9),
        ({"workers": "auto", "interface": "wsgi", "threads": 2}, 4),
        ({"workers": "auto", "worker_class": "sync"}, 9),
        ({"workers": "auto", "worker_class": "thread"}, 4),
        ({"workers": "auto", "worker_class": "my.Worker"}, 4),
    ],
)
def test_worker_count(values: dict[str, Any], count: int) -> None:
    assert made(**values).worker_count == count


def test_bounds_of_autoscaling() -> None:
    assert made(workers="2:16").max_workers == 16
    assert made(workers=2).max_workers == made(workers="auto").max_workers == 0


@pytest.mark.parametrize(
    ("text", "nearest"),
    [
        ("5:2", "2:5"),
        ("0:4", "1:4"),
        ("2:", "2:8"),
        (":4", "1:4"),
        ("x:3", "1:3"),
        ("0:0", "1:4"),
        ("2:16:3", "2:16"),
        ("-1:4", "1:4"),
    ],
)
def test_bounds_that_make_no_sense(tmp_path: Path, text: str, nearest: str) -> None:
    with pytest.raises(UsageError, match=f"with 1 <= MIN <= MAX, such as {nearest}$"):
        load(tmp_path, f"--workers={text}")


@pytest.mark.parametrize(
    ("flag", "expected"),
    [
        ("--workers=40000", 'a whole number from 1 to 4096 or "auto", or MIN:MAX, such as 2:16'),
        ("--workers=4:40000", "MIN:MAX with 1 <= MIN <= MAX <= 4096, such as 4:4096"),
        ("--workers=9000:40000", "MIN:MAX with 1 <= MIN <= MAX <= 4096, such as 4096:4096"),
        ("--reload-batch=40000", "a whole number from 1 to 4096"),
        ("--scoreboard-size=100000000", "a whole number from 1 to 16384"),
    ],
)
def test_more_processes_than_any_machine_has(tmp_path: Path, flag: str, expected: str) -> None:
    with pytest.raises(UsageError, match=re.escape(f"expected {expected}") + "$"):
        load(tmp_path, flag)


def test_worker_count_of_a_class_that_is_known_later() -> None:
    settings = made(workers="auto")
    assert settings.worker_count_for("sync") == 9
    assert settings.worker_count_for("async") == 4
    assert made(workers=3).worker_count_for("sync") == 3


@pytest.mark.parametrize(
    ("values", "seconds"),
    [({}, 75), ({"workers": 2}, 75), ({"keepalive": 5.0}, 5), ({"keepalive": 0.0}, 0)],
)
def test_keepalive(values: dict[str, Any], seconds: float) -> None:
    assert made(**values).keepalive_s == seconds


def test_thread_count() -> None:
    assert made().thread_count == 4
    assert made(threads=1).thread_count == 1
    assert made(threads=16).thread_count == 16


def test_limits(tmp_path: Path) -> None:
    limits = load(tmp_path, "--limit-request-line", "0", "--limit-request-body", "1m").limits
    assert limits.request_line > 1 << 30
    assert limits.body == 1 << 20


def test_settings_that_need_a_restart(tmp_path: Path) -> None:
    old, new = load(tmp_path), load(tmp_path, "-b", ":1", "-w", "2", "-D")
    assert old.needs_restart(new) == ["bind", "daemon"]
    assert old.needs_restart(old) == []


def test_modules_of_the_configuration_file_are_dropped(tmp_path: Path) -> None:
    (tmp_path / "shop").mkdir()
    (tmp_path / "shop" / "__init__.py").touch()
    (tmp_path / "shop" / "numbers_.py").write_text("WORKERS = 2\n")
    (tmp_path / "installed" / "site-packages").mkdir(parents=True)
    (tmp_path / "installed" / "site-packages" / "library.py").touch()
    sys.path.insert(0, str(tmp_path / "installed" / "site-packages"))
    config = "import library\nfrom shop.numbers_ import WORKERS\nworkers = WORKERS\n"
    settings = load(tmp_path, servo__conf__py=config)
    assert settings.workers == 2
    assert set(settings.config_modules) == {"shop", "shop.numbers_", "library"}
    (tmp_path / "shop" / "numbers_.py").write_text("WORKERS = 2 + 1\n")
    drop_config_modules(settings)
    assert "shop.numbers_" not in sys.modules
    assert "library" in sys.modules
    drop_config_modules(settings)  # a second time there is nothing to do
    assert load(tmp_path).workers == 3


def test_secrets_leave_the_environment_once_they_are_read() -> None:
    environ = {"SERVO_KEYFILE_PASSWORD": "s3cret", "SERVO_WORKERS": "3", "PATH": "/bin"}
    copy = take_secrets(environ)
    assert copy["SERVO_KEYFILE_PASSWORD"] == "s3cret"
    assert environ == {"SERVO_WORKERS": "3", "PATH": "/bin"}


def test_variables_of_the_app_are_shown_by_name() -> None:
    settings = Settings({"raw_env": ["TOKEN=hush", "MODE=a=b"]}, {"raw_env": "flag --env"})
    assert settings.show("raw_env") == "TOKEN=…,MODE=…"
    assert "hush" not in repr(settings)


def test_no_error_shows_a_variable_of_the_app(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="raw_env: the value is not valid") as caught:
        load(tmp_path, environ={"SERVO_RAW_ENV": "TOKEN=hush,oops"})
    assert "hush" not in str(caught.value)


@pytest.mark.parametrize(
    ("flags", "environ", "expected"),
    [
        ({"reload": True}, {}, "-"),
        ({}, {"SERVO_RELOAD": "1"}, "-"),
        ({"reload": False}, {"SERVO_RELOAD": "1"}, None),
        ({"reload": True, "accesslog": ""}, {}, None),
        ({"reload": True, "accesslog": "x.log"}, {}, "x.log"),
        ({}, {}, None),
    ],
)
def test_a_developer_sees_each_request_at_a_terminal(
    tmp_path: Path, flags: dict[str, Any], environ: dict[str, str], expected: str | None
) -> None:
    assert load_settings(flags, environ, tmp_path, at_terminal=True).accesslog == expected
    if expected == "-":
        assert load_settings(flags, environ, tmp_path).accesslog is None


def test_an_invalid_reload_at_a_terminal_is_reported(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="SERVO_RELOAD"):
        load_settings({}, {"SERVO_RELOAD": "maybe"}, tmp_path, at_terminal=True)


def test_modules_of_servo_itself_stay(tmp_path: Path) -> None:
    """They are not in site-packages if Servo runs from a checkout."""
    from servo import cluster
    from servo.ipc import messages

    settings = Settings({}, {}, config_modules=("servo.cluster", "servo.ipc.messages"))
    drop_config_modules(settings)
    assert sys.modules["servo.cluster"] is cluster
    assert sys.modules["servo.ipc.messages"] is messages
