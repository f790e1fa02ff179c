"""The build backend of `pip install` and `python -m build` (PEP 517): setuptools, and mypyc.

If possible, a wheel contains the hot modules (those that each request uses) in compiled form.
Otherwise it contains only the plain source:

    SERVO_COMPILE unset   compile; if that fails, build the plain wheel and say why in one line
    SERVO_COMPILE=1       compile; if that fails, fail
    SERVO_COMPILE=0       build the plain wheel

An editable installation runs the source as it is edited, so it is always plain.

Each wheel is built in a copy of the source, by a child process. So a failure leaves nothing behind
that the plain wheel could pick up, a build that hangs can be ended, and a checkout stays clean.
"""

from __future__ import annotations

import json
import os
import platform
import shlex
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path
from typing import Any

from setuptools import build_meta
from setuptools.build_meta import (
    build_sdist,
    get_requires_for_build_editable,
    get_requires_for_build_sdist,
    prepare_metadata_for_build_editable,
    prepare_metadata_for_build_wheel,
)

__all__ = [
    "build_editable",
    "build_sdist",
    "build_wheel",
    "get_requires_for_build_editable",
    "get_requires_for_build_sdist",
    "get_requires_for_build_wheel",
    "prepare_metadata_for_build_editable",
    "prepare_metadata_for_build_wheel",
]

# The versions of mypy with which the compiled modules have passed the tests. A later version may
# compile differently.
MYPY = "mypy>=2.4,<2.5"

# Compiling takes 75 s on one core of a server of 2024. A small board may be ten times slower. A
# build that takes more than twice that long probably hangs.
COMPILE_TIMEOUT_S = 1800.0

# The files that a wheel is built from.
SOURCES = ("setup.py", "setup.cfg", "pyproject.toml", "README.md", "LICENSE", "servo")

# The child process runs this in the copy.
BUILD = (
    "import json, sys; from setuptools import build_meta; "
    "build_meta.build_wheel(sys.argv[1], json.loads(sys.argv[2]))"
)


class CantCompileError(Exception):
    """The hot modules can't be compiled here; the message says why."""


def get_requires_for_build_wheel(config_settings: dict[str, Any] | None = None) -> list[str]:
    """The packages that `build_wheel` needs: mypy only if it will compile.

    If pyproject.toml required mypy, pip would also install it for plain and editable builds, and
    these would fail where mypy can't be installed.
    """
    wanted = wish()
    needed = build_meta.get_requires_for_build_wheel(config_settings)
    try:
        check_compiler(wanted)
    except CantCompileError:
        return needed
    return [*needed, MYPY]


def build_wheel(
    wheel_directory: str,
    config_settings: dict[str, Any] | None = None,
    metadata_directory: str | None = None,
) -> str:
    """Build a wheel into `wheel_directory`, compiled if possible, and return its file name.

    metadata_directory   not used: setuptools computes the same metadata again
    """
    wanted = wish()
    try:
        check_compiler(wanted)
        return build(wheel_directory, config_settings, compiled=True)
    except CantCompileError as error:
        if wanted == "1":
            raise SystemExit(f"servo: SERVO_COMPILE=1 is set, but {error}") from None
        reason = error
    name = build(wheel_directory, config_settings, compiled=False)
    print(f"servo: installing the plain source, not compiled: {reason}", file=sys.stderr)
    return name


def build_editable(
    wheel_directory: str,
    config_settings: dict[str, Any] | None = None,
    metadata_directory: str | None = None,
) -> str:
    """Build the wheel of an editable installation, which is always plain."""
    if wish() == "1":
        raise SystemExit(
            "servo: an editable installation can't be compiled, because it runs the source as it "
            "is edited: install without -e, or unset SERVO_COMPILE"
        )
    return build_meta.build_editable(wheel_directory, config_settings, metadata_directory)


def wish() -> str:
    """SERVO_COMPILE: "1", "0", or "" if it is unset."""
    value = os.environ.get("SERVO_COMPILE", "")
    if value not in ("", "0", "1"):
        raise SystemExit(
            f"servo: SERVO_COMPILE is {value!r}: set it to 1 (compile or fail) or 0 (don't "
            "compile), or unset it (compile if possible)"
        )
    return value


def check_compiler(wanted: str) -> None:
    """Raise CantCompileError if the wheel must be plain, or can't be compiled here.

    wanted   the value of SERVO_COMPILE
    """
    if wanted == "0":
        raise CantCompileError("SERVO_COMPILE=0 is set")
    if sys.implementation.name != "cpython":
        raise CantCompileError(
            f"mypyc compiles for CPython, not {platform.python_implementation()}"
        )
    if sysconfig.get_config_var("Py_GIL_DISABLED"):
        raise CantCompileError(
            "this Python is free-threaded, where the compiled modules are untested"
        )
    # Setuptools chooses the compiler in the same way.
    command = shlex.split(os.environ.get("CC") or sysconfig.get_config_var("CC") or "cc")
    with tempfile.TemporaryDirectory() as directory:
        source = Path(directory, "probe.c")
        source.write_text("#include <Python.h>\n")
        command += ["-I", sysconfig.get_path("include"), "-c", str(source)]
        command += ["-o", str(Path(directory, "probe.o"))]
        try:
            probe = subprocess.run(
                command, capture_output=True, text=True, errors="replace", timeout=60, check=False
            )
        except OSError as error:
            raise CantCompileError(
                f"there is no C compiler ({command[0]}: {error.strerror})"
            ) from None
        except subprocess.TimeoutExpired:
            raise CantCompileError(f"the C compiler {command[0]} hangs") from None
    if probe.returncode and "Python.h" in probe.stderr:
        raise CantCompileError(
            f"Python's headers are missing ({sysconfig.get_path('include')}/Python.h; on Debian, "
            "they are in python3-dev)"
        )
    if probe.returncode:
        raise CantCompileError(f"the C compiler {command[0]} fails (status {probe.returncode})")


def build(wheel_directory: str, config_settings: dict[str, Any] | None, compiled: bool) -> str:
    """Build a wheel of a copy of the source, and return its file name.

    Raises CantCompileError if a compiled one can't be built, SystemExit if a plain one can't.
    """
    with tempfile.TemporaryDirectory(prefix="servo-build-") as directory:
        tree, out = Path(directory, "source"), Path(directory, "wheel")
        out.mkdir()
        copy_source(Path.cwd(), tree)
        command = [sys.executable, "-u", "-c", BUILD, str(out), json.dumps(config_settings)]
        environ = {**os.environ, "SERVO_COMPILE": "1" if compiled else "0"}
        try:
            run(command, tree, environ)
        except CantCompileError as error:
            if compiled:
                raise
            raise SystemExit(f"servo: the plain wheel can't be built either: {error}") from None
        (wheel,) = out.iterdir()
        shutil.copy(wheel, wheel_directory)
        return wheel.name


def copy_source(source: Path, target: Path) -> None:
    """Copy the files that a wheel is built from, without modules that were compiled in place."""
    target.mkdir()
    ignored = shutil.ignore_patterns("__pycache__", "*.so")
    for name in SOURCES:
        if (source / name).is_dir():
            shutil.copytree(source / name, target / name, ignore=ignored)
        else:
            shutil.copy(source / name, target)


def run(command: list[str], directory: Path, environ: dict[str, str]) -> None:
    """Run a build, and end all its processes after COMPILE_TIMEOUT_S or an interrupt.

    Raises CantCompileError if it fails. Its output goes to this process's output, which `pip
    install -v` shows.
    """
    # The build gets its own session, so that `killpg` also ends the compiler's processes.
    with subprocess.Popen(command, cwd=directory, env=environ, start_new_session=True) as child:
        try:
            status = child.wait(COMPILE_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            os.killpg(child.pid, signal.SIGKILL)
            raise CantCompileError(
                f"compiling takes more than {COMPILE_TIMEOUT_S / 60:.0f} minutes"
            ) from None
        except BaseException:
            os.killpg(child.pid, signal.SIGKILL)
            raise
    if status:
        raise CantCompileError(
            f"compiling fails (status {status}); `pip install -v` shows the compiler's messages"
        )
