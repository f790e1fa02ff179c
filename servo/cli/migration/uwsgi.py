"""Migrates uWSGI's ini files."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from servo.cli.migration.migrated import Migrated
from servo.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

_SWITCH_ON = ("1", "true", "yes", "on", "")
_MIB = 1024 * 1024

# Options that are another name of a setting.
_RENAMED = {
    "chdir": "chdir",
    "chdir2": "chdir",
    "pythonpath": "pythonpath",
    "python-path": "pythonpath",
    "pp": "pythonpath",
    "env": "raw_env",
    "threads": "threads",
    "listen": "backlog",
    "max-requests": "max_requests",
    "max-requests-delta": "max_requests_jitter",
    "max-worker-lifetime": "max_lifetime",
    "worker-reload-mercy": "graceful_timeout",
    "reload-mercy": "graceful_timeout",
    "buffer-size": "limit_request_head_size",
    "limit-post": "limit_request_body",
    "http-timeout": "send_timeout",
    "socket-timeout": "body_timeout",
    "http-keepalive": "keepalive",
    "procname": "proc_name",
    "procname-prefix": "proc_name",
    "pidfile": "pidfile",
    "safe-pidfile": "pidfile",
    "uid": "user",
    "gid": "group",
    "umask": "umask",
    "mount-path": "root_path",
}
# Options whose effect Servo has anyway.
_USUAL = frozenset(
    """
    master need-app die-on-term vacuum single-interpreter enable-threads strict no-orphans
    lazy lazy-apps thunder-lock close-on-exec auto-procname wsgi-env-behaviour
    py-call-osafterfork protocol plugin plugins log-master threaded-logger
    post-buffering ignore-sigpipe ignore-write-errors disable-write-exception
    """.split()  # noqa: SIM905
)
_ADVICE = {
    "harakiri": "set request_timeout for ASGI apps; for WSGI, timeout replaces a worker whose "
    "requests block it",
    "virtualenv": "start Servo from that environment: {value}/bin/servo",
    "venv": "start Servo from that environment: {value}/bin/servo",
    "home": "start Servo from that environment: {value}/bin/servo",
    "static-map": "static files are served by a proxy, a CDN or WhiteNoise",
    "static-map2": "static files are served by a proxy, a CDN or WhiteNoise",
    "check-static": "static files are served by a proxy, a CDN or WhiteNoise",
    "touch-reload": "run `servoctl reload` when you deploy; while you develop, use --reload",
    "touch-chain-reload": "run `servoctl reload` when you deploy",
    "py-autoreload": "use `servo --reload` while you develop",
    "stats": "set metrics_bind for Prometheus, or run `servoctl monit`",
    "stats-server": "set metrics_bind for Prometheus, or run `servoctl monit`",
    "emperor": "write one servo.toml and one systemd unit (`servoctl unit`) for each app",
    "mule": "run it as a service of its own, or in a task queue such as Celery",
    "mules": "run it as a service of its own, or in a task queue such as Celery",
    "spooler": "use a task queue such as Celery or Dramatiq",
    "cron": "use cron or a systemd timer",
    "cron2": "use cron or a systemd timer",
    "attach-daemon": "write a systemd unit for that program",
    "smart-attach-daemon": "write a systemd unit for that program",
    "gevent": "green threads are not supported: use threads, or an ASGI app",
    "asyncio": "serve an ASGI app instead",
    "chmod-socket": "umask sets the permissions of sockets, too: 660 corresponds to umask 0o007",
    "chown-socket": "the socket belongs to the setting user",
    "logformat": "set access_log_format, in gunicorn's atoms",
    "log-format": "set access_log_format, in gunicorn's atoms",
    "log-maxsize": "use logrotate, and `servoctl reopen` after it",
    "cheaper-algo": "Servo has one algorithm: workers = MIN:MAX",
    "cheaper-initial": "workers = MIN:MAX starts with MIN",
    "cheaper-step": "Servo decides by the load how many workers to add",
    "route": "use a proxy for routes",
    "uwsgi-socket": "Servo speaks HTTP: in nginx, write proxy_pass instead of uwsgi_pass",
}
_LINE = re.compile(r"([^=\s]+)\s*(?:=\s*(.*))?")
_PLACEHOLDER = re.compile(r"%\(([\w-]+)\)")


def is_uwsgi(text: str) -> bool:
    """Whether the text of an ini file is uWSGI's."""
    return re.search(r"^\[uwsgi\]", text, re.MULTILINE) is not None


def migrate_uwsgi(path: Path) -> Migrated:
    """Migrate an ini file.

    path   the file

    Raises ConfigError if it can't be read.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (UnicodeDecodeError, OSError) as error:
        raise ConfigError(f"{path} can't be read: {error}") from error
    options = _options(text, path)
    found = Migrated("", str(path))
    _app(found, options)
    _workers(found, options)
    for option, value in options:
        if f"%({option})" not in text:  # such an option is a variable of the file
            _one(found, option, value)
    if not any(option in ("lazy", "lazy-apps") for option, _ in options):
        found.lost(
            "lazy-apps",
            "without it, uWSGI's workers share the imported app; preload_app = true does so here",
        )
    return found


def _options(text: str, path: Path) -> list[tuple[str, str]]:
    """The options of the section [uwsgi] in their order; an option may occur several times."""
    options: list[tuple[str, str]] = []
    known = {"d": str(path.absolute().parent) + "/", "n": path.stem, "p": str(path.absolute())}
    section = ""
    for raw in text.splitlines():
        line = raw.strip()
        if not line or line[0] in "#;":
            continue
        if line.startswith("["):
            section = line.strip("[]").strip()
        elif section == "uwsgi" and (match := _LINE.fullmatch(line)):
            name, value = match[1], match[2] or ""
            value = _PLACEHOLDER.sub(lambda each: known.get(each[1], each[0]), value)
            value = re.sub(r"%([dnp])", lambda each: known[each[1]], value)
            known[name] = value
            options.append((name.lower().replace("_", "-"), value))
    return options


def _app(found: Migrated, options: list[tuple[str, str]]) -> None:
    given = dict(options)
    module = given.get("module") or given.get("wsgi") or given.get("mount", "").partition("=")[2]
    file = given.get("wsgi-file") or given.get("file")
    attribute = given.get("callable", "application")
    if module:
        found.put("app", module if ":" in module else f"{module}:{attribute}", "module")
    elif file:
        found.put("app", f"{file}:{attribute}", "wsgi-file")
    else:
        found.lost("app", 'there is no module or wsgi-file; write app = "module:attribute"')
    if given.get("mount"):
        found.put("root_path", given["mount"].partition("=")[0].rstrip("/"), "mount")


def _workers(found: Migrated, options: list[tuple[str, str]]) -> None:
    given = dict(options)
    most = given.get("workers") or given.get("processes") or given.get("p")
    most = "auto" if most and not most.isdigit() else most
    least = given.get("cheaper")
    if least and most and most.isdigit():
        found.put("workers", f"{least}:{most}", "cheaper")
    elif most:
        found.put("workers", most, "workers")


def _bind(found: Migrated, option: str, value: str) -> None:
    address = value.split(",")[0]
    if address.startswith(":"):
        address = f"0.0.0.0{address}"  # noqa: S104  as uWSGI does
    elif ":" not in address and not address.isdigit():
        address = f"unix:{address}"
    found.add("bind", address, option)
    if option == "socket":
        found.lost(
            option, "Servo speaks HTTP here: in nginx, write proxy_pass instead of uwsgi_pass"
        )
    if option == "https":
        parts = [*value.split(","), "", ""]
        found.put("certfile", parts[1], option)
        found.put("keyfile", parts[2], option)


def _memory(found: Migrated, option: str, value: str) -> None:
    setting = "max_worker_memory_hard" if option == "evil-reload-on-rss" else "max_worker_memory"
    found.put(setting, f"{value}M", option)


def _log(found: Migrated, option: str, value: str) -> None:
    del option
    found.put("errorlog", value, "logto")
    found.put("accesslog", value, "logto")


def _no_log(found: Migrated, option: str, value: str) -> None:
    del option, value
    found.values.pop("accesslog", None)


def _daemon(found: Migrated, option: str, value: str) -> None:
    found.put("daemon", True, option)
    found.put("errorlog", value, option)


_SPECIAL: dict[str, Callable[[Migrated, str, str], None]] = {
    **dict.fromkeys(("http", "http-socket", "https", "socket", "s"), _bind),
    "reload-on-rss": _memory,
    "evil-reload-on-rss": _memory,
    "logto": _log,
    "logto2": _log,
    "req-logger": _log,
    "disable-logging": _no_log,
    "daemonize": _daemon,
}
_DONE = frozenset("module wsgi mount callable wsgi-file file workers processes p cheaper".split())  # noqa: SIM905


def _one(found: Migrated, option: str, value: str) -> None:
    if option in _DONE:
        return
    if option in _SPECIAL:
        _SPECIAL[option](found, option, value)
    elif setting := _RENAMED.get(option):
        if setting in ("raw_env", "pythonpath"):
            found.add(setting, value, option)
        else:
            found.put(setting, value, option)
    elif option in _ADVICE:
        found.lost(option, _ADVICE[option].format(value=value))
    elif option not in _USUAL:
        found.lost(option, "unknown to Servo")
