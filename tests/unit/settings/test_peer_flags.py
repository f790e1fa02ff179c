"""The flags of uvicorn, hypercorn and granian on Servo's command line."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from servo.errors import ConfigError, UsageError
from servo.settings import peer_flags
from servo.settings.flags import all_flags, parse_flags
from servo.settings.gunicorn_compat import FOREIGN
from servo.settings.schema import SETTINGS
from servo.settings.sources import Settings, load_settings

# The flags in the help of uvicorn 0.54, hypercorn 0.18 and granian 2.8.9.
UVICORN = """
--host --port --uds --fd --reload --reload-dir --reload-include --reload-exclude --reload-delay
--workers --loop --http --http2 --ws --ws-max-size --ws-max-queue --ws-ping-interval
--ws-ping-timeout --ws-per-message-deflate --lifespan --interface --env-file --log-config
--log-level --access-log --no-access-log --use-colors --no-use-colors --proxy-headers
--no-proxy-headers --server-header --no-server-header --date-header --no-date-header
--forwarded-allow-ips --root-path --limit-concurrency --backlog --limit-max-requests
--limit-max-requests-jitter --timeout-keep-alive --timeout-graceful-shutdown
--timeout-worker-healthcheck --ssl-keyfile --ssl-certfile --ssl-keyfile-password --ssl-version
--ssl-cert-reqs --ssl-ca-certs --ssl-ciphers --header --app-dir --h11-max-incomplete-event-size
--reset-contextvars --factory
"""
HYPERCORN = """
--access-log --access-logfile --access-logformat --backlog -b --bind --ca-certs --certfile
--cert-reqs --ciphers -c --config -D --daemon --debug --error-log --error-logfile --log-file
--graceful-timeout --read-timeout --max-requests --max-requests-jitter -g --group -k --worker-class
--keep-alive --keyfile --keyfile-password --insecure-bind --log-config --log-level -p --pid
--quic-bind --reload --root-path --server-name --statsd-host --statsd-prefix -m --umask -u --user
--verify-mode --websocket-ping-interval -w --workers
"""
GRANIAN = """
--host --port --uds --uds-permissions --interface --http --ws --no-ws --workers --blocking-threads
--blocking-threads-idle-timeout --runtime-threads --runtime-blocking-threads --runtime-mode --loop
--task-impl --backlog --backpressure --http1-buffer-size --http1-header-read-timeout
--http1-keep-alive --no-http1-keep-alive --http1-pipeline-flush --no-http1-pipeline-flush
--http2-adaptive-window --no-http2-adaptive-window --http2-initial-connection-window-size
--http2-initial-stream-window-size --http2-keep-alive-interval --http2-keep-alive-timeout
--http2-max-concurrent-streams --http2-max-frame-size --http2-max-headers-size
--http2-max-send-buffer-size --log --no-log --log-level --log-config --access-log --no-access-log
--access-log-fmt --ssl-certificate --ssl-keyfile --ssl-keyfile-password --ssl-protocol-min --ssl-ca
--ssl-crl --ssl-client-verify --no-ssl-client-verify --url-path-prefix --respawn-failed-workers
--no-respawn-failed-workers --respawn-interval --rss-sample-interval --rss-samples
--workers-lifetime --workers-max-rss --workers-kill-timeout --factory --no-factory --working-dir
--env-files --static-path-route --static-path-mount --static-path-dir-to-file --static-path-expires
--metrics --no-metrics --metrics-scrape-interval --metrics-address --metrics-port --reload
--no-reload --reload-paths --reload-ignore-dirs --reload-ignore-patterns --reload-ignore-paths
--reload-tick --reload-ignore-worker-failure --no-reload-ignore-worker-failure --process-name
--pid-file
"""
ALL = {*UVICORN.split(), *HYPERCORN.split(), *GRANIAN.split()}
OURS = {flag for setting in SETTINGS.values() for flag in all_flags(setting)}
GUNICORNS = {flag for foreign in FOREIGN.values() for flag in foreign.flags}


def load(tmp_path: Path, line: str, **environ: str) -> Settings:
    return load_settings(parse_flags(shlex.split(line)), environ, tmp_path)


def values(tmp_path: Path, line: str, **environ: str) -> dict[str, object]:
    """The settings that a command line sets."""
    settings = load(tmp_path, line, **environ)
    given = [name for name in SETTINGS if settings.source(name) != "default"]
    return {name: getattr(settings, name) for name in given}


@pytest.mark.parametrize("flag", sorted(ALL))
def test_every_flag_is_known_once(flag: str) -> None:
    assert sum(flag in flags for flags in (OURS, GUNICORNS, peer_flags.peer_flags())) == 1


def test_there_are_no_others() -> None:
    assert set(peer_flags.peer_flags()) <= ALL


@pytest.mark.parametrize("flag", peer_flags.peer_flags())
def test_each_has_a_meaning(flag: str) -> None:
    meaning = peer_flags.meaning(flag)
    assert meaning.strip("` ")
    assert all(part.count("--") == 0 for part in meaning.split("`")[::2])


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("--host 0.0.0.0 --port 80", {"bind": ["0.0.0.0:80"]}),
        ("--port 0", {"bind": ["127.0.0.1:0"]}),
        ("--host ::1", {"bind": ["[::1]:8000"]}),
        ("--uds app.sock", {"bind": ["unix:app.sock"]}),
        ("--fd 3", {"bind": ["fd://3"]}),
        ("--factory main:create", {"app": "main:create()"}),
        ("--factory 'main:create(1)'", {"app": "main:create(1)"}),
        ("--factory main", {"app": "main"}),
        ("--app-dir src --pythonpath lib", {"pythonpath": ["lib", "src"]}),
        ("--interface asgi3", {"interface": "asgi"}),
        ("--interface asginl", {"interface": "asgi", "lifespan": "off"}),
        ("--http h11", {"http_parser": "h11"}),
        ("--http zttp --ws wsproto", {}),
        ("--http 2", {"http_protocols": ["h2"]}),
        ("--http2", {"http_protocols": ["h2", "h1"]}),
        ("--header a:b --header 'C: d e'", {"response_headers": ["a: b", "C: d e"]}),
        ("--ws none", {"websocket": False}),
        ("--no-ws", {"websocket": False}),
        (
            "--ws-max-size 10 --ws-max-queue 2",
            {"websocket_max_message_size": 10, "websocket_max_queue": 2},
        ),
        ("--ws-ping-interval 1.5", {"websocket_ping_interval": 1.5}),
        ("--ws-per-message-deflate false", {"websocket_per_message_deflate": False}),
        ("--access-log", {"accesslog": "-"}),
        ("--access-log --access-logfile a.log", {"accesslog": "a.log"}),
        ("--no-access-log", {"accesslog": None}),
        ("--proxy-headers", {}),
        ("--no-proxy-headers", {"forwarded_fields": []}),
        (
            "--limit-max-requests 9 --limit-max-requests-jitter 3",
            {"max_requests": 9, "max_requests_jitter": 3},
        ),
        (
            "--timeout-keep-alive 5 --timeout-graceful-shutdown 10",
            {"keepalive": 5.0, "graceful_timeout": 10.0},
        ),
        (
            "--ssl-certfile c --ssl-keyfile k --ssl-ca-certs a --ssl-cert-reqs 2 --ssl-ciphers x",
            {"certfile": "c", "keyfile": "k", "ca_certs": "a", "cert_reqs": 2, "ciphers": "x"},
        ),
        ("--reset-contextvars --log --http1-keep-alive", {}),
        ("-k uvloop", {"worker_class": "async", "loop": "uvloop"}),
        ("-k asyncio --loop uvloop", {"worker_class": "async", "loop": "uvloop"}),
        ("wsgi:main:app", {"app": "main:app", "interface": "wsgi"}),
        ("asgi:app", {"app": "asgi:app"}),
        ("--read-timeout 7", {"header_timeout": 7.0, "body_timeout": 7.0}),
        ("--verify-mode CERT_REQUIRED --debug", {"cert_reqs": 2, "loglevel": "debug"}),
        ("--log-level notset", {"loglevel": "debug"}),
        ("--blocking-threads 4 --backpressure 5", {"threads": 4, "worker_connections": 5}),
        (
            "--http1-header-read-timeout 1500 --no-http1-keep-alive",
            {"header_timeout": 1.5, "keepalive": 0.0},
        ),
        (
            "--workers-lifetime 2h --workers-max-rss 512",
            {"max_lifetime": 7200.0, "max_worker_memory": 512 << 20},
        ),
        (
            "--ssl-protocol-min tls1.3 --ssl-client-verify",
            {"tls_minimum_version": "1.3", "cert_reqs": 2},
        ),
        ("--uds-permissions 660", {"umask": 0o007}),
        ("--uds-permissions 0600", {"umask": 0o077}),
        ("--uds-permissions 666", {}),
        ("--metrics", {"metrics_bind": "127.0.0.1:9090"}),
        ("--metrics --metrics-address 0.0.0.0 --metrics-port 9", {"metrics_bind": "0.0.0.0:9"}),
        (
            "--access-log-fmt '[%(time)s] %(addr)s %(method)s-%(path)s %(status)d %(dt_ms).3f'",
            {"access_log_format": "%(t)s %(h)s %(m)s-%(U)s %(s)s %(M)s"},
        ),
        ("--reload-paths a", {"reload_dirs": ["a"]}),
        ("--reload-ignore-dirs b --reload-ignore-dirs c", {"reload_exclude": ["b", "c"]}),
        (
            "--process-name x --pid-file y --no-log",
            {"proc_name": "x", "pidfile": "y", "errorlog": "/dev/null"},
        ),
    ],
)
def test_flags_become_settings(tmp_path: Path, line: str, expected: dict[str, object]) -> None:
    for name in ("a", "src", "lib"):
        (tmp_path / name).mkdir()
    settings = load(tmp_path, line)
    assert values(tmp_path, line) == expected
    assert settings.notes == ()
    # What Servo's own command line sets is the same.
    found = peer_flags.translate(parse_flags(shlex.split(line)))
    own = [word for word in shlex.split(found.command_line())[1:] if word != "-"]
    assert not {word for word in own if word.startswith("--")} - OURS
    if expected.get("accesslog", "") is not None:
        again = values(tmp_path, found.command_line().removeprefix("servo"))
        assert again == expected


def test_the_source_is_the_flag_that_was_typed(tmp_path: Path) -> None:
    settings = load(tmp_path, "--port 80 --ssl-certfile x --no-access-log -k uvloop")
    assert settings.source("bind") == "flag --port"
    assert settings.source("certfile") == "flag --ssl-certfile"
    assert settings.source("accesslog") == "flag --no-access-log"
    assert settings.source("loop") == "flag --worker-class"
    with pytest.raises(UsageError, match=r"^keepalive: 'x' is not valid \(flag --timeout-keep-"):
        load(tmp_path, "--timeout-keep-alive x")


def test_the_port_of_the_platform(tmp_path: Path) -> None:
    assert load(tmp_path, "--host 0.0.0.0", PORT="5000").bind == ["0.0.0.0:5000"]
    assert load(tmp_path, "--host 0.0.0.0 --port 80", PORT="5000").bind == ["0.0.0.0:80"]


def test_flags_without_counterpart_are_reported_together(tmp_path: Path) -> None:
    line = "main:app --reload-delay 0.5 --use-colors -R --port 80 --ws auto -e SECRET=x"
    ((level, text),) = load(tmp_path, line).notes
    assert level == "warning"
    assert text == (
        "ignoring what has no counterpart here: --enable-stdio-inheritance (a daemon's output goes "
        "to errorlog; use capture_output), --reload-delay (changes are noticed at once; leave it "
        "out), --use-colors (logs on a terminal have colours; NO_COLOR=1 turns them off). The "
        "command line without it: servo main:app --env 'SECRET=…' --bind 127.0.0.1:80"
    )


def test_everything_wrong_is_reported_together(tmp_path: Path) -> None:
    line = "main:app -k gevent -w x --interface rsgi --ssl-crl c --ssl-keyfile-password pw -R -t 9"
    with pytest.raises(UsageError) as caught:
        load(tmp_path, line)
    lines = str(caught.value).splitlines()
    assert [text.partition(" ")[0] for text in lines[:6]] == [
        "worker_class:",
        "workers:",
        "--ssl-crl",
        "--ssl-keyfile-password",
        "--interface",
        "--enable-stdio-inheritance",
    ]
    assert "SERVO_KEYFILE_PASSWORD" in lines[3]
    assert lines[6:] == ["The rest of the command line: servo main:app --timeout 9"]
    assert "pw" not in str(caught.value)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("--bind a:1 --host b", "--host and --bind both set bind"),
        ("--keep-alive 1 --timeout-keep-alive 2", "--timeout-keep-alive and --keep-alive both"),
        ("--no-proxy-headers --forwarded-fields for", "--no-proxy-headers and --forwarded-fields"),
        ("--ssl-ca a --ssl-ca-certs b", "both set ca_certs"),
        (
            "--header a",
            r"response_headers: \['a'\] is not valid \(flag --header\); expected a list",
        ),
        ("--static-path-mount x", "WhiteNoise"),
        ("--insecure-bind x", "run a second server"),
        ("--server-name x", "ALLOWED_HOSTS"),
        ("--keyfile-password x", "SERVO_KEYFILE_PASSWORD"),
        ("--ws main:app", "--ws main:app can't be used here: it takes auto"),
        ("--loop zuvloop", "use --loop auto"),
        ("--loop my:loop", "a loop factory can't be given"),
        ("-k trio", "--worker-class trio can't be used here: Servo runs ASGI apps on asyncio"),
        ("--uds-permissions 9", "expected octal digits"),
        ("--access-log-fmt '%(scheme)s'", r"there is no field %\(scheme\)s"),
        ("--factory", "name the app on the command line"),
    ],
)
def test_refusals(tmp_path: Path, line: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        load(tmp_path, line)


def test_ignored_addresses(tmp_path: Path) -> None:
    settings = load(tmp_path, "--uds x --port 80 --metrics-port 9")
    assert settings.bind == ["unix:x"]
    assert settings.metrics_bind is None
    assert "--port (--uds says where to listen)" in settings.notes[0][1]
    assert "--metrics-port (--metrics turns metrics on)" in settings.notes[0][1]


def test_flags_in_the_environment(tmp_path: Path) -> None:
    settings = load(tmp_path, "", SERVO_CMD_ARGS="--port 80 --use-colors")
    assert settings.bind == ["127.0.0.1:80"]
    assert settings.source("bind") == "environment SERVO_CMD_ARGS, --port"
    assert settings.notes[0][1].endswith("turns them off) (environment SERVO_CMD_ARGS)")
    with pytest.raises(ConfigError, match=r"^--server-name can't .*\n.*: servo \(env"):
        load(tmp_path, "", SERVO_CMD_ARGS="--server-name a")
    with pytest.raises(ConfigError, match=r"both set bind.*\(environment SERVO_CMD_ARGS\)"):
        load(tmp_path, "", SERVO_CMD_ARGS="--port 80 --bind :90")


def test_no_flag_trusts_a_proxy(tmp_path: Path) -> None:
    default = load(tmp_path, "")
    settings = load(tmp_path, "--proxy-headers --http 2 --host 0.0.0.0")
    for name in ("forwarded_allow_ips", "forwarded_fields", "http2_cleartext", "proxy_protocol"):
        assert getattr(settings, name) == getattr(default, name)
