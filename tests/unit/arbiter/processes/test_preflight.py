"""The preflight of an upgrade, with small programs instead of a new interpreter."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

import pytest

from servo.arbiter.core import events
from servo.arbiter.processes.preflight import Preflight
from servo.arbiter.reexec import Command

ANSWER = "import os; os.write(int(os.environ['SERVO__UPGRADE'].split()[1]), b'{}')\n"


def preflight(
    loop: Any, tmp_path: Path, program: str, *, python: str = sys.executable, secure: bool = False
) -> events.PreflightEnded:
    """Run a program as the new Servo; return how that was judged."""
    file = tmp_path / "servo.py"
    file.write_text(program)
    command = Command((str(file),), ("app:app",), str(tmp_path), dict(os.environ))
    results: list[events.PreflightEnded] = []
    child = Preflight(loop.table, command, python, secure, results.append)
    fd = child.fileno()
    loop.run_until(lambda: not loop.table.is_watched(fd))
    child.on_exit(os.waitstatus_to_exitcode(os.waitpid(child.pid, 0)[1]))
    assert child.fileno() == -1
    (result,) = results
    return result


def answers(values: str) -> str:
    return ANSWER.replace("{}", values)


def test_a_program_that_can_take_over(loop: Any, tmp_path: Path) -> None:
    program = (
        "import os, signal, sys\n"
        "assert sys.argv[1:] == ['--check-config', 'app:app']\n"
        f"assert os.getcwd() == {str(tmp_path)!r}\n"
        "assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL\n"
        "assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN\n"
        "print('configuration OK')\n" + answers('{"secure": false}')
    )
    assert preflight(loop, tmp_path, program) == events.PreflightEnded()


@pytest.mark.parametrize(
    ("program", "error"),
    [
        ("print('hello')", "runs no Servo that can take over a running server"),
        ("raise ValueError('on purpose')", "can't start: ValueError: on purpose (exit code 1)"),
        (
            "print('servo: error: workers: x is bad\\nmore')\nraise SystemExit(2)",
            "the new program can't start: workers: x is bad (exit code 2)",
        ),
        ("raise SystemExit(5)", "the new program can't start: it said nothing (exit code 5)"),
        ("import os\nos.kill(os.getpid(), 9)", "the new program was ended by SIGKILL"),
        ("import servo_that_is_missing", "No module named 'servo_that_is_missing'"),
        (answers('{"secure": true}'), "an upgrade can't turn TLS on (certfile, …)"),
    ],
)
def test_one_that_can_not(loop: Any, tmp_path: Path, program: str, error: str) -> None:
    found = preflight(loop, tmp_path, program).error
    assert found is not None
    assert error in found
    assert "\n" not in found


def test_tls_stays_on(loop: Any, tmp_path: Path) -> None:
    off = preflight(loop, tmp_path, answers('{"secure": false}'), secure=True)
    assert off.error is not None
    assert "can't turn TLS off" in off.error
    on = preflight(loop, tmp_path, answers('{"secure": true}'), secure=True)
    assert on == events.PreflightEnded()


def test_an_interpreter_without_servo(loop: Any, tmp_path: Path) -> None:
    program = "raise ModuleNotFoundError(\"No module named 'servo'\")"
    found = preflight(loop, tmp_path, program)
    assert found.error == f"{sys.executable} has no Servo: {sys.executable} -m pip install " + (
        "servo-server"
    )
    assert "Traceback" in found.details


def test_another_interpreter_without_a_package(loop: Any, tmp_path: Path) -> None:
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    found = preflight(loop, tmp_path, "import no_such_package", python=str(python))
    assert found.error == (
        "the new program can't start: ModuleNotFoundError: No module named 'no_such_package' "
        f"(exit code 1); is it installed for {python}?"
    )


def test_what_is_no_program(loop: Any, tmp_path: Path) -> None:
    python = tmp_path / "python"
    python.write_text("nothing")
    python.chmod(0o755)
    found = preflight(loop, tmp_path, "", python=str(python))
    assert found.error == (
        f"the new program can't start: {python}: Exec format error (exit code 127)"
    )


def test_a_long_output_is_cut(loop: Any, tmp_path: Path) -> None:
    found = preflight(loop, tmp_path, "print('x' * 300_000)\nraise SystemExit('the end')")
    assert found.error == "the new program can't start: the end (exit code 1)"
    assert len(found.details) <= 65_536


def test_it_can_be_cancelled(loop: Any, tmp_path: Path) -> None:
    (tmp_path / "servo.py").write_text("import signal\nsignal.pause()\n")
    command = Command((str(tmp_path / "servo.py"),), (), "/", dict(os.environ))
    results: list[events.PreflightEnded] = []
    child = Preflight(loop.table, command, sys.executable, False, results.append)
    pid = child.pid
    child.kill()
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL
    assert results == []
