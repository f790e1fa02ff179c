"""Compatibility with gunicorn's configuration, beyond the names that both servers share.

A gunicorn setting that has no counterpart in Servo is reported by name, and ignored.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from servo.settings.types import ValueType


@dataclass(frozen=True, slots=True)
class Foreign:
    """A gunicorn setting that has no counterpart in Servo.

    name       its name
    flags      its flags
    argument   whether its flags take an argument; None: they may
    advice     what Servo does instead, or what the user can do
    """

    name: str
    flags: tuple[str, ...]
    argument: bool | None
    advice: str

    @property
    def main_flag(self) -> str:
        """The flag that messages name; the setting's name if it has no flag."""
        return next((flag for flag in self.flags if flag.startswith("--")), self.name)

    def matters(self, value: object) -> bool:
        """Whether Servo should warn that it ignores this value.

        It should not warn if Servo behaves in this way anyway.
        """
        if isinstance(value, str):
            value = value.strip().lower()
        return bool(value) and value not in _HARMLESS.get(self.name, ())

    def note(self, source: str) -> str:
        """The log message for a value of this setting.

        source   where the value comes from
        """
        return f"gunicorn's {self.name} ({source}) has no counterpart here: {self.advice}"


# gunicorn's defaults. A file that sets one of these changes nothing, so there is no warning.
_HARMLESS = {
    "logger_class": ("gunicorn.glogging.logger", "simple"),
    "protocol": ("http",),
    "reload_engine": ("auto",),
    "spew": ("false",),
}


def _foreign(advice: str, *rows: tuple[str, str, bool | None]) -> list[Foreign]:
    return [Foreign(name, tuple(flags.split()), arg, advice) for name, flags, arg in rows]


_DIRTY = "Servo has no dirty arbiters; run a task queue beside it"
_STRICT = "such requests are always refused"
_SYSLOG = "log to stderr under systemd, or configure a syslog handler in logconfig_dict"
_PASTE = "write a module that calls paste.deploy's loadapp, and serve the result"

FOREIGN: dict[str, Foreign] = {
    foreign.name: foreign
    for foreign in [
        *_foreign(
            "watchfiles always watches the files", ("reload_engine", "--reload-engine", True)
        ),
        *_foreign("use a tracer or a profiler", ("spew", "--spew", False)),
        *_foreign(
            "set logconfig_dict, or accesslog and errorlog",
            ("logger_class", "--logger-class", True),
        ),
        *_foreign(
            "a daemon's output goes to errorlog; use capture_output",
            ("enable_stdio_inheritance", "-R --enable-stdio-inheritance", False),
        ),
        *_foreign("set proc_name", ("default_proc_name", "", True)),
        *_foreign(
            "the app gets http.disconnect at once",
            ("asgi_disconnect_grace_period", "--asgi-disconnect-grace-period", True),
        ),
        *_foreign(
            "Servo speaks only HTTP",
            ("protocol", "--protocol", True),
            ("uwsgi_allow_ips", "--uwsgi-allow-from", True),
        ),
        *_foreign(
            "set forwarded_allow_ips and forwarded_fields",
            ("forwarder_headers", "--forwarder-headers", True),
        ),
        *_foreign(
            "set tls_minimum_version (gunicorn ignores it, too)",
            ("ssl_version", "--ssl-version", True),
        ),
        *_foreign(
            "connections that end without TLS's close_notify are never an error",
            ("suppress_ragged_eofs", "--suppress-ragged-eofs", False),
        ),
        *_foreign(
            "a handshake never blocks a worker",
            ("do_handshake_on_connect", "--do-handshake-on-connect", False),
        ),
        *_foreign(
            _SYSLOG,
            ("syslog", "--log-syslog", False),
            ("syslog_addr", "--log-syslog-to", True),
            ("syslog_prefix", "--log-syslog-prefix", True),
            ("syslog_facility", "--log-syslog-facility", True),
            (
                "disable_redirect_access_to_syslog",
                "--disable-redirect-access-to-syslog",
                False,
            ),
        ),
        *_foreign(
            _PASTE,
            ("paste", "--paste --paster", True),
            ("raw_paste_global_conf", "--paste-global", True),
        ),
        *_foreign(
            _STRICT,
            ("permit_obsolete_folding", "--permit-obsolete-folding", False),
            ("strip_header_spaces", "--strip-header-spaces", False),
            (
                "permit_unconventional_http_method",
                "--permit-unconventional-http-method",
                False,
            ),
            (
                "permit_unconventional_http_version",
                "--permit-unconventional-http-version",
                False,
            ),
            ("casefold_http_method", "--casefold-http-method", False),
        ),
        *_foreign(
            _DIRTY,
            ("dirty_apps", "--dirty-app", True),
            ("dirty_workers", "--dirty-workers", True),
            ("dirty_timeout", "--dirty-timeout", True),
            ("dirty_threads", "--dirty-threads", True),
            ("dirty_graceful_timeout", "--dirty-graceful-timeout", True),
            ("on_dirty_starting", "", True),
            ("dirty_post_fork", "", True),
            ("dirty_worker_init", "", True),
            ("dirty_worker_exit", "", True),
        ),
    ]
}


@dataclass(frozen=True, slots=True)
class SettingView:
    """An entry of `cfg.settings`, which hooks written for gunicorn read."""

    name: str
    value: Any
    default: Any
    section: str

    def get(self) -> Any:
        """The value."""
        return self.value


def foreign_value(name: str) -> Any:
    """The value that `cfg` has for a gunicorn setting without counterpart: False or None (off).

    Raises KeyError for a name that isn't in `FOREIGN`.
    """
    return False if FOREIGN[name].argument is False else None


def as_gunicorn_address(bind: str) -> tuple[str, int] | str:
    """An entry of `bind` in the form of gunicorn's `cfg.address`: (host, port), or a path.

    bind   an entry of the setting `bind`
    """
    if bind.startswith("unix:"):
        return bind.removeprefix("unix:").removeprefix("//")
    if bind.startswith(("@", "fd://")):
        return bind
    host, colon, port = bind.removeprefix("tcp://").rpartition(":")
    if not colon or not port.isdigit():
        host, port = bind.removeprefix("tcp://"), "8000"
    return host.strip("[]"), int(port)


# The names that Servo's settings share with gunicorn's (by `Setting.name` or `Setting.alias`). In a
# gunicorn configuration file, any other name of ours may be one of the file's own variables.
SHARED = frozenset(
    """
    config wsgi_app bind backlog workers worker_class threads worker_connections max_requests
    max_requests_jitter timeout graceful_timeout keepalive limit_request_line limit_request_fields
    limit_request_field_size preload_app reload reload_extra_files check_config print_config
    sendfile reuse_port chdir daemon raw_env pidfile worker_tmp_dir user group umask initgroups
    tmp_upload_dir secure_scheme_headers forwarded_allow_ips accesslog access_log_format errorlog
    loglevel capture_output logconfig logconfig_dict logconfig_json proc_name pythonpath
    header_map root_path asgi_loop asgi_lifespan proxy_protocol proxy_allow_ips
    http_protocols http2_cleartext
    http2_max_concurrent_streams http2_initial_window_size http2_max_frame_size
    http2_max_header_list_size websocket_max_message_size http_parser
    certfile keyfile ca_certs cert_reqs ciphers
    control_socket control_socket_mode control_socket_disable
    statsd_host statsd_prefix dogstatsd_tags enable_backlog_metric
    """.split()  # noqa: SIM905 (a long list of names is easier to read in lines)
)

WORKER_CLASSES = ("auto", "sync", "thread", "async")

_ALIASES = {
    "gthread": "thread",
    "threads": "thread",
    "asgi": "async",
    "gunicorn.workers.sync.SyncWorker": "sync",
    "gunicorn.workers.gthread.ThreadWorker": "thread",
    "gunicorn.workers.gasgi.ASGIWorker": "async",
}
_NO_GREENLETS = (
    "green threads are not supported: use --worker-class thread with --threads, or an ASGI app"
)
_HYPERCORN = "event loops are no worker classes here: set loop, and worker_class to async"
_TORNADO = "Tornado's own loop is not supported: serve the app as WSGI or ASGI"
_REFUSED = {
    "asyncio": _HYPERCORN,
    "uvloop": _HYPERCORN,
    "trio": "trio is not supported: ASGI apps run on asyncio, in worker_class async",
    "gevent": _NO_GREENLETS,
    "gevent_wsgi": _NO_GREENLETS,
    "gevent_pywsgi": _NO_GREENLETS,
    "eventlet": _NO_GREENLETS,
    "gunicorn.workers.ggevent": _NO_GREENLETS,
    "gunicorn.workers.geventlet": _NO_GREENLETS,
    "tornado": _TORNADO,
    "gunicorn.workers.gtornado": _TORNADO,
}


class WorkerClassError(ValueError):
    """A worker class that isn't supported.

    advice   what to use instead
    """

    def __init__(self, advice: str) -> None:
        super().__init__(advice)
        self.advice = advice


class WorkerClass(ValueType):
    """A worker class: our name, gunicorn's name, a dotted path, or (in Python) a class."""

    metavar = "NAME"
    valid = "auto, sync, thread, async, or the dotted path of a class"

    def from_text(self, text: str) -> str:
        name = text.strip()
        if name in WORKER_CLASSES:
            return name
        if name in _ALIASES:
            return _ALIASES[name]
        module = name.rpartition(".")[0]
        if module.split(".")[0] == "uvicorn_worker" or module.startswith("uvicorn.workers"):
            return "async"
        for refused in (name, module):
            if refused in _REFUSED:
                raise WorkerClassError(_REFUSED[refused])
        if not module or not all(part.isidentifier() for part in name.split(".")):
            raise ValueError("no such worker class")
        return name

    def from_value(self, value: object) -> Any:
        if isinstance(value, type):
            # Use the path of the class. This also works for a class of the configuration file,
            # whose module stays loaded, and turns gunicorn's and uvicorn's classes into our names.
            return self.from_text(f"{value.__module__}.{value.__qualname__}")
        return super().from_value(value)
