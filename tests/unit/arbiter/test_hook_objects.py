"""The `server` and `worker` arguments of hooks in the arbiter."""

from __future__ import annotations

import os
from types import SimpleNamespace
from typing import Any

import pytest

from servo.arbiter.hook_objects import ArbiterHookWorker, HookServer
from servo.cluster import ClusterError
from servo.settings.sources import Settings

SETTINGS = Settings({"app": "x:app", "workers": 3, "bind": ["127.0.0.1:8001"]}, {})


def test_the_server_before_it_runs() -> None:
    server = HookServer(SETTINGS)
    assert server.pid == os.getpid()
    assert server.cfg is SETTINGS
    assert server.num_workers == 3
    assert server.LISTENERS == []
    assert server.WORKERS == server.workers == {}
    assert server.worker_age == 0
    with pytest.raises(ClusterError, match="no worker is forked yet"):
        server.broadcast("hello")


def test_the_server_that_runs() -> None:
    worker = ArbiterHookWorker(7, 2, SETTINGS)
    newer = Settings({"app": "y:app", "timeout": 9}, {})
    sent: list[Any] = []
    running: Any = SimpleNamespace(
        settings=newer,
        listeners=[],
        target=5,
        hook_workers=lambda: {11: worker},
        workers_by_slot=lambda: {2: worker},
        broadcast=lambda message, topic: sent.append((message, topic)) or 1,
    )
    server = HookServer(SETTINGS)
    server.running = running
    assert server.cfg is newer
    assert server.app.cfg is newer
    assert (server.num_workers, server.timeout, server.address) == (5, 9.0, [])
    assert {11: worker} == server.WORKERS
    assert server.workers == {2: worker}
    assert server.worker_age == 7
    assert server.broadcast({"a": 1}, "topic") == 1
    assert sent == [({"a": 1}, "topic")]


def test_attributes_of_a_hook_are_kept_for_the_worker() -> None:
    worker = ArbiterHookWorker(1, 1, SETTINGS)
    worker.pid = 12
    worker.color = "blue"  # type: ignore[attr-defined]
    assert worker.kept() == {"color": "blue"}
    assert repr(worker) == "<Worker 1 pid=12>"


def test_an_unknown_attribute_is_named() -> None:
    with pytest.raises(AttributeError, match="nonsense"):
        HookServer(SETTINGS).nonsense  # noqa: B018  it raises
