"""Prepare the environment `.bench/` with Servo and its pinned peers, and describe the machine."""

from __future__ import annotations

import datetime
import hashlib
import json
import os
import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path

from servers import CERTIFICATE, ENVIRONMENT, HERE, POLLING, REPOSITORY

REQUIREMENTS = HERE / "requirements.txt"
TOLD = (
    "fastpysgi granian gunicorn httptools hypercorn servo-server uvicorn uvloop waitress"
    " websockets wsproto django fastapi flask starlette"
)


def default_python() -> str:
    """The distribution's interpreter if there is one: it is built with PGO and LTO, unlike many
    others."""
    system = "/usr/bin/python3"
    if os.access(system, os.X_OK):
        check = [system, "-c", "import sys, venv; sys.exit(sys.version_info < (3, 10))"]
        if subprocess.run(check, capture_output=True, check=False).returncode == 0:
            return system
    return sys.executable


def prepare(interpreter: str) -> str:
    """Make or complete the environment; return the path of its interpreter."""
    python = ENVIRONMENT / "bin" / "python"
    stamp = ENVIRONMENT / ".installed"
    wanted = f"{interpreter}\n{REQUIREMENTS.read_text()}"
    found = stamp.read_text() if stamp.exists() else ""
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet"]
    pip += ["--disable-pip-version-check"]
    if found != wanted:
        print(f"installing the peers into {ENVIRONMENT.name}/ …", flush=True)
        if not found.startswith(f"{interpreter}\n"):
            shutil.rmtree(ENVIRONMENT, ignore_errors=True)
            # Debian's interpreter may come without ensurepip: any pip can install for any other.
            venv = [interpreter, "-m", "venv", "--without-pip", str(ENVIRONMENT)]
            subprocess.run(venv, check=True)
        # Only for its dependencies: `compile_servo` installs it.
        plain = {**os.environ, "SERVO_COMPILE": "0"}
        servo = f"{REPOSITORY}[standard]"
        subprocess.run([*pip, "-r", str(REQUIREMENTS), servo], check=True, env=plain)
        stamp.write_text(wanted)
    compile_servo(pip)
    compile_polling()
    return str(python)


def compile_servo(pip: list[str]) -> None:
    """Install this source as users do, unless it is installed. Fails if it can't be compiled."""
    sources = sorted((REPOSITORY / "servo").rglob("*.py"))
    builders = [REPOSITORY / name for name in ("build_backend.py", "pyproject.toml", "setup.py")]
    parts = [path.read_bytes() for path in (*builders, *sources)]
    wanted = hashlib.sha256(b"\0".join(parts)).hexdigest()
    stamp = ENVIRONMENT / ".compiled"
    if stamp.exists() and stamp.read_text() == wanted:
        return
    print("compiling Servo …", flush=True)
    command = [*pip, "--no-deps", "--force-reinstall", str(REPOSITORY)]
    subprocess.run(command, check=True, env={**os.environ, "SERVO_COMPILE": "1"})
    stamp.write_text(wanted)


def compile_polling() -> None:
    """Build polling.c, which keeps the load generators awake, with Servo's compiler."""
    source = HERE / "polling.c"
    if not POLLING.exists() or POLLING.stat().st_mtime < source.stat().st_mtime:
        subprocess.run(
            ["cc", "-O2", "-shared", "-fPIC", "-o", str(POLLING), str(source)], check=True
        )


def make_certificate() -> None:
    """A throw-away certificate (ECDSA, P-256) and its key, in one file."""
    key, certificate = ENVIRONMENT / "key.pem", ENVIRONMENT / "cert.pem"
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"]
    command += ["-nodes", "-days", "30", "-subj", "/CN=localhost", "-addext"]
    command += ["subjectAltName=DNS:localhost", "-keyout", str(key), "-out", str(certificate)]
    subprocess.run(command, check=True, capture_output=True)
    CERTIFICATE.write_bytes(key.read_bytes() + certificate.read_bytes())


def describe(python: str) -> dict[str, object]:
    """The date, the machine and the versions of a measurement."""
    ask = (
        "import json, platform, importlib.metadata as m; print(json.dumps([platform."
        "python_version(), {d.name.lower(): d.version for d in m.distributions()}]))"
    )
    version, packages = json.loads(subprocess.check_output([python, "-c", ask], text=True))
    real = os.path.realpath(python)
    build = "the distribution's build" if real.startswith("/usr/bin/") else "a build of its own"
    cpu = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        "python": f"CPython {version} ({real}, {build})",
        "cpu": f"{cpu[1] if cpu else platform.machine()}, {os.cpu_count()} cores",
        "kernel": platform.release(),
        "load_average": round(os.getloadavg()[0], 2),
        "versions": {name: packages.get(name, "-") for name in TOLD.split()},
    }
