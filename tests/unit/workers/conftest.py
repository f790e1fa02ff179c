"""Fixtures for the tests of the drivers; see `fakes`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from unit.workers.fakes import AsyncServer, BlockingServer, Clock


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


@pytest.fixture
def make_blocking(clock: Clock) -> Iterator[Callable[..., BlockingServer]]:
    """Makes `sync` and `thread` workers, and lets them go at the end."""
    servers: list[BlockingServer] = []

    def made(app: Any, kind: str = "sync", **values: Any) -> BlockingServer:
        servers.append(BlockingServer(clock, app, kind, **values))
        return servers[-1]

    yield made
    for server in servers:
        server.close()


@pytest.fixture
def make_async(clock: Clock) -> Iterator[Callable[..., AsyncServer]]:
    """Makes servers of the `async` worker, and lets them go at the end."""
    servers: list[AsyncServer] = []

    def made(app: Any, **values: Any) -> AsyncServer:
        servers.append(AsyncServer(clock, app, **values))
        return servers[-1]

    yield made
    for server in servers:
        server.close()
