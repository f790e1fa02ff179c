"""Options of hypercorn, uvicorn and granian: each is a setting here or has advice."""

from __future__ import annotations

from pathlib import Path

import pytest

from servo.errors import ConfigError, UsageError
from servo.settings.config_hooks import HOOKS
from servo.settings.files import read_config
from servo.settings.flags import all_flags, parse_flags
from servo.settings.gunicorn_compat import FOREIGN
from servo.settings.peer_flags import peer_flags
from servo.settings.peers import PEERS, peer_of
from servo.settings.schema import SETTINGS, canonical
from servo.settings.sources import load_settings

# hypercorn 0.18: the attributes of its Config, and flags with other names.
HYPERCORN = """
access_log_format accesslog alpn_protocols alt_svc_headers backlog bind ca_certs cert_reqs certfile
ciphers daemon debug dogstatsd_tags errorlog graceful_timeout group h11_max_incomplete_size
h11_pass_raw_headers h2_max_concurrent_streams h2_max_header_list_size h2_max_inbound_frame_size
include_date_header include_server_header insecure_bind keep_alive_max_requests keep_alive_timeout
keyfile keyfile_password logconfig logconfig_dict logger_class loglevel max_app_queue_size
max_requests max_requests_jitter pid_path quic_bind read_timeout response_headers root_path
server_names shutdown_timeout ssl_handshake_timeout startup_timeout statsd_host statsd_prefix umask
use_reloader user verify_flags verify_mode websocket_max_message_size websocket_ping_interval
worker_class workers wsgi_max_body_size application
--access-log --access-logfile --access-logformat --error-log --error-logfile --log-file --log-config
--log-level --keep-alive --insecure-bind --quic-bind --server-name --verify-mode --pid --reload
"""
# uvicorn 0.54: the parameters of its Config and of its command.
UVICORN = """
app host port uds fd loop http http2 ws ws_max_size ws_max_queue ws_ping_interval ws_ping_timeout
ws_per_message_deflate lifespan env_file log_config log_level access_log use_colors interface reload
reload_dirs reload_delay reload_includes reload_excludes workers proxy_headers server_header
date_header forwarded_allow_ips root_path limit_concurrency limit_max_requests
limit_max_requests_jitter backlog timeout_keep_alive timeout_notify timeout_graceful_shutdown
timeout_worker_healthcheck callback_notify ssl_keyfile ssl_certfile ssl_keyfile_password ssl_version
ssl_cert_reqs ssl_ca_certs ssl_ciphers ssl_context_factory headers factory app_dir
h11_max_incomplete_event_size reset_contextvars
--reload-dir --reload-include --reload-exclude --no-access-log --no-use-colors --no-proxy-headers
--no-server-header --no-date-header --header --log-config --log-level
"""
# granian 2.8: the parameters of its command and of its Server.
GRANIAN = """
app target address host port uds uds_permissions interface http websockets workers blocking_threads
blocking_threads_idle_timeout runtime_threads runtime_blocking_threads runtime_mode loop task_impl
backlog backpressure http1_settings http2_settings http1_buffer_size http1_header_read_timeout
http1_keep_alive http1_pipeline_flush http2_adaptive_window http2_initial_connection_window_size
http2_initial_stream_window_size http2_keep_alive_interval http2_keep_alive_timeout
http2_max_concurrent_streams http2_max_frame_size http2_max_headers_size http2_max_send_buffer_size
log_enabled log_level log_config log_dictconfig log_access log_access_enabled log_access_fmt
log_access_format ssl_certificate ssl_cert ssl_keyfile ssl_key ssl_keyfile_password ssl_key_password
ssl_protocol_min ssl_ca ssl_crl ssl_client_verify url_path_prefix respawn_failed_workers
respawn_interval rss_sample_interval rss_samples workers_lifetime workers_max_rss
workers_kill_timeout factory working_dir env_files static_path_route static_path_mount
static_path_dir_to_file static_path_expires metrics_enabled metrics_scrape_interval metrics_address
metrics_port reload reload_paths reload_ignore_dirs reload_ignore_patterns reload_ignore_paths
reload_filter reload_tick reload_ignore_worker_failure process_name pid_file
--ws --no-ws --no-http1-keep-alive --no-http1-pipeline-flush --no-http2-adaptive-window --log
--no-log --access-log --no-access-log --access-log-fmt --no-ssl-client-verify
--no-respawn-failed-workers --no-factory --metrics --no-metrics --no-reload
--no-reload-ignore-worker-failure
"""


@pytest.mark.parametrize("option", sorted({*HYPERCORN.split(), *UVICORN.split(), *GRANIAN.split()}))
def test_every_option_is_known(option: str) -> None:
    flags = {flag for setting in SETTINGS.values() for flag in all_flags(setting)}
    flags |= {flag for foreign in FOREIGN.values() for flag in foreign.flags}
    flag = f"--{option.replace('_', '-')}"
    ours = {option, flag} & flags or canonical(option) is not None or option in FOREIGN
    assert bool(ours) != (peer_of(option) is not None)


@pytest.mark.parametrize("name", PEERS)
def test_the_setting_of_a_row_exists(name: str) -> None:
    peer = PEERS[name]
    assert canonical(name) is None
    assert name not in FOREIGN
    assert name not in HOOKS
    if peer.setting:
        assert peer.setting in SETTINGS
    else:
        assert peer.remark
        assert not peer.value


@pytest.mark.parametrize("name", [name for name in PEERS if PEERS[name].value])
def test_a_value_that_a_row_shows_can_be_read(name: str) -> None:
    peer = PEERS[name]
    value = peer.value.replace("PORT", "80").replace("N", "3")
    SETTINGS[peer.setting].read(value, "", is_text=True)


@pytest.mark.parametrize("name", PEERS)
def test_its_flag_is_none_of_ours(name: str) -> None:
    flag = "--" + name.replace("_", "-")
    if flag in peer_flags():
        return  # it works: see test_peer_flags.py
    with pytest.raises(UsageError, match=rf"^there is no flag {flag}(;|:) \w"):
        parse_flags([flag])


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("keep_alive_timeout", "5", "; did you mean keepalive?"),
        ("timeout-keep-alive", "5", "; did you mean keepalive?"),
        ("port", "8000", "; use bind = HOST:PORT"),
        ("log_level", "'info'", "; did you mean loglevel?"),
        ("log_config", "'x'", "; did you mean logconfig?"),
        ("pid_path", "'x'", "; did you mean pidfile?"),
        ("read_timeout", "5", "; use header_timeout (and body_timeout)"),
        ("quic_bind", "'x'", ": Servo has no HTTP/3; use a proxy or CDN that has it"),
        ("http1_settings", "{a = 1}", ": use the separate settings limit_request_…"),
    ],
)
def test_a_file_written_for_a_peer(tmp_path: Path, name: str, value: str, message: str) -> None:
    (tmp_path / "web.toml").write_text(f"workers = 2\n{name} = {value}\n")
    with pytest.raises(ConfigError) as caught:
        read_config("web.toml", [tmp_path])
    assert str(caught.value) == f"there is no setting {name} (web.toml:2){message}"


def test_all_unknown_names_of_a_file_are_reported_together(tmp_path: Path) -> None:
    text = "port = 8000\nworkers = 2\non_exit = 'x'\nconfig = 'x'\nwrokers = 3\n"
    (tmp_path / "servo.toml").write_text(text)
    with pytest.raises(ConfigError) as caught:
        read_config("servo.toml", [tmp_path])
    assert str(caught.value).splitlines() == [
        "there is no setting port (servo.toml:1); use bind = HOST:PORT",
        "on_exit is a hook (servo.toml:3); hooks need a Python file: servo.conf.py",
        "config is not allowed in a file (servo.toml:4); use a flag",
        "there is no setting wrokers (servo.toml:5); did you mean workers?",
    ]


def test_a_python_file_written_for_a_peer(tmp_path: Path) -> None:
    text = "debug = True\nkeep_alive_timeout = 5\nkeep_alive_max_requests = 5\ndef host(): ...\n"
    (tmp_path / "hypercorn.py").write_text(text + "pid_path = 'x'\nprint(pid_path)\n")
    assert read_config("file:hypercorn.py", [tmp_path]).notes == [
        (
            "warning",
            "keep_alive_timeout (hypercorn.py:2) is not a setting; did you mean keepalive?",
        ),
        (
            "warning",
            "keep_alive_max_requests (hypercorn.py:3) is not a setting; "
            "did you mean keepalive_requests?",
        ),
    ]


@pytest.mark.parametrize(
    ("variable", "message"),
    [
        ("SERVO_KEEP_ALIVE_TIMEOUT", "; did you mean SERVO_KEEPALIVE?"),
        ("SERVO_PORT", "; use SERVO_BIND=HOST:PORT"),
        ("SERVO_QUIC_BIND", ": Servo has no HTTP/3; use a proxy or CDN that has it"),
    ],
)
def test_a_variable_named_for_a_peer(tmp_path: Path, variable: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_settings({}, {variable: "8000"}, tmp_path)
    expected = f"there is no setting for the environment variable {variable}{message}"
    assert str(caught.value) == expected


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--keep-alive-timeout", "; did you mean --keep-alive?"),
        ("--address", "; use --bind HOST:PORT"),
        ("--ssl-context-factory", ": use the ssl_context hook"),
        ("--log-access", "; use --access-logfile -"),
    ],
)
def test_an_option_of_a_peer_that_is_no_flag_there(flag: str, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_flags([flag])
    assert str(caught.value) == f"there is no flag {flag}{message}"
