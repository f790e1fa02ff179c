"""A pool of real processes for tests, without a server."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pool_jobs

from servo.pools.board import BUSY, Board
from servo.pools.calls import Pool
from servo.pools.listening import listen
from servo.pools.pool_executor import PoolExecutor

ROOT = Path(__file__).parents[1]
DEADLINE_S = 20.0


def wait_for(condition: Callable[[], object], what: str) -> None:
    end = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < end, f"no {what} within {DEADLINE_S} s"
        time.sleep(0.005)


class PoolOfProcesses:
    """Plays the arbiter: makes the socket and the board, starts processes, records their exits."""

    def __init__(self, directory: Path, queue: int) -> None:
        self.path = str(directory / "p.sock")
        self.listener = listen(self.path, queue)
        self.board = Board()
        self.queue = queue
        self.processes: dict[int, subprocess.Popen[bytes]] = {}
        self.reader, self.order_fd = os.pipe()
        self._serial = 0
        self.rows: dict[int, int] = {}

    def start(self) -> int:
        """Start a process; its serial."""
        self._serial += 1
        index = self.board.allocate(self._serial)
        assert index <= self._serial - 1
        self.rows[self._serial] = index
        fds = (self.board.fd, self.listener.fileno(), self.reader)
        arguments = [str(index), *map(str, fds)]
        self.processes[self._serial] = subprocess.Popen(
            [sys.executable, pool_jobs.__file__, *arguments],
            pass_fds=fds,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
        return self._serial

    def pid(self, serial: int) -> int:
        return self.processes[serial].pid

    def busy(self) -> int:
        rows = [self.board.row(n) for n in range(self._serial)]
        return sum(row.state == BUSY for row in rows)

    def kill(self, serial: int, reason: str = "killed by a test") -> None:
        process = self.processes[serial]
        process.send_signal(signal.SIGKILL)
        process.wait()
        self.record_exit(serial, 0, reason)

    def record_exit(self, serial: int, kind: int, reason: str) -> None:
        row = self.board.row(self.rows[serial])
        self.board.record_exit(serial, row.key, self.pid(serial), kind, reason)
        self.board.release(self.rows[serial])

    def executor(self, *, queue_timeout: float = 0.0, cancel_running: bool = False) -> PoolExecutor:
        pool = Pool(
            "test",
            self.path,
            self.board,
            workers=max(1, len(self.processes)),
            queue=self.queue,
            queue_timeout=queue_timeout,
        )
        return PoolExecutor(pool, cancel_running=cancel_running)

    def close(self) -> None:
        os.close(self.order_fd)
        self.listener.close()
        for process in self.processes.values():
            if process.poll() is None:
                try:
                    process.wait(2)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()
        os.close(self.reader)
        self.board.close()
