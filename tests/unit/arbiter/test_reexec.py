"""Replacing the program of a process: the command, the environment, the descriptors."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import pytest

from servo.arbiter import reexec
from servo.arbiter.limit import LimitExceeded
from servo.arbiter.reexec import Command, Inheritance, PreflightFile, UpgradeError
from servo.arbiter.upgrade_state import UnreadableStateError, UpgradeState, encode_state


def command(*before: str, arguments: tuple[str, ...] = ("app:app", "-w", "2")) -> Command:
    return Command(before, arguments, "/", {"COLOUR": "blue"})


# --- the command --------------------------------------------------------------------------------


def test_the_command_of_a_module(monkeypatch: pytest.MonkeyPatch) -> None:
    given = ["python3", "-X", "dev", "-m", "servo", "app:app", "-w", "2"]
    monkeypatch.setattr(sys, "orig_argv", given)
    found = Command.of_process(["app:app", "-w", "2"], "/srv", {})
    assert found.before == ("-X", "dev", "-m", "servo")
    assert found.argv("/opt/python", "--check-config") == [
        *("/opt/python", "-X", "dev", "-m", "servo", "--check-config", "app:app", "-w", "2")
    ]


def test_the_script_beside_another_interpreter_is_taken(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(sys, "orig_argv", ["python3", "/old/bin/servo", "app:app"])
    found = Command.of_process(["app:app"], "/srv", {})
    assert found.argv(sys.executable) == [sys.executable, "/old/bin/servo", "app:app"]
    python = str(tmp_path / "python3")
    assert found.argv(python)[1] == "/old/bin/servo"
    (tmp_path / "servo").touch()
    assert found.argv(python)[1] == str(tmp_path / "servo")


def test_a_server_that_python_code_has_started(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "orig_argv", ["python3", "serve.py"])
    assert Command.of_process(["app:app"], "/", {}).before == ("-m", "servo")


def test_the_interpreter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert reexec.interpreter("") == sys.executable
    assert reexec.interpreter(sys.executable) == sys.executable
    file = tmp_path / "python"
    for path, problem in [
        ("python3", "the path of the interpreter must be absolute, not 'python3'"),
        (str(file), f"there is no interpreter {file}"),
        (str(tmp_path), f"there is no interpreter {tmp_path}"),
    ]:
        with pytest.raises(UpgradeError, match=f"^{problem}$"):
            reexec.interpreter(path)
    file.touch(mode=0o644)
    with pytest.raises(UpgradeError, match="may not be executed"):
        reexec.interpreter(str(file))
    monkeypatch.setattr(sys, "executable", "")
    with pytest.raises(UpgradeError, match="is not known"):
        reexec.interpreter("")


# --- the preflight's answer -----------------------------------------------------------------------


def test_a_preflight_answers_in_its_file() -> None:
    fd = reexec.nameless_file("test")
    environ = reexec.preflight_environ({"COLOUR": "blue"}, fd)
    assert reexec.read_answer(fd) is None
    assert reexec.take_upgrade(environ) == PreflightFile(fd)
    assert environ == {"COLOUR": "blue"}
    reexec.answer_preflight(fd, secure=True)
    answer = reexec.read_answer(fd)
    assert answer is not None
    assert answer["secure"] is True
    os.write(fd, b"and more")
    assert reexec.read_answer(fd) is None
    os.close(fd)


# --- the handover ---------------------------------------------------------------------------------


def state(*descriptors: int) -> UpgradeState:
    return UpgradeState("1", "3", [], [], [], [], [], b"", -1, list(descriptors))


@pytest.mark.parametrize("text", ["", "restore", "restore 1 9999", "restore x 1", "preflight", "?"])
def test_what_concerns_another_process_is_ignored(text: str) -> None:
    environ = {reexec.VARIABLE: text}
    assert reexec.take_upgrade(environ) is None
    assert environ == {}


def inherit(state: UpgradeState) -> Inheritance:
    """What the next program makes of the state."""
    fd = reexec.nameless_file("test")
    os.write(fd, encode_state(state))
    found = reexec.take_upgrade({reexec.VARIABLE: f"restore {os.getpid()} {fd}"})
    assert isinstance(found, Inheritance)
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)
    return found


def test_owners_get_copies_of_descriptors() -> None:
    reader, writer = os.pipe()
    os.set_inheritable(reader, True)
    inheritance = inherit(state(reader, writer))
    assert not os.get_inheritable(reader)
    assert inheritance.take(-1) == -1
    copy = inheritance.take(writer)
    inheritance.close_originals()
    for fd in (reader, writer):
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(fd)
    os.close(copy)


def test_thrown_away_copies_leave_the_originals() -> None:
    reader, writer = os.pipe()
    inheritance = inherit(state(reader, writer))
    copy = inheritance.take(writer)
    inheritance.discard_copies()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(copy)
    os.write(writer, b"x")
    assert os.read(reader, 1) == b"x"
    inheritance.close_originals(but=[reader])
    assert os.read(reader, 1) == b""
    os.close(reader)


def test_a_state_that_is_no_state() -> None:
    fd = reexec.nameless_file("test")
    with pytest.raises(UnreadableStateError):
        Inheritance(fd)
    with pytest.raises(UnreadableStateError, match="Bad file descriptor"):
        Inheritance(9999)


def test_signals_wait_for_the_end_of_the_block() -> None:
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    with reexec.signals_blocked() as mask:
        assert mask == sorted(before)
        assert signal.SIGTERM in signal.pthread_sigmask(signal.SIG_BLOCK, ())
    assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == before


def test_a_failed_execution_leaves_everything_as_it_was(tmp_path: Path) -> None:
    python = tmp_path / "python"
    python.write_text("no program")
    python.chmod(0o755)
    reader, writer = os.pipe()
    here, open_before = os.getcwd(), len(os.listdir("/proc/self/fd"))
    with pytest.raises(UpgradeError, match=f"^{python} can't be executed: Exec format error$"):
        reexec.execute(command("-m", "servo"), str(python), state(reader, writer))
    assert os.getcwd() == here
    assert not os.get_inheritable(reader)
    assert len(os.listdir("/proc/self/fd")) == open_before
    os.close(reader)
    os.close(writer)


def test_the_next_program_gets_descriptors_and_blocked_signals(tmp_path: Path) -> None:
    """A program in place of Servo says what it has got."""
    program = tmp_path / "next.py"
    program.write_text(
        "import json, os, signal, sys\n"
        "kind, pid, fd = os.environ['SERVO__UPGRADE'].split()\n"
        "state = json.loads(os.pread(int(fd), 9999, 0))\n"
        "blocked = signal.SIGTERM in signal.pthread_sigmask(signal.SIG_BLOCK, ())\n"
        "said = [kind, int(pid) == os.getpid(), sys.argv[1:], os.getcwd(), blocked]\n"
        "os.write(state['descriptors'][0], json.dumps(said).encode())\n"
    )
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        with reexec.signals_blocked():
            again = Command((str(program),), ("app:app",), "/", dict(os.environ))
            reexec.execute(again, sys.executable, state(writer))
    os.close(writer)
    assert os.waitpid(pid, 0)[1] == 0
    assert os.read(reader, 9999) == b'["restore", true, ["app:app"], "/", true]'
    os.close(reader)


TIMEOUT = LimitExceeded()


def go_back(tmp_path: Path, change: str = "", error: BaseException | None = None) -> bytes:
    """A next program fails; what the program before it then says, or why it did not come back."""
    program = tmp_path / "before.py"
    program.write_text(
        "import json, os\n"
        "fd = int(os.environ['SERVO__UPGRADE'].split()[2])\n"
        "state = json.loads(os.pread(fd, 9999, 0))\n"
        "os.write(state['descriptors'][0], state['returned'].encode())\n"
    )
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        left = state(writer)
        left.command = Command((str(program),), (), "/", dict(os.environ)).to_state()
        if error is TIMEOUT:
            left.inner["takeover_s"] = 0.05
        inheritance = inherit(left)
        if change == "settled":
            inheritance.close_originals(but=[writer])
        elif change == "command":
            inheritance.state.command = {}
        elif change:
            inheritance.state.returned = "once"
        if change == "stopped":
            signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
            os.kill(os.getpid(), signal.SIGTERM)
        try:
            with inheritance.given_back_on_error():
                if error is TIMEOUT:
                    signal.pause()
                raise error or ValueError("no memory\nand more")
        except ValueError:
            os.write(writer, b"raised")
        finally:
            os._exit(0)
    os.close(writer)
    assert os.waitpid(pid, 0)[1] == 0
    said = os.read(reader, 9999)
    os.close(reader)
    return said


def test_a_program_that_can_not_start_puts_the_one_before_back(tmp_path: Path) -> None:
    assert go_back(tmp_path) == b"the new program could not start: no memory"
    assert go_back(tmp_path, error=SystemExit()) == b"the new program could not start: SystemExit"


def test_a_program_that_hangs_puts_the_one_before_back(tmp_path: Path) -> None:
    said = go_back(tmp_path, error=TIMEOUT)
    assert said == b"the new program could not start: it took over 0.05 s (boot_timeout)"


def test_the_program_before_tries_again_and_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(reexec, "_RETRY_S", 0.0)
    assert go_back(tmp_path, "returned") == b"once"
    line = "servo: the old program can't start again: no memory; repair this\n"
    assert capfd.readouterr().err == line


@pytest.mark.parametrize("change", ["settled", "stopped", "command"])
def test_when_that_is_impossible_the_error_is_raised(tmp_path: Path, change: str) -> None:
    assert go_back(tmp_path, change) == b"raised"
