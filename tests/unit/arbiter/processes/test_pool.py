"""The arbiter's side of pools, with model processes that the test itself plays."""

from __future__ import annotations

import logging
import os
import shutil
import signal
import socket
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from servo.arbiter.core.pool_supervision import PoolState
from servo.arbiter.processes import pool as pool_module
from servo.arbiter.processes.guard import GuardedWorker
from servo.arbiter.processes.pool import PoolProcess, Pools
from servo.pools.board import DIED, TIMED_OUT
from servo.pools.places import places
from servo.settings.sections.pools import PoolSettings
from servo.settings.sources import Settings


class Table:
    """Starts no process: keeps what would have run."""

    def __init__(self) -> None:
        self.started: list[PoolProcess] = []
        self.mains: dict[int, Callable[[], int]] = {}
        self.fails = False
        self.unwatched: list[PoolProcess] = []

    def start(self, child: PoolProcess, main: Callable[[], int], *, keep: Any) -> None:
        if self.fails:
            raise OSError("no memory")
        child.pid = 100_000_000 + len(self.started)  # no process has such a pid
        self.started.append(child)
        arguments = main.args  # type: ignore[attr-defined]
        self.mains[child.serial] = main
        self.orders = getattr(self, "orders", {})
        self.orders[child.serial] = socket.socket(fileno=os.dup(arguments[3].fileno()))

    def adopt(self, child: PoolProcess) -> None:
        self.started.append(child)

    def remove(self, _child: PoolProcess) -> None:
        """Nothing is watched here."""

    def unwatch(self, child: PoolProcess) -> None:
        self.unwatched.append(child)


class House:
    """Pools on a table, and the other ends of their processes' sockets."""

    def __init__(self) -> None:
        self.table = Table()
        self.guarded: list[GuardedWorker] = []
        self.pools = Pools(self.table, lambda _code: False, self.guarded.append)  # type: ignore[arg-type]
        self.now = 100.0

    def load(self, generation: int, **pools: PoolSettings) -> None:
        settings = Settings({"app": "x:app", "bind": [], "pools": pools}, {})
        self.pools.load(generation, settings, self.now)

    def say(self, process: PoolProcess, text: bytes) -> None:
        self.table.orders[process.serial].send(text)
        process.on_ready(1)

    def ready(self, *numbers: int) -> None:
        for number in numbers:
            self.say(self.table.started[number], b"ready")

    def is_asked_to_end(self, process: PoolProcess) -> bool:
        order = self.table.orders[process.serial]
        order.setblocking(False)
        try:
            return order.recv(10) == b""
        except BlockingIOError:
            return False

    def states(self, name: str = "ml") -> list[tuple[int, int, str]]:
        (pool,) = [each for each in self.pools if each.name == name]
        return [
            (entry.generation, entry.slot, entry.state.value)
            for entry in pool.supervision.entries.values()
        ]


@pytest.fixture
def base() -> Iterator[Path]:
    """A directory with a short path: the path of a Unix socket is limited."""
    with tempfile.TemporaryDirectory(prefix="sp") as name:
        yield Path(name)


@pytest.fixture
def house(base: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[House]:
    monkeypatch.setattr(tempfile, "tempdir", str(base))
    monkeypatch.setattr(pool_module.spawn, "wait_within", lambda _pid, _s: True)
    monkeypatch.setattr(pool_module.process_info, "send_signal", lambda *_args: True)
    monkeypatch.setattr(places, "refusal", "")
    monkeypatch.setattr(places, "directory", "")
    monkeypatch.setattr(places, "boards", {})
    house = House()
    yield house
    house.pools.close()
    for process in house.table.started:
        process.close_in_child()
    for order in getattr(house.table, "orders", {}).values():
        order.close()
    assert os.listdir(base) == []


def test_without_pools_nothing_is_opened(house: House, base: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    house.load(1)
    house.pools.adopt(1, 100.0)
    house.pools.tick(101.0)
    house.pools.reopen_logs()
    assert house.pools.to_state(lambda fd: fd) is None
    assert house.pools.guarded() == []
    assert os.listdir(base) == []
    assert len(os.listdir("/proc/self/fd")) == before


def test_the_arbiter_itself_can_not_use_pools(house: House) -> None:
    assert "can't be used in the arbiter" in places.refusal


def test_a_pool_has_a_socket_a_board_and_processes(house: House) -> None:
    house.load(1, ml=PoolSettings(workers=2))
    assert os.listdir(places.directory) == ["ml.sock"]
    assert list(places.boards) == ["ml"]
    house.pools.adopt(1, 100.0)
    assert house.states() == [(1, 1, "booting"), (1, 2, "booting")]
    assert [each.pid for each in house.guarded] == [p.pid for p in house.table.started]
    assert [each.pid for each in house.pools.guarded()] == [p.pid for p in house.table.started]
    house.ready(0, 1)
    assert house.states() == [(1, 1, "ready"), (1, 2, "ready")]


def test_a_process_that_can_not_boot(house: House, caplog: pytest.LogCaptureFixture) -> None:
    house.load(1, ml=PoolSettings())
    process = house.table.started[0]
    house.table.orders[1].send(b"failed:no model\nTraceback")
    process.on_exit(4)  # its report is read first
    assert "can't boot: no model" in caplog.text
    assert "has ended: no model" in caplog.text
    (pool,) = house.pools
    assert pool.supervision.failure == "no model"


@pytest.mark.parametrize(
    ("code", "level", "text"),
    [
        (-signal.SIGKILL, logging.ERROR, "killed by signal 9 (SIGKILL), not by the arbiter"),
        (-signal.SIGSEGV, logging.ERROR, "crashed by signal 11 (SIGSEGV)"),
        (-signal.SIGIO, logging.INFO, "its task was cancelled by the caller"),
        (3, logging.ERROR, "exited with code 3"),
        (0, logging.INFO, "exited by itself with code 0"),
    ],
)
def test_the_reason_of_an_exit_is_on_the_board(
    house: House, caplog: pytest.LogCaptureFixture, code: int, level: int, text: str
) -> None:
    caplog.set_level(logging.INFO)
    house.load(1, ml=PoolSettings())
    house.ready(0)
    (pool,) = house.pools
    process = house.table.started[0]
    pool.board.row(process.row_index).begin("m.f", 42)
    process.on_exit(code)
    exit_ = pool.board.exit_of(42)
    assert exit_ is not None
    assert (exit_.pid, exit_.kind) == (process.pid, DIED)
    assert exit_.reason.startswith(text)
    assert not pool.board.is_running(42)
    assert pool.board.ended_totals().outcomes == (0, 0, 0, 1)
    assert caplog.records[-1].levelno == level
    assert house.states() == [(1, 1, "booting")]


def test_a_task_past_its_time(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[int] = []
    monkeypatch.setattr(
        pool_module.process_info, "send_signal", lambda _pid, signum, _owner: sent.append(signum)
    )
    house.load(1, ml=PoolSettings(timeout=0.000001))
    house.ready(0)
    (pool,) = house.pools
    process = house.table.started[0]
    pool.board.row(process.row_index).begin("m.f", 42)
    house.pools.tick(101.0)
    assert sent == [signal.SIGABRT]
    process.on_exit(-signal.SIGABRT)
    exit_ = pool.board.exit_of(42)
    assert exit_ is not None
    assert exit_.kind == TIMED_OUT
    assert exit_.reason == "killed by the arbiter: m.f ran for more than 1e-06 s (timeout)"


def test_a_reload_replaces_the_processes_new_first(house: House) -> None:
    house.load(1, ml=PoolSettings(), old=PoolSettings())
    house.pools.adopt(1, 100.0)
    house.ready(0, 1)
    house.load(2, ml=PoolSettings(queue=7), new=PoolSettings())
    assert house.states("new") == [(2, 1, "booting")]  # the canary can use it
    assert house.states("ml") == [(1, 1, "ready")]
    house.pools.adopt(2, 101.0)
    house.pools.adopt(2, 101.0)
    assert house.states("ml") == [(1, 1, "ready"), (2, 1, "booting")]
    house.ready(3)
    assert house.states("ml") == [(1, 1, "retiring"), (2, 1, "ready")]
    assert house.is_asked_to_end(house.table.started[0])
    house.table.started[0].on_exit(0)
    # Workers of the old generation may still use a pool that the new one doesn't have.
    assert house.states("old") == [(1, 1, "ready")]
    house.pools.drop(1)
    assert house.states("old") == [(1, 1, "retiring")]
    assert "old.sock" not in os.listdir(places.directory)
    house.table.started[1].on_exit(0)
    house.pools.tick(102.0)
    assert sorted(each.name for each in house.pools) == ["ml", "new"]


def test_a_reload_that_fails_leaves_the_pools_alone(house: House) -> None:
    house.load(1, ml=PoolSettings())
    house.pools.adopt(1, 100.0)
    house.ready(0)
    house.load(2, ml=PoolSettings(workers=3), new=PoolSettings())
    house.pools.drop(2)
    assert house.states("ml") == [(1, 1, "ready")]
    assert house.states("new")[0][2] == "retiring"
    house.pools.copy(1, 3)
    house.pools.adopt(3, 101.0)
    assert house.states("ml")[-1] == (3, 1, "booting")
    house.pools.copy(77, 78)
    house.pools.adopt(78, 101.0)  # unknown: nothing happens


def test_a_fork_that_fails_leaks_nothing(house: House, caplog: pytest.LogCaptureFixture) -> None:
    house.load(1, ml=PoolSettings())
    house.ready(0)
    before = len(os.listdir("/proc/self/fd"))
    house.table.fails = True
    house.table.started[0].on_exit(0)
    assert "can't be forked: no memory" in caplog.text
    assert house.states() == []
    assert len(os.listdir("/proc/self/fd")) <= before


def test_an_upgrade_passes_on_the_processes(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    house.load(1, ml=PoolSettings(workers=2), gone=PoolSettings())
    house.pools.adopt(1, 100.0)
    house.ready(0, 1)
    state = house.pools.to_state(lambda fd: fd)
    assert state is not None
    following = Pools(house.table, lambda _code: False, house.guarded.append)  # type: ignore[arg-type]
    settings = Settings({"app": "x:app", "bind": [], "pools": {"ml": PoolSettings(workers=2)}}, {})
    following.restore(state, lambda fd: os.dup(fd) if fd >= 0 else -1, 1, settings)
    entries = [e for pool in following for e in pool.supervision.entries.values()]
    assert [(e.serial, e.slot, e.state) for e in entries] == [
        (1, 1, PoolState.READY),
        (2, 2, PoolState.READY),
        (3, 1, PoolState.RETIRING),
    ]
    following.tick(101.0)
    assert "gone.sock" not in os.listdir(places.directory)
    for pool in house.pools:
        pool.listener.close()
        pool.board.close()
    house.pools._directory.close_in_child()  # type: ignore[union-attr]
    house.pools = following


def test_the_end_kills_processes_that_don_t_end(
    house: House, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    sent: list[int] = []
    waits: list[float] = []

    def wait_within(_pid: int, limit_s: float) -> bool:
        waits.append(limit_s)
        return False

    monkeypatch.setattr(pool_module.spawn, "wait_within", wait_within)
    monkeypatch.setattr(
        pool_module.process_info, "send_signal", lambda _pid, signum, *_owner: sent.append(signum)
    )
    house.load(1, ml=PoolSettings())
    house.ready(0)
    house.pools.tick(101.0, ending=True)
    house.pools.close(graceful_s=30.0)
    assert sent == [signal.SIGKILL]
    assert "did not end in time" in caplog.text
    assert house.is_asked_to_end(house.table.started[0])


def test_a_forked_child_closes_its_copies(house: House) -> None:
    house.load(1, ml=PoolSettings())
    (pool,) = house.pools
    copy = socket.socket(fileno=os.dup(pool.listener.fileno()))
    house.pools.close_in_child()
    assert pool.listener.fileno() == pool.board.fd == -1
    assert os.listdir(places.directory) != []  # the files are the arbiter's
    pool.listener = copy
    shutil.rmtree(places.directory)
