"""A page in headless Chromium: echo, close by either side, and a reload of the server meanwhile."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from integration.server import APPS, Server

pytestmark = pytest.mark.slow

Serve = Callable[..., Server]
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--no-proxy-server",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    # Without it the browser ends once the page has loaded.
    "--remote-debugging-port=0",
)


@pytest.fixture
def browse(tmp_path: Path) -> Iterator[Callable[[str], None]]:
    """Open a page in a browser of its own, which ends with the test."""
    if CHROMIUM is None:
        pytest.skip("no Chromium here (Debian: apt-get install chromium)")
    browsers: list[subprocess.Popen[bytes]] = []

    def start(url: str) -> None:
        profile = tmp_path / "profile"
        log = (tmp_path / "chromium.log").open("wb")
        browsers.append(
            subprocess.Popen(
                [CHROMIUM, *FLAGS, f"--user-data-dir={profile}", url],
                env={**os.environ, "HOME": str(tmp_path)},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        )
        log.close()

    yield start
    for browser in browsers:
        os.killpg(browser.pid, signal.SIGKILL)
        browser.wait(30)
        print((tmp_path / "chromium.log").read_text(errors="replace")[-3000:])


def test_a_page(serve: Serve, browse: Callable[[str], None]) -> None:
    server = serve(f"{APPS / 'websocket_app.py'}:app", "-w", "2", ready=2)
    browse(f"{server.url}/page")
    assert server.wait_log(r"^the page says: (.*)$", deadline_s=60)[1] == "connected"
    old = server.worker_pids()
    since = server.mark()
    server.signal(signal.SIGHUP)
    said = server.wait_log(r"^the page says: (.*)$", since, deadline_s=60)
    assert said[1] == "passed"
    server.wait_replaced(old)
