"""Fixtures for the tests of the drivers; see `fakes`."""

from __future__ import annotations

import ssl
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from authority import Authority
from unit.workers.fakes import AsyncServer, BlockingServer, Clock, Loop, ServingWorker

from servo.net.tls import TLS


@pytest.fixture(scope="session")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("ca"))


@pytest.fixture
def tls(authority: Authority) -> TLS:
    files = authority.directory / "server.pem", authority.directory / "server.key"
    if not files[0].exists():
        authority.issue("server")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*files)
    return TLS(context)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


@pytest.fixture
def loop(clock: Clock) -> Iterator[Loop]:
    """An event loop that runs a turn at a time."""
    loop = Loop(clock)
    yield loop
    loop.end()


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


@pytest.fixture
def make_serving(clock: Clock) -> Iterator[Callable[..., ServingWorker]]:
    """Makes `async` workers that serve, and lets them go at the end."""
    workers: list[ServingWorker] = []

    def made(app: Any, **values: Any) -> ServingWorker:
        workers.append(ServingWorker(clock, app, **values))
        return workers[-1]

    yield made
    for worker in workers:
        worker.close()
