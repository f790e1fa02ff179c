"""The start-up context of a worker."""

from __future__ import annotations

import pytest
from unit.workers.fakes import World

from servo.workers.context import WorkerContext


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
        for name in ("mailbox", "hook_worker", "forks"):
            assert name not in given
            with pytest.raises(AttributeError):
                getattr(WorkerContext(**given), name)
    finally:
        world.close()
