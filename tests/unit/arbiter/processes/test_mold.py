"""The arbiter's side of molds, with model molds under the test's control."""

from __future__ import annotations

import json
import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from servo.arbiter import process_info
from servo.arbiter.core import actions, events
from servo.arbiter.core.events import Event
from servo.arbiter.hook_objects import HookServer
from servo.arbiter.listeners import Sockets
from servo.arbiter.processes import mold as mold_module
from servo.arbiter.processes import spawn
from servo.arbiter.processes.mold import END_S, MoldProcesses
from servo.arbiter.processes.workers import WorkerProcess, WorkerProcesses
from servo.settings.sources import Settings
from servo.shared_memory import row_layout
from servo.shared_memory.scoreboard import Scoreboard
from servo.workers.fork_order import ForkOrder, receive_order

READY = {"ready": True}


class Molds:
    """A server's molds and workers, with the processes that a test has made."""

    def __init__(self, loop: Any, tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        self.settings = Settings({"app": "x:app", "bind": [f"unix:{tmp_path}/s"]}, {})
        self.loop, self.board, self.inbox = loop, Scoreboard(4), list[Event]()
        self.sockets = Sockets(self.settings)
        self.workers = WorkerProcesses(
            self.board, loop.table, self.inbox.append, lambda *_args: None
        )
        self.forked: list[WorkerProcess] = []
        self.molds = MoldProcesses(
            loop.table, self.board, self.workers, self.inbox.append, self.forked.append
        )
        self.monkeypatch = monkeypatch
        monkeypatch.setattr(spawn, "adopt_orphans", lambda: None)
        self.processes: list[int] = []

    def start(self, model: Callable[[socket.socket], int]) -> int:
        """Fork a mold that runs `model`; return its pid."""

        def run(*args: Any) -> int:
            return model(args[-1])

        self.monkeypatch.setattr(mold_module, "_run", run)
        self.molds.start(1, self.settings, None, HookServer(self.settings))
        (found,) = self.molds._by_generation.values()
        self.processes.append(found.pid)
        return found.pid

    def order(self, serial: int) -> WorkerProcess:
        worker = self.workers.prepare(actions.Fork(serial, serial, 1), self.settings, None)
        self.molds.order(worker, self.sockets)
        return worker

    def until(self, *kinds: type[Event]) -> list[Event]:
        """Run the loop until an event of each of these kinds is there; return all of them."""
        self.loop.run_until(lambda: all(self.has(kind) for kind in kinds))
        return self.inbox

    def has(self, kind: type[Event]) -> bool:
        return any(isinstance(event, kind) for event in self.inbox)

    def reap(self, pid: int) -> None:
        """Wait for the end of a process, then reap as the loop does."""
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
        self.loop.table.reap()

    def child(self, code: int | None = None) -> int:
        """A child of the test's own, to be taken for a worker: paused, or ended with `code`."""
        pid = os.fork()
        if pid == 0:
            if code is None:
                signal.pause()
            os._exit(code or 0)
        self.processes.append(pid)
        if code is not None:
            os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
        return pid

    def close(self) -> None:
        self.molds.close()
        for pid in self.processes:
            try:
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
            except (ProcessLookupError, ChildProcessError):
                continue
        self.workers.close()
        self.sockets.close()
        self.board.close()


@pytest.fixture
def molds(loop: Any, tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Molds]:
    made = Molds(loop, tmp_path, monkeypatch)
    yield made
    made.close()


def say(sock: socket.socket, **answer: Any) -> None:
    sock.send(json.dumps(answer).encode())


def next_order(sock: socket.socket) -> ForkOrder | None:
    received = receive_order(sock)
    if received is None:
        return None
    order, fds = received
    for fd in fds:
        os.close(fd)
    return order


def says(*answers: dict[str, Any]) -> Callable[[socket.socket], int]:
    """A mold that gets ready, and gives one of these answers to each order."""

    def model(sock: socket.socket) -> int:
        say(sock, **READY)
        for answer in answers:
            order = next_order(sock)
            if order is None:
                return 0
            say(sock, **{"serial": order.serial, **answer})
        while next_order(sock) is not None:
            pass
        return 0

    return model


def pauses(sock: socket.socket) -> int:
    """A mold that gets ready, and never answers."""
    say(sock, **READY)
    signal.pause()
    return 0


def test_a_mold_gets_ready_and_is_dropped(molds: Molds) -> None:
    pid = molds.start(says())
    assert molds.until(events.MoldReady) == [events.MoldReady(1, pid)]
    molds.molds.drop(1)
    molds.reap(pid)
    assert molds.inbox == [events.MoldReady(1, pid)], "nobody waits for its end"


def test_a_dropped_mold_that_is_stuck_is_killed(molds: Molds) -> None:
    pid = molds.start(pauses)
    molds.until(events.MoldReady)
    molds.molds.drop(1)
    molds.molds.tick(time.monotonic() + END_S)
    molds.reap(pid)
    assert not spawn.is_child(pid)


def test_an_ordered_worker_is_adopted(molds: Molds) -> None:
    pid = molds.child()
    molds.start(says({"pid": pid}))
    worker = molds.order(1)
    assert worker.pid == 0
    assert molds.workers.hook_workers() == {}
    assert molds.until(events.Forked)[-1] == events.Forked(1, pid)
    assert molds.forked == [worker]
    assert worker.row is not None
    assert worker.row[row_layout.PID] == pid
    assert molds.workers.kill(1, "SIGKILL")
    molds.reap(pid)
    assert molds.inbox[-1] == events.ChildExited(pid, -9, "SIGKILL")


def test_a_worker_may_be_reaped_before_its_pid_is_known(molds: Molds) -> None:
    pid = molds.child(code=3)

    def model(sock: socket.socket) -> int:
        say(sock, **READY)
        order = next_order(sock)
        assert order is not None
        say(sock, serial=order.serial, pid=pid)
        return next_order(sock) is not None

    mold = molds.start(model)
    molds.order(1)
    molds.loop.table.reap()
    assert not spawn.is_child(pid)
    molds.until(events.Forked)
    molds.loop.table.reap()
    assert molds.inbox[-3:] == [
        events.Forked(1, pid),
        events.ChannelLost(1),
        events.ChildExited(pid, 3),
    ]
    assert spawn.is_child(mold)


def test_a_signal_waits_for_the_pid(molds: Molds) -> None:
    pid = molds.child()
    molds.start(says({"pid": pid}))
    molds.order(1)
    assert molds.workers.kill(1, "SIGKILL")
    molds.until(events.Forked)
    molds.reap(pid)
    assert molds.inbox[-1] == events.ChildExited(pid, -9, "SIGKILL")


def test_a_mold_that_cant_fork(molds: Molds) -> None:
    molds.start(says({"error": "no process can be had"}))
    worker = molds.order(1)
    assert molds.until(events.ForkFailed)[-1] == events.ForkFailed(1, "no process can be had")
    assert worker.channel is None
    assert molds.board.allocate(9, 9, 1) == 0, "its row is free"


@pytest.mark.parametrize(
    "answer",
    [{"pid": 1}, {"pid": "x"}, {"serial": 99, "pid": 1}, {}],
    ids=str,
)
def test_a_mold_that_names_another_process_is_killed(
    molds: Molds, answer: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    """The application runs in it: root's arbiter must not send signals to a pid of its choice."""
    pid = molds.start(says(answer))
    molds.order(1)
    molds.loop.run_until(lambda: "invalid answer" in caplog.text)
    molds.reap(pid)
    assert molds.inbox[1] == events.MoldEnded(1, pid, "its process ended (SIGKILL)")
    assert molds.inbox[2] == events.ForkFailed(1, "its mold ended while forking it")


def test_a_mold_that_the_kernel_kills_for_lack_of_memory(molds: Molds, tmp_path: Path) -> None:
    """The kernel counts it, and no later SIGKILL of a worker may be mistaken for it."""
    events_file = tmp_path / "memory.events"
    events_file.write_text("oom_kill 0\n")
    (tmp_path / "cgroup").write_text("0::/\n")
    counter = process_info.OutOfMemoryCounter(str(tmp_path), str(tmp_path / "cgroup"))
    molds.workers._out_of_memory = counter
    pid = molds.start(pauses)
    molds.until(events.MoldReady)
    events_file.write_text("oom_kill 1\n")
    os.kill(pid, signal.SIGKILL)
    molds.reap(pid)
    assert molds.inbox[1] == events.MoldEnded(1, pid, "killed by the kernel: out of memory")
    assert not molds.workers.ran_out_of_memory(-signal.SIGKILL)


def test_the_reason_that_a_mold_reports(molds: Molds) -> None:
    def model(sock: socket.socket) -> int:
        say(sock, failed="app", text="no module shop\n  a traceback\n  of two lines")
        return 4

    pid = molds.start(model)
    molds.reap(pid)
    assert molds.inbox == [
        events.MoldEnded(1, pid, "no module shop", "app", "  a traceback\n  of two lines")
    ]


def test_a_mold_dies_over_its_orders(molds: Molds) -> None:
    mold = molds.start(pauses)
    molds.until(events.MoldReady)
    molds.order(1)
    molds.order(2)
    molds.molds.kill(1, "SIGKILL")
    molds.reap(mold)
    assert molds.inbox[1:] == [
        events.MoldEnded(1, mold, "its process ended (SIGKILL)"),
        events.ForkFailed(2, "its mold has ended"),
        events.ForkFailed(1, "its mold ended while forking it"),
    ]


def test_a_mold_dies_before_it_tells_the_pid_of_a_worker(molds: Molds) -> None:
    pid = molds.child()
    mold = molds.start(pauses)
    molds.until(events.MoldReady)
    worker = molds.order(1)
    assert worker.row is not None
    (under_way,) = [each.under_way for each in molds.molds._by_generation.values()]
    assert under_way is not None
    held = os.dup(under_way.channel.fileno())  # as the worker would hold it
    molds.molds.kill(1, "SIGKILL")
    molds.reap(mold)
    assert not molds.has(events.ForkFailed), "its end of the channel is open"
    worker.row[row_layout.PID] = pid
    molds.molds.tick(time.monotonic())
    assert molds.inbox[-1] == events.Forked(1, pid)
    os.close(held)


def test_orders_that_are_no_longer_needed(molds: Molds) -> None:
    mold = molds.start(pauses)
    molds.until(events.MoldReady)
    molds.order(1)
    molds.order(2)
    molds.molds.cancel(2)
    assert molds.inbox[-1] == events.ForkFailed(2, "it is no longer needed")
    assert spawn.is_child(mold)
    molds.molds.cancel(1)
    molds.reap(mold)
    assert molds.inbox[-1] == events.ForkFailed(1, "its mold ended while forking it")


def test_an_order_without_a_mold(molds: Molds) -> None:
    molds.order(1)
    assert molds.inbox == [events.ForkFailed(1, "its mold has just ended")]


def test_a_system_without_subreapers(molds: Molds, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spawn, "adopt_orphans", lambda: "this system has no such thing")
    molds.molds.start(1, molds.settings, None, HookServer(molds.settings))
    text = "it can't be forked: this system has no such thing"
    assert molds.inbox == [events.MoldEnded(1, 0, text)]


def test_no_process_can_be_had(molds: Molds, monkeypatch: pytest.MonkeyPatch) -> None:
    def fork(*_args: Any) -> int:
        raise OSError("no process can be had")

    monkeypatch.setattr(spawn, "fork", fork)
    molds.molds.start(1, molds.settings, None, HookServer(molds.settings))
    assert molds.inbox == [events.MoldEnded(1, 0, "it can't be forked: no process can be had")]


def test_molds_are_told_to_reopen_their_logs(molds: Molds) -> None:
    def model(sock: socket.socket) -> int:
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
        sock.send(json.dumps(READY).encode())
        signal.sigwait([signal.SIGUSR1])
        return 7

    pid = molds.start(model)
    molds.until(events.MoldReady)
    molds.molds.reopen_logs()
    molds.reap(pid)
    (ended,) = (event for event in molds.until(events.MoldEnded)[1:])
    assert isinstance(ended, events.MoldEnded)
    assert "exit code 7" in ended.text


class Reforked:
    """A worker with a socket for the mold of generation 2, which the arbiter expects."""

    def __init__(self, molds: Molds) -> None:
        settings = Settings({"app": "x:app", "refork_after": 5}, {})
        molds.start(says({"pid": molds.child()}))
        worker = molds.workers.prepare(actions.Fork(1, 1, 1), settings, None)
        molds.molds.order(worker, molds.sockets)
        assert worker.mold_sock is not None
        ordered = molds.molds._by_generation[1].under_way
        assert ordered is not None
        assert ordered.mold_sock is not None
        self.theirs = ordered.mold_sock.dup()
        molds.until(events.Forked)
        molds.inbox.clear()
        molds.molds.expect(2, worker)
        assert worker.mold_sock is None

    def fork(self, molds: Molds) -> int:
        """Fork a process that is ready, and ends with its socket; return its pid."""
        pid = os.fork()
        if pid == 0:
            molds.loop.table._close_in_child(())
            say(self.theirs, **READY)
            os._exit(0 if next_order(self.theirs) is None else 1)
        molds.processes.append(pid)
        return pid


def test_the_mold_of_a_worker_is_adopted(molds: Molds) -> None:
    reforked = Reforked(molds)
    with reforked.theirs:
        pid = reforked.fork(molds)
    molds.molds.adopt(2, pid)
    assert events.MoldReady(2, pid) in molds.until(events.MoldReady)
    molds.molds.drop(2)
    molds.reap(pid)
    assert not spawn.is_child(pid)


def test_the_mold_of_a_worker_has_ended_already(molds: Molds) -> None:
    reforked = Reforked(molds)
    reforked.theirs.close()
    pid = molds.child(1)
    molds.loop.table.reap()
    molds.molds.adopt(2, pid)
    molds.loop.table.reap()
    assert molds.inbox == [events.MoldEnded(2, pid, "its process ended (exit code 1)")]


def test_a_worker_that_reports_another_process_as_its_mold(molds: Molds) -> None:
    reforked = Reforked(molds)
    with reforked.theirs:
        molds.molds.adopt(2, 1)
        assert molds.inbox == [events.MoldEnded(2, 1, "process 1 is not a mold")]
        assert reforked.theirs.recv(1) == b"", "a mold that runs would end"


def test_a_mold_that_no_worker_has_forked_yet(molds: Molds) -> None:
    reforked = Reforked(molds)
    with reforked.theirs:
        molds.molds.kill(2, "SIGKILL")
        molds.molds.reopen_logs()
        molds.molds.drop(2)
        assert reforked.theirs.recv(1) == b""
    assert molds.inbox == []


def test_the_server_ends_while_it_expects_a_mold(molds: Molds) -> None:
    reforked = Reforked(molds)
    with reforked.theirs:
        molds.molds.close()
        assert reforked.theirs.recv(1) == b""


def test_no_descriptors_for_the_mold_of_a_worker(
    molds: Molds, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse() -> None:
        raise OSError("too many open files")

    molds.start(says())
    molds.until(events.MoldReady)
    monkeypatch.setattr(mold_module, "_order_sockets", refuse)
    settings = Settings({"app": "x:app", "refork_after": 5}, {})
    worker = molds.workers.prepare(actions.Fork(1, 1, 1), settings, None)
    molds.molds.order(worker, molds.sockets)
    assert molds.inbox[1:] == [events.ForkFailed(1, "too many open files")]


def test_the_next_program_goes_on_with_the_mold(molds: Molds) -> None:
    pid = molds.start(says({"error": "no memory"}))
    molds.until(events.MoldReady)
    (state,) = json.loads(json.dumps(molds.molds.to_state(1, lambda fd: fd)))
    assert molds.molds.to_state(2, lambda fd: fd) == []
    before = molds.molds._by_generation.pop(1)
    molds.loop.table.remove(before)
    after = MoldProcesses(
        molds.loop.table, molds.board, molds.workers, molds.inbox.append, molds.forked.append
    )
    after.restore([state], os.dup, None)
    before.sock.close()
    molds.molds = after
    molds.order(1)
    assert molds.until(events.ForkFailed)[-1] == events.ForkFailed(1, "no memory")
    after.drop(1)
    molds.reap(pid)
    assert not spawn.is_child(pid)
