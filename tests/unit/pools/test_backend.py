"""`pools.executor` inside and outside of a server."""

from __future__ import annotations

import pool_jobs as jobs
import pytest
from pool_processes import DEADLINE_S

from servo import pools
from servo.pools import backend
from servo.pools.local import LocalExecutor
from servo.pools.places import Place, places
from servo.pools.pool_executor import PoolExecutor


@pytest.fixture
def in_server(monkeypatch, pool):
    def place(name):
        return Place(name, pool.path, 2, 16, 0.0)

    monkeypatch.setattr(places, "boards", {"ml": pool.board})
    monkeypatch.setattr(places, "by_name", {"ml": place("ml"), "thumbs": place("thumbs")})


def test_in_a_server(in_server):
    assert pools.names() == ["ml", "thumbs"]
    executor = pools.executor("ml")
    assert isinstance(executor, PoolExecutor)
    assert executor.submit(jobs.add, 1).result(DEADLINE_S) == 1
    assert pools.executor("ml") is not executor
    assert pools.executor("ml")._pool is executor._pool


def test_an_unknown_pool(in_server, monkeypatch):
    with pytest.raises(pools.NoSuchPool, match=r"no pool 'thumb'; did you mean 'thumbs'\?"):
        pools.executor("thumb")
    with pytest.raises(LookupError, match="The pools are: ml, thumbs"):
        pools.executor("zzz")
    monkeypatch.setattr(places, "by_name", {})
    with pytest.raises(pools.NoSuchPool, match="declares no pools"):
        pools.executor("ml")


def test_in_the_arbiter(monkeypatch):
    monkeypatch.setattr(places, "refusal", "not here")
    with pytest.raises(RuntimeError, match="not here"):
        pools.executor("ml")


@pytest.mark.slow
def test_outside_of_a_server():
    pools.declare("ml", workers=1, initializer="pool_jobs:add_mark")
    assert pools.names() == ["ml"]
    executor = pools.executor("ml")
    assert isinstance(executor, LocalExecutor)
    assert executor.submit(jobs.mark).result(DEADLINE_S) == "initialized"
    pools.declare("ml", workers=1)
    assert pools.executor("ml").submit(jobs.mark).result(DEADLINE_S) == ""
    backend.close_local()
    backend._declared.clear()
