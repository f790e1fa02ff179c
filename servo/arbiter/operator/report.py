"""The facts about this server's process and machine that a bug report needs."""

from __future__ import annotations

import importlib.util
import os
import re
import resource
import sys
from typing import TYPE_CHECKING, Any

from servo import __version__
from servo.arbiter.cgroup_memory import memory_left, memory_limit
from servo.control.redaction import REMOVED, is_secret_name, secret_values
from servo.settings.cgroups import Read, read_file, v2_directories
from servo.settings.cpus import cpu_quota
from servo.settings.schema import SETTINGS

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from servo.settings.sources import Settings

# The distributions whose versions may explain an error.
_LIBRARIES = (
    *("servo-server", "httptools", "h11", "click", "uvloop", "websockets", "setproctitle"),
    *("watchfiles", "prometheus-client", "rich", "gunicorn", "uvicorn", "django", "flask"),
    *("werkzeug", "fastapi", "starlette", "asgiref", "gevent", "opentelemetry-sdk", "sentry-sdk"),
)
# The environment variables that change how Python or the server behaves. No others are reported.
_VARIABLES = re.compile(
    r"(?:SERVO|PYTHON|LC|UVLOOP|MALLOC|OTEL|GUNICORN)_\w+|PYTHON[A-Z]+|LANG|TZ|PORT|WEB_CONCURRENCY"
    r"|FORWARDED_ALLOW_IPS|NOTIFY_SOCKET|LISTEN_FDS|VIRTUAL_ENV|LD_PRELOAD|KUBERNETES_SERVICE_HOST"
)
_LIMITS = {
    "open files": resource.RLIMIT_NOFILE,
    "processes": resource.RLIMIT_NPROC,
    "address space": resource.RLIMIT_AS,
    "stack": resource.RLIMIT_STACK,
    "core file": resource.RLIMIT_CORE,
}
_CGROUP_FILES = ("cpu.max", "memory.max", "memory.high", "memory.swap.max", "pids.max")


def facts(environ: Mapping[str, str], read: Read = read_file) -> dict[str, Any]:
    """Versions, system, limits, cgroup and environment of this process.

    environ   the environment; only variables that matter to the server are reported
    read      returns a file's text, or None if it can't be read
    """
    system = os.uname()
    release = re.search(r'^PRETTY_NAME="?([^"\n]*)', read("/etc/os-release") or "", re.MULTILINE)
    return {
        "servo": __version__,
        # A compiled module and a plain one behave alike, but their errors may differ.
        "compiled": is_compiled(),
        "python": sys.version.replace("\n", " "),
        "implementation": sys.implementation.name,
        "executable": sys.executable,
        "system": f"{system.sysname} {system.release} {system.machine}",
        "distribution": release[1] if release else "",
        "libc": os.confstr("CS_GNU_LIBC_VERSION") if sys.platform == "linux" else "",
        "libraries": versions(sys.path),
        "uid": os.geteuid(),
        "cpus": os.cpu_count(),
        "cpu_quota": cpu_quota(read),
        "memory_limit": memory_limit(read),
        "memory_left": memory_left(read),
        "limits": {name: _limit(which) for name, which in _LIMITS.items()},
        "cgroup": _cgroup(read),
        "environment": {
            name: REMOVED if is_secret_name(name) else value
            for name, value in sorted(environ.items())
            if _VARIABLES.fullmatch(name)
        },
    }


def is_compiled() -> bool:
    """Whether the hot modules of this installation are compiled."""
    spec = importlib.util.find_spec("servo.http.h1.connection")
    return spec is not None and not str(spec.origin).endswith(".py")


def versions(paths: Iterable[str]) -> dict[str, str]:
    """The versions of installed libraries, by name.

    importlib.metadata would stay in the arbiter's memory, so this reads the names of directories.

    paths   the directories that are searched for modules, the first one preferred
    """
    found: dict[str, str] = {}
    for path in paths:
        try:
            names = os.listdir(path or ".")
        except OSError:
            continue
        for name in names:
            match = re.fullmatch(r"(.+)-([^-]+)\.dist-info", name)
            library = match[1].lower().replace("_", "-") if match else ""
            if match and library in _LIBRARIES:
                found.setdefault(library, match[2])
    return dict(sorted(found.items()))


def known_secrets(settings: Settings, environ: Mapping[str, str]) -> set[str]:
    """The secrets that this process knows: of the settings and of the environment.

    settings   the settings
    environ    the environment
    """
    found = secret_values({**environ, **settings.env})
    for name, setting in SETTINGS.items():
        value = getattr(settings, name)
        if setting.secret and isinstance(value, str):
            found.add(value)
    return found


def _limit(which: int) -> list[int | None]:
    """A soft and a hard limit; None: unlimited."""
    return [None if each == resource.RLIM_INFINITY else each for each in resource.getrlimit(which)]


def _cgroup(read: Read) -> dict[str, str]:
    """The path of this process's cgroup (v2), and the limits that are set for it."""
    directory = next(v2_directories(read))
    texts = {name: (read(f"{directory}/{name}") or "").strip() for name in _CGROUP_FILES}
    return {"path": directory, **{name: text for name, text in texts.items() if text}}
