"""mypyc and the C compiler accept the compiled modules, for the oldest and the newest Python.

`make check` checks the types as for the oldest Python, and mypyc is stricter than mypy. A mistake
would go unnoticed on other interpreters: pip would install the plain source there.
"""

from __future__ import annotations

import json
import shutil
import sys
import sysconfig
from pathlib import Path

import mypyc.build
import pytest

from installation.project import REPOSITORY, run, setup_script

INCLUDED = Path(sysconfig.get_path("include"))

# Checks the types and writes the C source.
FRONT_END = (
    "import json, sys; from mypyc.build import mypycify; "
    "mypycify(json.loads(sys.argv[1]), target_dir=sys.argv[2])"
)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("version", [(3, 10), (3, 15)], ids=str)
def test_mypyc_accepts_the_modules(tmp_path: Path, version: tuple[int, int]) -> None:
    setup = setup_script()
    options = [*setup["mypy_options"](version), f"--cache-dir={tmp_path / 'cache'}"]
    arguments = json.dumps([*options, *setup["COMPILED"]])
    run(sys.executable, "-c", FRONT_END, arguments, tmp_path / "build", cwd=REPOSITORY)
    (source,) = (tmp_path / "build").glob("__native_*.c")
    # An attribute's name may be a macro of the C compiler's. Only its syntax check is quick.
    if (compiler := shutil.which("cc")) is not None and INCLUDED.joinpath("Python.h").exists():
        runtime = Path(mypyc.build.include_dir())
        includes = [f"-I{directory}" for directory in (INCLUDED, runtime, tmp_path / "build")]
        run(compiler, "-fsyntax-only", "-w", *includes, source)
