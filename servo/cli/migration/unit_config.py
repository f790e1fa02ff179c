"""Migrates NGINX Unit's config.json; each of its Python applications becomes a server."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from servo.cli.migration.migrated import Migrated
from servo.errors import ConfigError

if TYPE_CHECKING:
    from pathlib import Path

# Options of an application that are another name of a setting.
_RENAMED = {
    "working_directory": "chdir",
    "user": "user",
    "group": "group",
    "threads": "threads",
    "stderr": "errorlog",
    "prefix": "root_path",
}
_HTTP = {
    "header_read_timeout": "header_timeout",
    "body_read_timeout": "body_timeout",
    "send_timeout": "send_timeout",
    "idle_timeout": "keepalive",
    "max_body_size": "limit_request_body",
}
_ADVICE = {
    "home": "start Servo from that environment: {value}/bin/servo",
    "isolation": "use the sandboxing of systemd: `servoctl unit --hardened`",
    "targets": "write one servo.toml for each target",
    "stdout": "what the app prints goes to stdout, and so to the journal under systemd",
}
_DONE = frozenset(
    "type module callable factory path protocol processes limits environment".split()  # noqa: SIM905
)


def is_unit(content: Any) -> bool:
    """Whether the content of a JSON file is Unit's configuration."""
    return isinstance(content, dict) and "applications" in content


def migrate_unit(content: dict[str, Any], path: Path) -> list[Migrated]:
    """Migrate a configuration.

    content   the file's content
    path      the file

    Raises ConfigError if it has no Python application.
    """
    applications = content["applications"]
    found = [
        _app(name, app, content, path)
        for name, app in applications.items()
        if isinstance(app, dict) and str(app.get("type", "")).startswith("python")
    ]
    if not found:
        raise ConfigError(f"{path} has no application of type python")
    for name, app in applications.items():
        if isinstance(app, dict) and not str(app.get("type", "")).startswith("python"):
            found[0].lost(f"applications.{name}", f"Servo does not run {app.get('type')}")
    if "routes" in content:
        found[0].lost("routes", "use a proxy, such as nginx or HAProxy, for routes and files")
    return found


def _app(name: str, app: dict[str, Any], content: dict[str, Any], path: Path) -> Migrated:
    found = Migrated(name, f"{path}, application {name}")
    module = app.get("module")
    target = f"{module}:{app.get('callable', 'application')}"
    if module:
        found.put("app", f"{target}()" if app.get("factory") else target, "module")
    found.put("proc_name", name, "applications")
    if app.get("protocol") in ("asgi", "wsgi"):
        found.put("interface", app["protocol"], "protocol")
    if paths := app.get("path"):
        found.put("pythonpath", [paths] if isinstance(paths, str) else paths, "path")
    for variable, text in app.get("environment", {}).items():
        found.add("raw_env", f"{variable}={text}", f"environment.{variable}")
    _processes(found, app.get("processes", 1))
    limits = app.get("limits", {})
    if "requests" in limits:
        found.put("max_requests", limits["requests"], "limits.requests")
    if "timeout" in limits:
        found.put("request_timeout", limits["timeout"], "limits.timeout")
    for option, value in app.items():
        if option in _RENAMED:
            found.put(_RENAMED[option], value, option)
        elif option in _ADVICE:
            found.lost(option, _ADVICE[option].format(value=value))
        elif option not in _DONE:
            found.lost(option, "unknown to Servo")
    _listeners(found, name, content)
    for option, value in content.get("settings", {}).get("http", {}).items():
        if option in _HTTP:
            found.put(_HTTP[option], value, f"settings.http.{option}")
        else:
            found.lost(f"settings.http.{option}", "unknown to Servo")
    if "access_log" in content:
        log = content["access_log"]
        found.put("accesslog", log if isinstance(log, str) else log.get("path"), "access_log")
    return found


def _processes(found: Migrated, given: Any) -> None:
    if not isinstance(given, dict):
        found.put("workers", given, "processes")
        return
    most, least = given.get("max", 1), max(given.get("spare", 1), 1)
    found.put("workers", f"{least}:{most}" if least < most else most, "processes")
    if "idle_timeout" in given:
        found.put("scale_down_delay", given["idle_timeout"], "processes.idle_timeout")


def _listeners(found: Migrated, name: str, content: dict[str, Any]) -> None:
    for address, listener in content.get("listeners", {}).items():
        goal = str(listener.get("pass", ""))
        parts = goal.split("/")
        if parts[0] == "applications" and parts[1:2] != [name]:
            continue
        if parts[0] != "applications":
            found.lost(f"listeners.{address}", f"it passes requests to {goal}: use a proxy")
            continue
        found.add("bind", address.replace("*:", "0.0.0.0:"), f"listeners.{address}")
        if "tls" in listener:
            found.lost(
                f"listeners.{address}.tls",
                "Unit stores certificates under a name; set certfile and keyfile to their files",
            )
        if "forwarded" in listener:
            sources = listener["forwarded"].get("source", [])
            found.put("forwarded_allow_ips", sources, f"listeners.{address}.forwarded")
