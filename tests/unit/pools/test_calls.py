"""The calls of a process: forks, and the wait at its exit."""

from __future__ import annotations

import os
import signal

import pool_jobs as jobs
import pytest
from pool_processes import DEADLINE_S

from servo.pools import wire
from servo.pools.calls import Call, Calls, Pool, Receiver, calls
from servo.pools.errors import ProcessDied


def test_a_forked_child_has_its_own_calls(pool, tmp_path):
    executor = pool.executor()
    go = tmp_path / "go"
    pending = executor.submit(jobs.wait_for_file, str(go))
    assert executor.submit(jobs.add, 1).result(DEADLINE_S) == 1
    pid = os.fork()
    if pid == 0:  # the child: no assertion may return into pytest
        signal.alarm(20)
        code = 1
        try:
            error = pending.exception(0)
            if isinstance(error, ProcessDied) and "forked" in str(error):
                code = 2
                code = 0 if executor.submit(jobs.add, 2).result(DEADLINE_S) == 2 else 3
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert not pending.done()  # the parent's own is untouched
    go.touch()
    assert pending.result(DEADLINE_S) == str(go)


def test_a_process_waits_for_its_tasks_at_its_exit(pool, tmp_path):
    go = tmp_path / "go"
    future = pool.executor().submit(jobs.wait_for_file, str(go))
    assert not calls().wait(0.01)
    go.touch()
    assert calls().wait(DEADLINE_S)
    assert future.result(DEADLINE_S) == str(go)


class Recorder(Receiver):
    def __init__(self):
        self.errors = []

    def on_error(self, error):
        self.errors.append(error)


def test_a_call_can_be_failed_from_outside(new_pool):
    pool = new_pool(0, 4)
    own, receiver = Calls(), Recorder()
    call = Call(Pool("test", pool.path), wire.pack((jobs.add, (1,), {}), "it"), "add", receiver)
    own.start(call)
    error = ProcessDied(0, "said so")
    own.fail(call, error)
    own.fail(call, error)
    own.close(call)
    own.grant(call, 3)
    assert receiver.errors == [error]
    assert own.wait(0)


def test_without_a_board_there_is_no_reason():
    assert not Pool("test", "/nonexistent").is_running(1)
    assert Pool("test", "/nonexistent").reason_of(1) is None


def test_what_is_over_is_not_connected_again(new_pool):
    pool = new_pool(0, 4)
    own = Calls()
    call = Call(Pool("t", pool.path), wire.pack((jobs.add, (), {}), "it"), "add", Receiver())
    call.finish()
    own._connect_again(call)
    assert call.sock is None
    assert own.wait(0)


@pytest.mark.parametrize("method", ["on_value", "on_end", "on_error", "on_fork"])
def test_a_plain_receiver_does_nothing(method):
    assert getattr(Receiver(), method)(None) is None
