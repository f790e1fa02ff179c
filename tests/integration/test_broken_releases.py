"""A release or configuration that can't start never replaces a working one."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from integration import releases
from integration.conftest import CLASSES
from integration.load import EVERY_KIND, Load
from integration.server import Server

pytestmark = pytest.mark.slow

SAYS = {
    "raises on import": "this release is broken",
    "syntax error": "SyntaxError",
    "sys.exit on import": "SystemExit|exit",
    "hangs on import": "boot_timeout|boot timeout|within 2 s|2(\\.0)? s",
    "lifespan startup fails": "this lifespan is broken",
}


def test_broken_releases_are_rolled_back(
    serve: Callable[..., Server], tmp_path: Path, worker_class: str
) -> None:
    releases.deploy(tmp_path, releases.good(worker_class, "1"))
    config = tmp_path / "servo.conf.py"
    config.write_text("workers = 2\nboot_timeout = 2\n")
    server = serve("release:app", *CLASSES[worker_class][1], "-c", str(config), ready=2)
    serving = server.wait_workers(2)

    with Load(server.port, EVERY_KIND) as load:
        for name, source in releases.broken(worker_class).items():
            before, mark = releases.imports(tmp_path), server.mark()
            releases.deploy(tmp_path, source)
            server.signal(signal.SIGHUP)
            server.wait_log("(?i)rolled back|roll back", mark)
            server.wait_log(SAYS[name], mark)
            assert server.wait_workers(2) == serving, name
            assert releases.imports(tmp_path) - before <= 2, f"{name}: too many attempts"
            load.wait_answers(20)

        releases.deploy(tmp_path, releases.good(worker_class, "2"))
        for broken in ("workers = 'many'\n", "workers = = 2\n", "import nothing_of_that_name\n"):
            mark = server.mark()
            config.write_text(broken)
            server.signal(signal.SIGHUP)
            server.wait_log(r"(?i)servo\.conf\.py|workers|nothing_of_that_name", mark)
            server.wait_log("(?i)configuration|reload", mark)
            assert server.wait_workers(2) == serving
            load.wait_answers(20)
        assert set(load.bodies) == {b"1"}

        config.write_text("workers = 3\nboot_timeout = 20\n")
        server.signal(signal.SIGHUP)
        server.wait_replaced(serving, count=3)
        load.wait_answers(20)

    assert load.failures == []
    assert set(load.bodies) == {b"1", b"2"}


def test_a_crash_while_the_new_release_is_broken(
    serve: Callable[..., Server], tmp_path: Path
) -> None:
    """With no worker left and nothing that boots, the server goes on trying until it can."""
    releases.deploy(tmp_path, releases.good("sync", "1"))
    server = serve("release:app", "-k", "sync", "-w", "1")
    (worker,) = server.wait_workers(1)
    releases.deploy(tmp_path, releases.broken("sync")["raises on import"])
    mark = server.mark()
    server.signal_worker(worker, signal.SIGKILL)
    server.wait_log("this release is broken", mark)
    releases.deploy(tmp_path, releases.good("sync", "2"))
    server.wait_replaced([worker])
    with Load(server.port, {"raw-fresh": 1}) as load:
        load.wait_answers(5)
    assert set(load.bodies) == {b"2"}
