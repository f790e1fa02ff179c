"""The steps of a single worker, and their actions."""

from __future__ import annotations

from servo.arbiter.core.action_queue import ActionQueue
from servo.arbiter.core.actions import Fork, KillWorker, RecordLifecycleEvent, Release, SendMessage
from servo.arbiter.core.events import ChildExited
from servo.arbiter.core.exit_reasons import ExitReason
from servo.arbiter.core.policy import ABORT_S, BOOT_STOP_S, Policy
from servo.arbiter.core.worker_lifecycle import WorkerLifecycle
from servo.arbiter.core.worker_table import WorkerEntry, WorkerState, WorkerTable
from servo.ipc.messages import BootFailed, Retire, Stop


class Bench:
    """One worker, and the actions since the last look."""

    def __init__(self) -> None:
        self.workers = WorkerTable()
        self.queue = ActionQueue()
        policy = Policy(workers=1, timeout_s=30.0, graceful_timeout_s=10.0)
        self.lifecycle = WorkerLifecycle(self.workers, {1: policy}, self.queue)
        self.worker: WorkerEntry = self.lifecycle.fork(1, 1, 0.0)
        assert self.queue.take() == [Fork(1, 1, 1)]
        self.lifecycle.forked(1, 11)

    def ready(self) -> Bench:
        assert self.lifecycle.ready(self.worker, 1.0)
        self.queue.take()
        return self


def test_a_life() -> None:
    bench = Bench()
    lifecycle, worker = bench.lifecycle, bench.worker
    lifecycle.booting(worker)
    assert lifecycle.ready(worker, 1.0)
    assert not lifecycle.ready(worker, 2.0)
    lifecycle.retire(worker, ExitReason.SCALED_DOWN, 3.0)
    ended = lifecycle.exited(ChildExited(11, 0), 4.0)
    assert ended is not None
    assert (ended.reason, ended.unasked) == (ExitReason.SCALED_DOWN, False)
    taken = bench.queue.take()
    names = [action.name for action in taken if isinstance(action, RecordLifecycleEvent)]
    assert names == ["spawned", "booting", "ready", "draining", "exited"]
    assert SendMessage(1, Retire("scaled_down")) in taken
    assert taken[-1] == Release(1)
    assert len(bench.workers) == 0


def test_a_stranger() -> None:
    assert Bench().lifecycle.exited(ChildExited(99, 0), 1.0) is None


def test_a_failed_boot_is_reported_once() -> None:
    bench = Bench()
    assert bench.lifecycle.boot_failed(bench.worker, BootFailed("app", "no"), 1.0)
    assert not bench.lifecycle.boot_failed(bench.worker, BootFailed("app", "no"), 1.0)
    assert bench.worker.state is WorkerState.DRAINING


def test_a_booting_worker_has_the_short_grace_until_it_is_ready() -> None:
    bench = Bench()
    bench.lifecycle.stop(bench.worker, quick=False, now=1.0)
    assert bench.worker.kill_at == 1.0 + BOOT_STOP_S
    assert not bench.lifecycle.ready(bench.worker, 2.0)
    assert bench.worker.kill_at == 1.0 + 10.0


def test_a_draining_worker_is_told_to_hurry() -> None:
    bench = Bench().ready()
    bench.lifecycle.retire(bench.worker, ExitReason.RECYCLED, 1.0)
    bench.queue.take()
    bench.lifecycle.stop(bench.worker, quick=False, now=2.0)
    assert bench.queue.take() == []
    bench.lifecycle.stop(bench.worker, quick=True, now=2.0)
    assert bench.queue.take() == [SendMessage(1, Stop(quick=True))]


def test_a_worker_without_its_channel_gets_a_signal() -> None:
    bench = Bench().ready()
    bench.lifecycle.channel_lost(bench.worker)
    assert bench.queue.take() == []
    bench.lifecycle.retire(bench.worker, ExitReason.RECYCLED, 1.0)
    assert bench.queue.take()[-1] == KillWorker(1, "SIGTERM", "its channel is gone")


def test_a_message_may_be_lost_with_the_channel() -> None:
    bench = Bench().ready()
    bench.lifecycle.retire(bench.worker, ExitReason.RECYCLED, 1.0)
    bench.queue.take()
    bench.lifecycle.channel_lost(bench.worker)
    assert bench.queue.take() == [KillWorker(1, "SIGTERM", "its channel is gone")]


def test_a_hung_worker_is_aborted_then_killed() -> None:
    bench = Bench().ready()
    bench.lifecycle.enforce_limits({1: 5.0}, {}, 34.0)
    assert bench.queue.take() == []
    bench.lifecycle.enforce_limits({1: 5.0}, {}, 35.0)
    assert bench.queue.take()[-1] == KillWorker(1, "SIGABRT", "no heartbeat for 30 s")
    assert bench.lifecycle.due_times() == [35.0 + ABORT_S]
    bench.lifecycle.enforce_limits({1: 5.0}, {}, 35.0 + ABORT_S)
    assert bench.queue.take()[-1] == KillWorker(1, "SIGKILL", "no heartbeat for 30 s")
    ended = bench.lifecycle.exited(ChildExited(11, -9, "SIGKILL"), 38.0)
    assert ended is not None
    assert ended.unasked
