"""Our counterparts of hypercorn's, uvicorn's and granian's options, for error messages.

Users may bring along the configuration of their old server. The most similar of our names is often
the wrong one (hypercorn's `keep_alive_timeout` looks like `keepalive_requests`). So each option of
these servers whose name differs from ours has a row here, under its name in files and under its
flag. gunicorn's names are the same as ours, or are listed in `servo.settings.gunicorn_compat`.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Peer:
    """The counterpart of another server's option.

    setting   our setting that does the same; "" if there is none
    value     the value for our setting, or its form; "" if the value is the same
    remark    a note for the user; if there is no setting, what to do instead
    """

    setting: str = ""
    value: str = ""
    remark: str = ""


_FIELDS = Peer(remark="response fields are set by the app or the proxy")
_PASSWORD = Peer(
    "keyfile_password_file", remark="a file, or SERVO_KEYFILE_PASSWORD in the environment"
)
_METRICS = Peer("metrics_bind", "HOST:PORT")
_STATIC = Peer(remark="static files are served by a proxy, a CDN or WhiteNoise")
_RSS = Peer(remark="max_worker_memory looks at each worker once a second; leave it out")
_RUST = Peer(remark="Servo has no runtime besides Python's; leave it out")
_H2_PING = Peer("keepalive", remark="it ends idle connections of HTTP/2, too")

PEERS: dict[str, Peer] = {
    # Where to listen.
    "host": Peer("bind", "HOST:PORT"),
    "port": Peer("bind", "HOST:PORT"),
    "address": Peer("bind", "HOST:PORT"),
    "uds": Peer("bind", "unix:PATH"),
    "fd": Peer("bind", "fd://N"),
    "uds_permissions": Peer("umask"),
    "insecure_bind": Peer(
        remark="TLS applies to every address of bind; run a second server without it"
    ),
    "quic_bind": Peer(remark="Servo has no HTTP/3; use a proxy or CDN that has it"),
    "alt_svc_headers": _FIELDS,
    # The app.
    "target": Peer("app"),
    "application": Peer("app"),
    "factory": Peer(remark="name the app as module:factory()"),
    "no_factory": Peer(remark="name the app as module:attribute"),
    "app_dir": Peer("pythonpath", remark="or chdir"),
    "working_dir": Peer("chdir"),
    "env_files": Peer("env_file"),
    "url_path_prefix": Peer("root_path"),
    "reset_contextvars": Peer(remark="each request has its own context; leave it out"),
    # Workers.
    "blocking_threads": Peer("threads", remark="they run WSGI apps"),
    "blocking_threads_idle_timeout": Peer(remark="idle threads are kept; leave it out"),
    "runtime_threads": _RUST,
    "runtime_blocking_threads": _RUST,
    "runtime_mode": _RUST,
    "task_impl": Peer(remark="requests run in asyncio tasks; leave it out"),
    "backpressure": Peer("worker_connections"),
    "limit_max_requests": Peer("max_requests"),
    "limit_max_requests_jitter": Peer("max_requests_jitter"),
    "workers_lifetime": Peer("max_lifetime"),
    "workers_max_rss": Peer("max_worker_memory", remark="512M for 512"),
    "rss_samples": _RSS,
    "rss_sample_interval": _RSS,
    "respawn_failed_workers": Peer(remark="a worker that ends is always replaced; leave it out"),
    "no_respawn_failed_workers": Peer(remark="a worker that ends is always replaced"),
    "respawn_interval": Peer(
        remark="a worker is replaced at once, or after a delay if it keeps failing"
    ),
    "startup_timeout": Peer("boot_timeout"),
    "shutdown_timeout": Peer("graceful_timeout"),
    "timeout_graceful_shutdown": Peer("graceful_timeout"),
    "workers_kill_timeout": Peer("graceful_timeout"),
    "timeout_worker_healthcheck": Peer("timeout"),
    "timeout_notify": Peer(remark="use a server hook, such as on_event"),
    "callback_notify": Peer(remark="use a server hook, such as on_event"),
    # HTTP.
    "http": Peer("http_parser", remark="httptools or h11; for the versions, http_protocols"),
    "http2": Peer("http_protocols", "h2,h1"),
    "alpn_protocols": Peer("http_protocols", "h2,h1"),
    "keep_alive_timeout": Peer("keepalive"),
    "timeout_keep_alive": Peer("keepalive"),
    "http1_keep_alive": Peer("keepalive", remark="seconds; 0 turns it off"),
    "no_http1_keep_alive": Peer("keepalive", "0"),
    "keep_alive_max_requests": Peer("keepalive_requests"),
    "read_timeout": Peer("header_timeout", remark="and body_timeout"),
    "http1_header_read_timeout": Peer("header_timeout", remark="in seconds"),
    "ssl_handshake_timeout": Peer("header_timeout", remark="it includes the handshake"),
    "h11_max_incomplete_size": Peer("limit_request_head_size"),
    "h11_max_incomplete_event_size": Peer("limit_request_head_size"),
    "http1_buffer_size": Peer("limit_request_head_size"),
    "http1_pipeline_flush": Peer(
        remark="responses are sent as soon as they are ready; leave it out"
    ),
    "no_http1_pipeline_flush": Peer(remark="responses are sent as soon as they are ready"),
    "h11_pass_raw_headers": Peer(remark="ASGI requires field names in lower case; leave it out"),
    "wsgi_max_body_size": Peer("limit_request_body"),
    "max_app_queue_size": Peer(remark="a body waits until the app reads it; leave it out"),
    "include_server_header": Peer("server_header", remark="the field's text; empty: no field"),
    "include_date_header": Peer("date_header"),
    "headers": Peer("response_headers", remark="a list of texts NAME: VALUE"),
    "server_names": Peer(remark="let the app (ALLOWED_HOSTS) or the proxy check the Host field"),
    "server_name": Peer(remark="let the app (ALLOWED_HOSTS) or the proxy check the Host field"),
    "proxy_headers": Peer("forwarded_allow_ips", remark="the networks of trusted proxies"),
    "no_proxy_headers": Peer("forwarded_fields", remark="empty: no field is trusted"),
    "static_path_route": _STATIC,
    "static_path_mount": _STATIC,
    "static_path_dir_to_file": _STATIC,
    "static_path_expires": _STATIC,
    "h2_max_concurrent_streams": Peer("http2_max_concurrent_streams"),
    "h2_max_header_list_size": Peer("http2_max_header_list_size"),
    "h2_max_inbound_frame_size": Peer("http2_max_frame_size"),
    "http2_max_headers_size": Peer("http2_max_header_list_size"),
    "http2_initial_stream_window_size": Peer("http2_initial_window_size"),
    "http2_initial_connection_window_size": Peer("http2_initial_window_size"),
    "http2_adaptive_window": Peer("http2_initial_window_size", remark="a fixed size"),
    "no_http2_adaptive_window": Peer(remark="windows have a fixed size; leave it out"),
    "http2_max_send_buffer_size": Peer(remark="a stream's buffer has a fixed limit; leave it out"),
    "http2_keep_alive_interval": _H2_PING,
    "http2_keep_alive_timeout": _H2_PING,
    "http1_settings": Peer(remark="use the separate settings limit_request_…"),
    "http2_settings": Peer(remark="use the separate settings http2_…"),
    # WebSocket.
    "ws": Peer("websocket", remark="on or off; the websockets library is used"),
    "no_ws": Peer("websocket", remark="off"),
    "websockets": Peer("websocket"),
    "ws_max_size": Peer("websocket_max_message_size"),
    "ws_max_queue": Peer("websocket_max_queue"),
    "ws_ping_interval": Peer("websocket_ping_interval"),
    "ws_ping_timeout": Peer("websocket_ping_timeout"),
    "ws_per_message_deflate": Peer("websocket_per_message_deflate"),
    # TLS.
    "ssl_certfile": Peer("certfile"),
    "ssl_certificate": Peer("certfile"),
    "ssl_cert": Peer("certfile"),
    "ssl_keyfile": Peer("keyfile"),
    "ssl_key": Peer("keyfile"),
    "ssl_keyfile_password": _PASSWORD,
    "ssl_key_password": _PASSWORD,
    "ssl_ca_certs": Peer("ca_certs"),
    "ssl_ca": Peer("ca_certs"),
    "ssl_cert_reqs": Peer("cert_reqs"),
    "verify_mode": Peer("cert_reqs"),
    "ssl_client_verify": Peer("cert_reqs", "required"),
    "no_ssl_client_verify": Peer("cert_reqs", "none"),
    "ssl_ciphers": Peer("ciphers"),
    "ssl_protocol_min": Peer("tls_minimum_version"),
    "ssl_crl": Peer(remark="use the ssl_context hook"),
    "verify_flags": Peer(remark="use the ssl_context hook"),
    "ssl_context_factory": Peer(remark="use the ssl_context hook"),
    # Logs and metrics.
    "log_dictconfig": Peer("logconfig_dict"),
    "debug": Peer("loglevel", "debug"),
    "log": Peer("errorlog", remark="a path; /dev/null: none"),
    "no_log": Peer("errorlog", "/dev/null"),
    "log_enabled": Peer("errorlog", remark="a path; /dev/null: none"),
    "error_log": Peer("errorlog"),
    "access_log": Peer("accesslog", "-"),
    "log_access": Peer("accesslog", "-"),
    "log_access_enabled": Peer("accesslog", "-"),
    "no_access_log": Peer(remark="the access log is off by default; leave it out"),
    "log_access_fmt": Peer("access_log_format", remark="in gunicorn's atoms"),
    "log_access_format": Peer("access_log_format", remark="in gunicorn's atoms"),
    "access_log_fmt": Peer("access_log_format", remark="in gunicorn's atoms"),
    "use_colors": Peer(remark="logs on a terminal have colours; NO_COLOR=1 turns them off"),
    "no_use_colors": Peer(remark="NO_COLOR=1 in the environment turns colours off"),
    "metrics": _METRICS,
    "metrics_enabled": _METRICS,
    "metrics_address": _METRICS,
    "metrics_port": _METRICS,
    "no_metrics": Peer(remark="metrics are off by default; leave it out"),
    "metrics_scrape_interval": Peer(remark="metrics are collected at each scrape; leave it out"),
    # The process, and development.
    "process_name": Peer("proc_name"),
    "pid_file": Peer("pidfile"),
    "pid_path": Peer("pidfile"),
    "use_reloader": Peer("reload"),
    "reload_includes": Peer("reload_include"),
    "reload_excludes": Peer("reload_exclude"),
    "reload_paths": Peer("reload_dirs"),
    "reload_ignore_dirs": Peer("reload_exclude"),
    "reload_ignore_patterns": Peer("reload_exclude", remark="file name patterns"),
    "reload_ignore_paths": Peer("reload_exclude"),
    "reload_filter": Peer("reload_include", remark="and reload_exclude: file name patterns"),
    "reload_delay": Peer(remark="changes are noticed at once; leave it out"),
    "reload_tick": Peer(remark="changes are noticed at once; leave it out"),
    "reload_ignore_worker_failure": Peer(remark="the server waits for the fix; leave it out"),
    "no_reload_ignore_worker_failure": Peer(remark="the server waits for the fix"),
}


def peer_of(name: str) -> Peer | None:
    """The counterpart of another server's option, or None.

    name   the option's name or flag; case, dashes and underscores don't matter
    """
    return PEERS.get(name.lower().lstrip("-").replace("-", "_"))


def advice(peer: Peer, ours: str, separator: str) -> str:
    """The end of a message about another server's option.

    peer        the option's counterpart
    ours        our setting, named as its source names it: by name, flag or variable
    separator   the text between a name and its value in that source
    """
    if not peer.setting:
        return f": {peer.remark}"
    if not peer.value and not peer.remark:
        return f"; did you mean {ours}?"
    value = f"{separator}{peer.value}" if peer.value else ""
    remark = f" ({peer.remark})" if peer.remark else ""
    return f"; use {ours}{value}{remark}"
