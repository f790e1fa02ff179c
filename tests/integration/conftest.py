"""Fixtures for tests with real servers. Each one ends its processes, and shows the server's log."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from authority import Authority, Files

from integration.browser import CHROMIUM, Browser
from integration.server import APPS, Server

Serve = Callable[..., Server]

# The app that suits each worker class, with the flags that select the class.
CLASSES = {
    "sync": ("wsgi_app", ("-k", "sync")),
    "thread": ("wsgi_app", ("-k", "thread", "--threads", "4")),
    "async": ("asgi_app", ("-k", "async")),
}


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    report = yield
    if call.when == "call":
        item.stash[FAILED] = call.excinfo is not None
    return report


FAILED = pytest.StashKey[bool]()


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Browser]:
    """A page in a Chromium of its own, which ends with the test."""
    if CHROMIUM is None:
        pytest.skip("no Chromium here (Debian: apt-get install chromium)")
    browser = Browser(tmp_path)
    try:
        yield browser
    finally:
        browser.stop()


@pytest.fixture
def serve(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Serve]:
    """Start a server: `serve("module_or_path:app", "-w", "2")`; it is ready when this returns.

    `ready=0` doesn't wait; the other keywords are `Server`'s. What still runs after the test is
    stopped, and the test fails if any process is left.
    """
    servers: list[Server] = []

    def start(*args: str, ready: int = 1, **options: Any) -> Server:
        server = Server(*args, cwd=options.pop("cwd", tmp_path), **options)
        servers.append(server)
        server.start()
        return server.wait_ready(ready) if ready else server

    try:
        yield start
        # A test that failed has said why; its servers are then only ended.
        if not request.node.stash.get(FAILED, True):
            for server in servers:
                server.stop()
    finally:
        for server in servers:
            server.kill_all()
            print(f"--- log of servo {' '.join(server.args)} ---\n{server.log()[-20_000:]}")


@pytest.fixture
def open_directory() -> Iterator[Path]:
    """A directory that every user may enter: pytest's own is closed to others."""
    with tempfile.TemporaryDirectory(prefix="servo-test-") as name:
        os.chmod(name, 0o755)
        yield Path(name)


@pytest.fixture(params=[pytest.param(name, id=name) for name in CLASSES])
def worker_class(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def class_args(worker_class: str) -> tuple[str, ...]:
    """The app and the flags for a worker class."""
    module, flags = CLASSES[worker_class]
    return (f"{APPS / module}.py:app", *flags)


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    """An authority that issues certificates into the test's directory."""
    return Authority(tmp_path)


@pytest.fixture
def files(authority: Authority) -> Files:
    """The certificate and key of a server."""
    return authority.issue("server")
