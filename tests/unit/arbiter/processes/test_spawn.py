"""Forking: a child shares no handler, and never returns into its parent's code."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable

import pytest

from servo.arbiter import signals
from servo.arbiter.processes import spawn


def code_of(pid: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def nothing() -> None:
    pass


def leave(code: object) -> int:
    raise SystemExit(code)


def fail() -> int:
    raise RuntimeError("on purpose")


@pytest.mark.parametrize(
    ("main", "code"),
    [
        (lambda: 7, 7),
        (lambda: leave(5), 5),
        (lambda: leave(None), 0),
        (lambda: leave("text"), 1),
        (fail, 1),
    ],
)
def test_exit_codes(main: Callable[[], int], code: int) -> None:
    assert code_of(spawn.fork(main, nothing)) == code


SLOW_READER = """
import fcntl, logging, os, sys
from servo.arbiter.processes import spawn
from servo.logs import error_log
from servo.logs.standard_streams import prints_never_block
from servo.settings.sources import Settings
fcntl.fcntl(1, fcntl.F_SETPIPE_SZ, 4096)
config = {"version": 1, "root": {"handlers": ["console"]}}
error_log.setup_logging(Settings({"errorlog": "/dev/stdout", "logconfig_dict": config}, {}))
with prints_never_block():
    for number in range(20):
        logging.getLogger("servo.error").error("%d %s", number, "x" * 1000)
        logging.getLogger("own").error("%d %s", number, "y" * 1000)
    def live():
        error_log.flush_logs()
        error_log.drain_logs(30)
        return 7
    pid = spawn.fork(live, lambda: None)
    print("forked", file=sys.stderr)
    error_log.drain_logs(30)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7
"""


def test_what_waits_for_a_slow_reader_is_written_by_the_arbiter_alone() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", SLOW_READER],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stderr.readline() == "forked\n"
        text = process.stdout.read()
        assert process.wait(30) == 0
    assert text.count("x" * 1000) == 20
    assert text.count("y" * 1000) == 20


def test_exit_functions_are_the_childs_own() -> None:
    import atexit

    reader, writer = os.pipe()
    atexit.register(os.write, writer, b"parent's ")

    def main() -> int:
        atexit.register(os.write, writer, b"child's")
        return 0

    code_of(spawn.fork(main, nothing))
    atexit.unregister(os.write)
    assert os.read(reader, 100) == b"child's"
    os.close(reader)
    os.close(writer)


def test_child_has_neither_handlers_nor_mask_of_the_arbiter() -> None:
    inbox = signals.SignalInbox(nothing)
    inbox.install()

    def main() -> int:
        for name in ("SIGTERM", "SIGHUP", "SIGINT", "SIGQUIT", "SIGUSR1", "SIGUSR2", "SIGTTIN"):
            os.kill(os.getpid(), signal.Signals[name])
        blocked = signal.pthread_sigmask(signal.SIG_BLOCK, ())
        default = signal.getsignal(signal.SIGCHLD) is signal.SIG_DFL
        return 42 if not blocked and default else 1

    try:
        before = signal.pthread_sigmask(signal.SIG_BLOCK, ())
        pid = spawn.fork(main, inbox.close_in_child)
        assert code_of(pid) == 42
        assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == before
        assert set(inbox.read()) <= {"SIGCHLD"}
    finally:
        inbox.close()


def test_signals_come_in_order_and_handlers_go_back() -> None:
    before = signal.getsignal(signal.SIGHUP)
    inbox = signals.SignalInbox(nothing)
    inbox.install()
    try:
        for name in ("SIGHUP", "SIGTTIN", "SIGHUP", "SIGTERM"):
            os.kill(os.getpid(), signal.Signals[name])
        assert inbox.read() == ["SIGHUP", "SIGTTIN", "SIGHUP", "SIGTERM"]
        assert inbox.read() == []
    finally:
        inbox.close()
    assert signal.getsignal(signal.SIGHUP) is before


def test_children_and_others() -> None:
    pid = spawn.fork(lambda: 0, nothing)
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    assert spawn.is_child(pid), "it has ended and was not reaped"
    os.waitpid(pid, 0)
    assert not spawn.is_child(pid)
    assert not spawn.is_child(os.getppid())


def test_an_orphan_is_adopted() -> None:
    def main() -> int:
        assert spawn.adopt_orphans() is None
        reader, writer = os.pipe()
        middle = os.fork()
        if middle == 0:
            if os.fork() == 0:
                os.close(writer)
                os.read(reader, 1)
                os._exit(7)
            os._exit(0)
        os.close(reader)
        os.waitpid(middle, 0)
        os.close(writer)
        _, status = os.waitpid(-1, 0)
        return os.waitstatus_to_exitcode(status)

    assert code_of(spawn.fork(main, nothing)) == 7


def test_a_system_without_subreapers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    assert spawn.adopt_orphans() == "darwin has no PR_SET_CHILD_SUBREAPER"


def test_a_child_that_does_not_end_is_killed() -> None:
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    spawn.end_within(child.pid, 0.1, None)
    with pytest.raises(ChildProcessError):  # it has been reaped
        os.waitpid(child.pid, os.WNOHANG)
    child.returncode = -9  # Popen can't learn it any more
    spawn.end_within(0, 600.0, None)
