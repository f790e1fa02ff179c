"""The project as it is built and installed: its sdist, its wheel, empty environments."""

from __future__ import annotations

import os
import runpy
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
# What decides how a wheel is built, beside the package.
BUILT_FROM = ("setup.py", "pyproject.toml", "build_backend.py")

_cc = (sysconfig.get_config_var("CC") or "cc").split()[0]
needs_compiler = pytest.mark.skipif(
    shutil.which(_cc) is None or not Path(sysconfig.get_path("include"), "Python.h").exists(),
    reason="no C compiler, or no Python headers",
)


def setup_script() -> dict[str, Any]:
    """The names that setup.py defines."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("setuptools.setup", lambda **_: None)
        return runpy.run_path(str(REPOSITORY / "setup.py"))


def environment(**changes: str) -> dict[str, str]:
    """This process's environment without what would choose how Servo is built or configured."""
    drop = ("SERVO_", "PYTHON", "GUNICORN_")
    kept = {k: v for k, v in os.environ.items() if not k.startswith(drop) and k != "CC"}
    return {**kept, **changes}


def run(*command: str | Path, env: dict[str, str] | None = None, cwd: Path | None = None) -> str:
    """The output of a command that must succeed, both streams together."""
    done = subprocess.run(
        [str(part) for part in command],
        env=env or environment(),
        cwd=cwd,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=1800,
        check=False,
    )
    print(done.stdout[-20_000:])
    assert done.returncode == 0, f"{command} ended with status {done.returncode}"
    return done.stdout


def built(directory: Path) -> tuple[Path, Path]:
    """The sdist of this tree, and the compiled wheel of that sdist.

    Compiling takes minutes, so those of `make wheel` are used, which SERVO_TEST_DIST names, if they
    hold this very source. Otherwise both are built in `directory`.
    """
    made = os.environ.get("SERVO_TEST_DIST")
    if made is not None and (found := pair(Path(made))) is not None and same_source(*found):
        return found
    build = [sys.executable, "-m", "build", "--outdir", str(directory), str(REPOSITORY)]
    run(*build, env=environment(SERVO_COMPILE="1"))
    found = pair(directory)
    assert found is not None
    return found


def pair(directory: Path) -> tuple[Path, Path] | None:
    sdists, wheels = [*directory.glob("*.tar.gz")], [*directory.glob("*-cp3*.whl")]
    return (sdists[0], wheels[0]) if len(sdists) == len(wheels) == 1 else None


def same_source(sdist: Path, wheel: Path) -> bool:
    """Whether an sdist and a wheel were built from the files of this tree."""
    with tarfile.open(sdist) as packed:
        for name in BUILT_FROM:
            file = packed.extractfile(f"{sdist.name.removesuffix('.tar.gz')}/{name}")
            if file is None or file.read() != (REPOSITORY / name).read_bytes():
                return False
    here = {str(path.relative_to(REPOSITORY)) for path in REPOSITORY.glob("servo/**/*.py")}
    with zipfile.ZipFile(wheel) as zipped:
        held = {name for name in zipped.namelist() if name.endswith(".py")}
        return held == here and all(
            zipped.read(name) == (REPOSITORY / name).read_bytes() for name in held
        )


def empty_environment(directory: Path) -> Path:
    """A new virtual environment with nothing but pip in it; returns its directory of programs."""
    run(sys.executable, "-m", "venv", directory)
    return directory / "bin"
