"""Prepare an environment in `.bench/` with Servo and its pinned peers, and describe the machine.

Each interpreter has its own environment, `.bench/cpython-3.11` for example. A peer that can't be
installed there doesn't stop a measurement: `missing` gives the reason, which the tables show.
"""

from __future__ import annotations

import datetime
import hashlib
import json
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

from servers import CERTIFICATE, GENERATOR, HERE, POLLING, REPOSITORY, STATIC_FILES, WORK
from workloads import STATIC

REQUIREMENTS = HERE / "requirements.txt"
# How long a package without a wheel for the interpreter may take to build, s.
BUILD_S = 600.0
TOLD = (
    "bengal-pounce fastpysgi granian gunicorn gunicorn-h1c httptools hypercorn orjson servo-server"
    " uvicorn uvloop waitress websockets wsproto zttp django fastapi flask starlette"
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


def tag(interpreter: str) -> str:
    """The name of an interpreter's environment and records: "cpython-3.14", "cpython-3.14t"."""
    ask = (
        "import sys; n, f = sys.implementation.name, getattr(sys, 'abiflags', '');"
        " print(f'{n}-{sys.version_info[0]}.{sys.version_info[1]}{f}')"
    )
    return subprocess.check_output([interpreter, "-c", ask], text=True).strip()


def prepare(interpreter: str) -> str:
    """Make or complete the environment; return the path of its interpreter."""
    environment = WORK / tag(interpreter)
    python = environment / "bin" / "python"
    stamp = environment / ".installed"
    wanted = f"{interpreter}\n{REQUIREMENTS.read_text()}"
    found = stamp.read_text() if stamp.exists() else ""
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet"]
    pip += ["--disable-pip-version-check"]
    if found != wanted:
        print(f"installing the peers into {environment.relative_to(REPOSITORY)}/ …", flush=True)
        if not found.startswith(f"{interpreter}\n"):
            shutil.rmtree(environment, ignore_errors=True)
            # Debian's interpreter may come without ensurepip: any pip can install for any other.
            venv = [interpreter, "-m", "venv", "--without-pip", str(environment)]
            subprocess.run(venv, check=True)
        errors = install_peers(pip)
        # Only for its dependencies: `compile_servo` installs it.
        plain = {**os.environ, "SERVO_COMPILE": "0"}
        subprocess.run([*pip, f"{REPOSITORY}[standard]"], check=True, env=plain)
        reasons = reasons_missing(versions(str(python)), REQUIREMENTS.read_text(), errors)
        (environment / "missing.json").write_text(json.dumps(reasons))
        stamp.write_text(wanted)
    compile_servo(pip, environment)
    compile_programs()
    return str(python)


def install_peers(pip: list[str]) -> dict[str, str]:
    """Install the requirements, one by one if they can't be installed together. Returns pip's last
    error for each line that failed."""
    if subprocess.run([*pip, "-r", str(REQUIREMENTS)], check=False).returncode == 0:
        return {}
    errors = {}
    for line in requirements(REQUIREMENTS.read_text()):
        if error := install(*pip, "--constraint", str(REQUIREMENTS), line):
            errors[line] = error
    return errors


def install(*command: str) -> str:
    """Run pip for at most BUILD_S; return its last error, or "" if it succeeded."""
    with subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        try:
            _, said = process.communicate(timeout=BUILD_S)
        except subprocess.TimeoutExpired:
            return f"was not built within {BUILD_S:g} s"
        finally:
            if process.poll() is None:  # compilers run in the same session
                os.killpg(process.pid, signal.SIGKILL)
    # A build's own error says more than pip's words about it, which come last.
    lines = [line.strip() for line in said.splitlines()]
    errors = [line for mark in ("error", "ERROR:") for line in lines if mark in line]
    return ["pip failed", *errors][-1] if process.returncode else ""


def requirements(text: str) -> list[str]:
    lines = (line.partition("#")[0].strip() for line in text.splitlines())
    return [line for line in lines if line]


def reasons_missing(installed: dict[str, str], text: str, errors: dict[str, str]) -> dict[str, str]:
    """Package -> why it isn't there, for each requirement that is not installed.

    text    the requirements
    errors  the lines that pip could not install, with pip's error
    """
    reasons = {}
    for line in requirements(text):
        wanted, _, marker = line.partition(";")
        name = canonical(re.split(r"[=<>!~\[]", wanted, maxsplit=1)[0])
        if name not in installed:
            reason = f"needs {marker.strip()}" if marker else "pip did not install it"
            reasons[name] = errors.get(line, reason)
    return reasons


def canonical(name: str) -> str:
    """A distribution's name as package indexes compare it."""
    return re.sub(r"[-_.]+", "-", name.strip()).lower()


def missing(python: str) -> dict[str, str]:
    """Package -> why it isn't in the environment of this interpreter."""
    path = Path(python).parents[1] / "missing.json"
    return dict(json.loads(path.read_text())) if path.exists() else {}


def compile_servo(pip: list[str], environment: Path) -> None:
    """Install this source as users do, unless it is installed. Fails if it can't be compiled."""
    sources = sorted((REPOSITORY / "servo").rglob("*.py"))
    builders = [REPOSITORY / name for name in ("build_backend.py", "pyproject.toml", "setup.py")]
    parts = [path.read_bytes() for path in (*builders, *sources)]
    wanted = hashlib.sha256(b"\0".join(parts)).hexdigest()
    stamp = environment / ".compiled"
    if stamp.exists() and stamp.read_text() == wanted:
        return
    print("compiling Servo …", flush=True)
    command = [*pip, "--no-deps", "--force-reinstall", str(REPOSITORY)]
    subprocess.run(command, check=True, env={**os.environ, "SERVO_COMPILE": "1"})
    stamp.write_text(wanted)


def compile_programs() -> None:
    """Build the load generator, and polling.c, which keeps load generators awake, with Servo's
    compiler."""
    for source, target, flags in (
        ("polling.c", POLLING, ("-shared", "-fPIC")),
        ("generator.c", GENERATOR, ()),
    ):
        path = HERE / source
        if not target.exists() or target.stat().st_mtime < path.stat().st_mtime:
            subprocess.run(["cc", "-O2", *flags, "-o", str(target), str(path)], check=True)


def make_static_files() -> None:
    STATIC_FILES.mkdir(exist_ok=True)
    for name, size in STATIC.items():
        (STATIC_FILES / name).write_bytes((b"%-63s\n" % name.encode()) * (size // 64 + 1))
        os.truncate(STATIC_FILES / name, size)


def make_certificate() -> None:
    """A throw-away certificate (ECDSA, P-256) and its key, in one file."""
    key, certificate = WORK / "key.pem", WORK / "cert.pem"
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"]
    command += ["-nodes", "-days", "30", "-subj", "/CN=localhost", "-addext"]
    command += ["subjectAltName=DNS:localhost", "-keyout", str(key), "-out", str(certificate)]
    subprocess.run(command, check=True, capture_output=True)
    CERTIFICATE.write_bytes(key.read_bytes() + certificate.read_bytes())


def versions(python: str) -> dict[str, str]:
    """The distributions in the environment of this interpreter, by canonical name."""
    ask = (
        "import json, importlib.metadata as m;"
        " print(json.dumps({d.name: d.version for d in m.distributions()}))"
    )
    found = json.loads(subprocess.check_output([python, "-c", ask], text=True))
    return {canonical(name): version for name, version in found.items()}


def describe(python: str) -> dict[str, object]:
    """The date, the machine and the versions of a measurement."""
    ask = "import platform; print(platform.python_implementation(), platform.python_version())"
    version = subprocess.check_output([python, "-c", ask], text=True).strip()
    packages = versions(python)
    real = os.path.realpath(python)
    build = "the distribution's build" if real.startswith("/usr/bin/") else "a build of its own"
    cpu = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        "python": f"{version} ({real}, {build})",
        "cpu": f"{cpu[1] if cpu else platform.machine()}, {os.cpu_count()} cores",
        "kernel": platform.release(),
        "load_average": round(os.getloadavg()[0], 2),
        "versions": {name: packages[name] for name in TOLD.split() if name in packages},
        "missing": missing(python),
    }
