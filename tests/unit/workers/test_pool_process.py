"""A pool process from its boot to its exit code, as a child of the test."""

from __future__ import annotations

import os
import signal
import socket
from pathlib import Path
from typing import Any

import pool_jobs as jobs
import pytest
from pool_processes import DEADLINE_S

from servo.arbiter.processes import spawn
from servo.pools.board import Board
from servo.pools.calls import Pool
from servo.pools.listening import listen
from servo.pools.pool_executor import PoolExecutor
from servo.settings.sections.pools import PoolSettings
from servo.settings.sources import Settings
from servo.workers.pool_process import PoolContext, describe_any, run_pool_process

pytestmark = pytest.mark.slow


class Child:
    """A process of the pool `test` whose initializer is given."""

    def __init__(self, directory: Path, initializer: str) -> None:
        pools = {"test": PoolSettings(initializer=initializer)}
        settings = Settings({"app": "x:app", "bind": [], "pools": pools, "chdir": "."}, {})
        self.path = str(directory / "test.sock")
        self.listener = listen(self.path, 4)
        self.board = Board()
        self.row = self.board.row(self.board.allocate(1))
        self.ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.ours.settimeout(DEADLINE_S)

        def main() -> int:
            self.ours.close()
            return run_pool_process(
                PoolContext("test", 1, settings, self.listener, theirs, self.row, -1)
            )

        self.pid = spawn.fork(main, lambda: None)
        theirs.close()

    def submit(self, function: Any, *args: Any) -> Any:
        pool = Pool("test", self.path, self.board)
        return PoolExecutor(pool).submit(function, *args).result(DEADLINE_S)

    def wait(self) -> int:
        code = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        self.ours.close()
        self.listener.close()
        return code


def test_it_boots_runs_tasks_and_ends_when_it_is_asked_to(tmp_path):
    child = Child(tmp_path, "pool_jobs:add_mark")
    assert child.ours.recv(100) == b"ready"
    assert child.submit(jobs.pid) == child.pid == child.row.pid
    assert child.submit(jobs.mark) == "initialized"
    child.ours.shutdown(socket.SHUT_WR)
    assert child.wait() == 0


def test_sigterm_ends_it_too_and_other_signals_don_t(tmp_path):
    child = Child(tmp_path, "")
    assert child.ours.recv(100) == b"ready"
    for signum in (signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGWINCH):
        os.kill(child.pid, signum)
    assert child.submit(jobs.add, 1) == 1
    os.kill(child.pid, signal.SIGTERM)
    assert child.wait() == 0


@pytest.mark.parametrize(
    ("initializer", "text"),
    [
        ("pool_jobs:nothing", "AttributeError: module 'pool_jobs' has no attribute 'nothing'"),
        ("no_such_module:load", "ModuleNotFoundError: No module named 'no_such_module'"),
        ("pool_jobs:leave", "SystemExit: leaving"),
    ],
)
def test_it_says_why_it_can_not_boot(tmp_path, initializer, text):
    child = Child(tmp_path, initializer)
    report = child.ours.recv(100_000).decode()
    assert report.startswith(f"failed:{text}")
    assert child.wait() == 4


def test_errors_are_described_in_one_line_first():
    assert describe_any(ValueError("x")).startswith("ValueError: x\n")
    assert describe_any(SystemExit(3)) == "SystemExit: 3"
