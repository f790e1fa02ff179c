"""The build backend: when it compiles, and what it says when it doesn't."""

from __future__ import annotations

import importlib.util
import os
import platform
import signal
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path
from types import ModuleType

import pytest

from installation.project import REPOSITORY, needs_compiler
from integration.server import DEADLINE_S, alive, wait_for


def load_backend() -> ModuleType:
    spec = importlib.util.spec_from_file_location("build_backend", REPOSITORY / "build_backend.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


backend = load_backend()


@pytest.fixture(autouse=True)
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the project, as setuptools writes into the one that it is asked about."""
    monkeypatch.delenv("SERVO_COMPILE", raising=False)
    tree = tmp_path / "tree"
    backend.copy_source(REPOSITORY, tree)
    monkeypatch.chdir(tree)
    return tree


def script(path: Path, text: str) -> str:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return str(path)


@needs_compiler
def test_mypy_is_required_where_the_modules_can_be_compiled(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    backend.check_compiler("")
    assert backend.MYPY in backend.get_requires_for_build_wheel()
    assert backend.MYPY not in backend.get_requires_for_build_editable()
    monkeypatch.setenv("SERVO_COMPILE", "0")
    assert backend.MYPY not in backend.get_requires_for_build_wheel()
    monkeypatch.delenv("SERVO_COMPILE")
    monkeypatch.setenv("CC", "/bin/false")
    assert backend.MYPY not in backend.get_requires_for_build_wheel()


def test_a_compiler_may_be_missing_or_fail(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for command, reason in (
        (str(tmp_path / "cc"), r"there is no C compiler \(.*/cc: No such file or directory\)"),
        ("/bin/false -pipe", r"the C compiler /bin/false fails \(status 1\)"),
        (script(tmp_path / "bad", "exit 4"), r"the C compiler .*/bad fails \(status 4\)"),
    ):
        monkeypatch.setenv("CC", command)
        with pytest.raises(backend.CantCompileError, match=reason):
            backend.check_compiler("")
    monkeypatch.delenv("CC")
    monkeypatch.setenv("PATH", "")
    with pytest.raises(backend.CantCompileError, match="there is no C compiler"):
        backend.check_compiler("1")


@needs_compiler
def test_the_headers_may_be_missing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(tmp_path / name))
    with pytest.raises(
        backend.CantCompileError, match=r"headers are missing \(.*/include/Python.h"
    ):
        backend.check_compiler("")


def test_not_every_python_gets_the_compiled_modules(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(backend.CantCompileError, match="SERVO_COMPILE=0 is set"):
        backend.check_compiler("0")
    with monkeypatch.context() as patch:
        patch.setattr(sysconfig, "get_config_var", {"Py_GIL_DISABLED": 1}.get)
        with pytest.raises(backend.CantCompileError, match="free-threaded"):
            backend.check_compiler("")
    monkeypatch.setattr(sys.implementation, "name", "pypy")
    monkeypatch.setattr(platform, "python_implementation", lambda: "PyPy")
    with pytest.raises(backend.CantCompileError, match="CPython, not PyPy"):
        backend.check_compiler("")


def test_a_mistake_in_the_variable_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SERVO_COMPILE", "yes")
    for hook in (backend.get_requires_for_build_wheel, lambda: backend.build_wheel(".")):
        with pytest.raises(SystemExit, match="SERVO_COMPILE is 'yes': set it to 1 "):
            hook()


def test_what_is_demanded_is_compiled_or_fails(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("SERVO_COMPILE", "1")
    monkeypatch.setenv("CC", "/bin/false")
    out = tmp_path / "out"
    out.mkdir()
    with pytest.raises(SystemExit, match="SERVO_COMPILE=1 is set, but the C compiler /bin/false"):
        backend.build_wheel(str(out))
    assert [*out.iterdir()] == []
    with pytest.raises(SystemExit, match="editable installation can't be compiled"):
        backend.build_editable(str(out))


@pytest.mark.slow
def test_the_plain_wheel_says_why(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str], tree: Path
) -> None:
    monkeypatch.setenv("CC", "/bin/false")
    (tree / "servo" / "left.so").write_bytes(b"compiled in place")
    before = {*tree.rglob("*")}
    name = backend.build_wheel(str(tmp_path))
    said = capfd.readouterr().err.splitlines()
    assert name.endswith("-py3-none-any.whl")
    with zipfile.ZipFile(tmp_path / name) as wheel:
        assert [file for file in wheel.namelist() if file.endswith(".so")] == []
        assert "servo/__init__.py" in wheel.namelist()
    assert {*tree.rglob("*")} == before
    assert [line for line in said if line.startswith("servo:")] == [
        "servo: installing the plain source, not compiled: "
        "the C compiler /bin/false fails (status 1)"
    ]


@needs_compiler
@pytest.mark.slow
def test_a_build_that_fails_half_way_leaves_nothing_compiled(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str], tree: Path
) -> None:
    compiler = sysconfig.get_config_var("CC") or "cc"
    linked = tmp_path / "linked"
    # The second library that is linked fails.
    body = f'case "$*" in *-shared*) test -e {linked} && exit 1; touch {linked};; esac'
    monkeypatch.setenv("CC", script(tmp_path / "cc", f'{body}\nexec {compiler} "$@"'))
    setup = (tree / "setup.py").read_text()
    start, end = setup.index("COMPILED = ["), setup.index("]\n")
    few = 'COMPILED = ["servo/http/limits.py", "servo/workers/timing.py"'
    (tree / "setup.py").write_text(setup[:start] + few + setup[end:])
    name = backend.build_wheel(str(tmp_path))
    assert linked.exists()
    assert name.endswith("-py3-none-any.whl")
    with zipfile.ZipFile(tmp_path / name) as wheel:
        assert [file for file in wheel.namelist() if file.endswith((".so", ".c"))] == []
    assert not (tree / "build").exists()
    assert "not compiled: compiling fails (status 1)" in capfd.readouterr().err


@pytest.mark.slow
def test_a_build_that_hangs_is_ended_with_its_compiler(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(backend, "COMPILE_TIMEOUT_S", 2.0)
    pid_file = tmp_path / "pid"
    command = ["/bin/sh", "-c", f"sleep 600 & echo $! > {pid_file}; wait"]
    with pytest.raises(backend.CantCompileError, match="takes more than"):
        backend.run(command, tmp_path, {**os.environ})
    compiler = int(pid_file.read_text())
    wait_for(lambda: not alive(compiler), "the end of the compiler")


@pytest.mark.slow
def test_an_interrupted_build_is_ended_with_its_compiler(tmp_path: Path) -> None:
    pid_file = tmp_path / "pid"
    script(
        tmp_path / "hang",
        f"sleep 600 & echo $! > {pid_file}.new; mv {pid_file}.new {pid_file}; wait",
    )
    program = "import build_backend, os; build_backend.run(['./hang'], '.', {**os.environ})"
    with subprocess.Popen(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        stderr=subprocess.DEVNULL,
    ) as build:
        wait_for(pid_file.exists, "start of the compiler")
        build.send_signal(signal.SIGINT)
        assert build.wait(DEADLINE_S) != 0
    compiler = int(pid_file.read_text())
    wait_for(lambda: not alive(compiler), "the end of the compiler")
