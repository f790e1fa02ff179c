"""What a worker is born with."""

from __future__ import annotations

import signal

import pytest
from unit.workers.fakes import World

from servo.workers.context import REQUESTS_SIGNAL, STACK_SIGNAL, WorkerContext


def test_what_the_arbiter_sends_are_two_spare_signals() -> None:
    assert STACK_SIGNAL != REQUESTS_SIGNAL
    for signum in (STACK_SIGNAL, REQUESTS_SIGNAL):
        assert signal.SIGRTMIN < signum <= signal.SIGRTMAX


def test_workers_do_not_share_what_pre_fork_has_kept() -> None:
    first, second = World(), World()
    try:
        first.context.kept["a"] = 1
        assert second.context.kept == {}
        assert (second.context.dump_fd, second.context.tls) == (-1, None)
    finally:
        first.close()
        second.close()


def test_what_is_made_in_the_worker_is_not_there_before() -> None:
    world = World()
    try:
        given = {
            name: getattr(world.context, name)
            for name, field in WorkerContext.__dataclass_fields__.items()
            if field.init
        }
        for name in ("mailbox", "hooked", "forks"):
            assert name not in given
            with pytest.raises(AttributeError):
                getattr(WorkerContext(**given), name)
    finally:
        world.close()
