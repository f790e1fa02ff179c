"""`--reload`: a change is served soon, and a mistake in it is waited out."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import requests

from integration import releases
from integration.conftest import CLASSES
from integration.server import Server, wait_for

pytestmark = pytest.mark.slow


def answer(server: Server) -> str:
    try:
        return requests.get(f"{server.url}/", timeout=30).text
    except requests.ConnectionError:
        return ""  # a development server may have no worker while it waits for a fix


def test_change_mistake_and_fix(
    serve: Callable[..., Server], tmp_path: Path, worker_class: str
) -> None:
    pytest.importorskip("watchfiles")
    releases.deploy(tmp_path, releases.good(worker_class, "1"))
    server = serve("release:app", *CLASSES[worker_class][1], "--reload")
    assert answer(server) == "1"

    releases.deploy(tmp_path, releases.good(worker_class, "2"))
    wait_for(lambda: answer(server) == "2", "the changed app")

    mark = server.mark()
    releases.deploy(tmp_path, releases.BROKEN["syntax error"])
    server.wait_log("SyntaxError", mark)
    assert not server.exited()

    releases.deploy(tmp_path, releases.good(worker_class, "3"))
    wait_for(lambda: answer(server) == "3", "the mended app")


def test_mistake_at_the_start(serve: Callable[..., Server], tmp_path: Path) -> None:
    """A development server that can't boot waits for the fix too."""
    pytest.importorskip("watchfiles")
    releases.deploy(tmp_path, releases.BROKEN["syntax error"])
    server = serve("release:app", *CLASSES["sync"][1], "--reload", ready=0)
    server.wait_log("SyntaxError")
    releases.deploy(tmp_path, releases.good("sync", "1"))
    wait_for(lambda: answer(server) == "1", "the mended app")


def test_extra_file(serve: Callable[..., Server], tmp_path: Path) -> None:
    pytest.importorskip("watchfiles")
    releases.deploy(tmp_path, releases.good("sync", "1"))
    template = tmp_path / "page.html"
    template.write_text("1")
    server = serve("release:app", "-k", "sync", "--reload", "--reload-extra-file", str(template))
    old = server.wait_workers(1)
    template.write_text("2")
    server.wait_replaced(old)
