"""The reports to the command that starts a daemon, and its reactions; with real forks."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from servo.arbiter import daemon
from servo.arbiter.core import actions
from servo.arbiter.daemon import StartReport

READY = actions.RecordLifecycleEvent("info", "worker 1 is ready", name="ready")
FAILED = actions.RecordLifecycleEvent(
    "error", "worker 1 could not boot: no module", name="draining"
)


@dataclass
class Command:
    """The command that was started: its pid, and where its stderr goes."""

    pid: int
    stderr: Path

    def wait(self) -> tuple[int, str]:
        """Its exit code and its words."""
        _, status = os.waitpid(self.pid, 0)
        return os.waitstatus_to_exitcode(status), self.stderr.read_text()


Start = Callable[..., Command]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Start a command whose daemon does what it is given; a daemon may wait for the test's end."""
    reader, writer = os.pipe()

    def wait_for_the_end(_report: StartReport) -> None:
        os.close(writer)
        os.read(reader, 1)

    def start(
        story: Callable[[StartReport], None] = wait_for_the_end, limit_s: float = 0.0
    ) -> Command:
        path = tmp_path / "stderr"
        pid = os.fork()
        if pid == 0:
            try:
                # Whoever runs the tests in the background has it ignored.
                signal.signal(signal.SIGINT, signal.default_int_handler)
                sys.stderr = path.open("w")
                report = StartReport()
                report.detach(limit_s)
                story(report)
            finally:
                os._exit(77)
        return Command(pid, path)

    yield start
    os.close(writer)
    os.close(reader)


def test_a_worker_is_ready(start: Start, tmp_path: Path) -> None:
    def story(report: StartReport) -> None:
        assert os.getsid(0) != os.getpid(), "it could get a terminal"
        assert os.readlink("/proc/self/fd/2") == "/dev/null"
        report.on_log(actions.Log("info", "worker 1 is booting"))
        report.on_log(READY)
        report.on_log(FAILED)
        report.ended(3)

    assert start(story).wait() == (0, "")


def test_no_worker_can_boot(start: Start) -> None:
    def story(report: StartReport) -> None:
        report.on_log(actions.Log("info", "worker 1 is booting"))
        report.on_log(FAILED)
        report.ended(4, "the last word")

    code, said = start(story).wait()
    assert code == 4
    assert said == (
        "servo: error: the server has ended:\nworker 1 could not boot: no module\nthe last word\n"
    )


def test_a_long_reason(start: Start) -> None:
    code, said = start(lambda report: report.ended(1, "\u20ac" * 200_000 + "the end")).wait()
    assert code == 1
    assert said.endswith("the end\n")


def test_the_daemon_is_killed(start: Start) -> None:
    def story(_report: StartReport) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    assert start(story).wait() == (1, "servo: error: the server has ended:\nit was killed\n")


def test_a_child_of_the_daemon_does_not_keep_the_command_waiting(start: Start) -> None:
    reader, writer = os.pipe()

    def story(report: StartReport) -> None:
        if os.fork() == 0:
            report.close_in_child()
            os.close(writer)
            os.read(reader, 1)

    try:
        assert start(story).wait()[0] == 1
    finally:
        os.close(writer)
        os.close(reader)


def test_no_word_in_time(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(daemon, "SLACK_S", 0.01)
    code, said = start(limit_s=0.01).wait()
    assert code == 3
    assert "no worker is ready after 0.02 s; the server goes on in the background" in said


def test_an_interrupt_ends_only_the_waiting(start: Start) -> None:
    reader, writer = os.pipe()
    orders, order = os.pipe()

    def story(report: StartReport) -> None:
        os.write(writer, b"started")
        os.read(orders, 1)
        report.on_log(READY)  # to nobody
        os.write(writer, b"alive")

    command = start(story)
    assert os.read(reader, 7) == b"started"
    # The command has forked; once it sleeps, it waits for what the daemon says.
    stat = Path(f"/proc/{command.pid}/stat")
    while stat.read_text().rpartition(")")[2].split()[0] != "S":
        os.sched_yield()
    os.kill(command.pid, signal.SIGINT)
    code, said = command.wait()
    assert code == 130
    assert "goes on starting in the background" in said
    os.write(order, b"x")
    assert os.read(reader, 5) == b"alive"
    for fd in (reader, writer, orders, order):
        os.close(fd)


def test_who_is_no_daemon_tells_nobody() -> None:
    report = StartReport()
    report.on_log(READY)
    report.on_log(FAILED)
    report.ended(1, "why")
    report.close_in_child()
    assert report._errors == []
