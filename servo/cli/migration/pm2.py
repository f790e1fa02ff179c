"""Migrates PM2's ecosystem files whose apps are Python servers."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

from servo.cli.migration.command_lines import migrate_command_line, server_of, split
from servo.cli.migration.migrated import Migrated
from servo.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable

_NODE_S = 10.0
# Prints what the file exports; a function, as some write, is called first.
_PRINT = (
    "const found = require(process.argv[1]);"
    "console.log(JSON.stringify(typeof found === 'function' ? found() : found))"
)
_ADVICE = {
    "instance_var": "a worker's number is in SERVO_SLOT",
    "increment_var": "a worker's number is in SERVO_SLOT",
    "cron_restart": "run `servoctl reload` by cron or a systemd timer; or set max_lifetime",
    "wait_ready": "Servo waits until a worker serves; boot_timeout limits the time",
    "min_uptime": "Servo waits between restarts of a worker that keeps failing",
    "restart_delay": "Servo waits between restarts of a worker that keeps failing",
    "exp_backoff_restart_delay": "Servo waits between restarts of a worker that keeps failing",
    "out_file": "set accesslog; what the app prints goes to stdout",
    "out": "set accesslog; what the app prints goes to stdout",
    "output": "set accesslog; what the app prints goes to stdout",
    "log_date_format": 'the log\'s time has a fixed format; log_format = "json" has ISO 8601',
    "interpreter_args": "put the interpreter's options into the systemd unit",
    "node_args": "Servo runs Python only",
    "source_map_support": "Servo runs Python only",
    "autorestart": "a worker that ends is always replaced",
    "stop_exit_codes": "a worker that ends is always replaced",
    "ignore_watch": "set reload_exclude, a list of file name patterns",
    "deploy": "Servo does not deploy files",
}
_USUAL = frozenset(
    """
    name script args cwd interpreter exec_mode namespace merge_logs combine_logs vizion
    pmx automation treekill shutdown_with_message time force kill_retry_time
    """.split()  # noqa: SIM905
)


def read_ecosystem(path: Path) -> Any:
    """Read an ecosystem file: JSON, YAML or JavaScript, which Node.js then runs.

    path   the file

    Raises ConfigError if it can't be read.
    """
    try:
        if path.suffix in (".js", ".cjs"):
            return json.loads(_run_node(path))
        text = path.read_text(encoding="utf-8")
        if path.suffix in (".yml", ".yaml"):
            return _yaml(text, path)
        return json.loads(text)
    except (ValueError, OSError) as error:
        raise ConfigError(f"{path} can't be read: {error}") from error


def _run_node(path: Path) -> str:
    node = shutil.which("node")
    if node is None:
        raise ConfigError(
            f"{path} is JavaScript, and node is not installed: convert it to ecosystem.json"
        )
    command = [node, "-e", _PRINT, str(path.absolute())]
    try:
        done = subprocess.run(  # noqa: S603  (PM2 runs the file, too)
            command, capture_output=True, text=True, timeout=_NODE_S, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise ConfigError(f"{path} took longer than {_NODE_S:g} s to run") from error
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise ConfigError(f"node can't run {path}: {last}")
    return done.stdout


def _yaml(text: str, path: Path) -> Any:
    try:
        import yaml
    except ImportError as error:
        raise ConfigError(
            f"{path} is YAML; install PyYAML (pip install pyyaml), or convert it to JSON"
        ) from error
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} can't be read: {error}") from error


def migrate_pm2(content: Any, path: Path) -> list[Migrated]:
    """Migrate an ecosystem file.

    content   the file's content, from `read_ecosystem`
    path      the file

    Raises ConfigError if it has no apps.
    """
    apps = content.get("apps", content) if isinstance(content, dict) else content
    apps = [apps] if isinstance(apps, dict) else apps
    if not isinstance(apps, list) or not all(isinstance(app, dict) for app in apps):
        raise ConfigError(f"{path} has no list `apps`")
    found = [_app(app, path) for app in apps]
    if found and isinstance(content, dict) and "deploy" in content:
        found[0].lost("deploy", _ADVICE["deploy"])
    return found


def _app(app: dict[str, Any], path: Path) -> Migrated:
    words = _command(app)
    start = server_of(words)
    name = str(app.get("name") or (Path(words[0]).stem if words else ""))
    if start is None:
        found = Migrated(name, f"{path}, app {name}")
        found.lost("script", f"{' '.join(words)} starts none of the servers that Servo replaces")
        return found
    found = migrate_command_line([start[0], *start[1]], path.parent / str(app.get("cwd", "")))
    found.name, found.origin = name, f"{path}, app {name}"
    found.put("proc_name", name, "name")
    if app.get("cwd"):
        found.put("chdir", str(app["cwd"]), "cwd")
    for option, value in app.items():
        if option == "env" and isinstance(value, dict):
            for variable, text in value.items():
                found.add("raw_env", f"{variable}={text}", f"env.{variable}")
        elif option.startswith("env_"):
            found.lost(option, "write a file of variables for each environment: env_file")
        elif option in _SPECIAL:
            _SPECIAL[option](found, option, value)
        elif option in _ADVICE:
            if value not in (None, False):
                found.lost(option, _ADVICE[option])
        elif option not in _USUAL:
            found.lost(option, "unknown to Servo")
    return found


def _command(app: dict[str, Any]) -> list[str]:
    args = app.get("args") or []
    words = split(args, "args") if isinstance(args, str) else [str(word) for word in args]
    words = [*split(str(app.get("script", "")), "script"), *words]
    interpreter = str(app.get("interpreter") or "")
    if "python" in Path(interpreter).name and words[:1] == ["-m"]:
        return [interpreter, *words]
    return words


def _instances(found: Migrated, option: str, value: Any) -> None:
    number = int(value) if str(value).lstrip("-").isdigit() else 0
    if number < 0:
        found.lost(option, 'Servo can\'t leave CPUs free by a negative number; workers = "auto"')
    if number > 1 and "workers" in found.values:
        found.lost(option, f"PM2 ran the server {number} times; workers is that of one")
    elif "workers" not in found.values:
        found.put("workers", number if number > 0 else "auto", option)


def _memory(found: Migrated, option: str, value: Any) -> None:
    found.put("max_worker_memory", str(value).upper().removesuffix("B"), option)


def _milliseconds(setting: str) -> Callable[[Migrated, str, Any], None]:
    return lambda found, option, value: found.put(setting, f"{value}ms", option)


def _setting(setting: str) -> Callable[[Migrated, str, Any], None]:
    return lambda found, option, value: found.put(setting, value, option)


def _watch(found: Migrated, option: str, value: Any) -> None:
    if value:
        found.put("reload", True, option)
    if isinstance(value, list):
        found.put("reload_dirs", value, option)


_SPECIAL: dict[str, Callable[[Migrated, str, Any], None]] = {
    "instances": _instances,
    "max_memory_restart": _memory,
    "kill_timeout": _milliseconds("graceful_timeout"),
    "listen_timeout": _milliseconds("boot_timeout"),
    "max_restarts": _setting("max_boot_failures"),
    "error_file": _setting("errorlog"),
    "error": _setting("errorlog"),
    "err_file": _setting("errorlog"),
    "pid_file": _setting("pidfile"),
    "pid": _setting("pidfile"),
    "uid": _setting("user"),
    "gid": _setting("group"),
    "watch": _watch,
}
