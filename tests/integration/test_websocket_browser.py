"""A page in headless Chromium: echo, close by either side, and a reload of the server meanwhile."""

from __future__ import annotations

import signal
from collections.abc import Callable

import pytest

from integration.browser import Browser
from integration.server import APPS, Server

pytestmark = pytest.mark.slow

Serve = Callable[..., Server]


def test_a_page(serve: Serve, browser: Browser) -> None:
    server = serve(f"{APPS / 'websocket_app.py'}:app", "-w", "2", ready=2)
    browser.open(f"{server.url}/page")
    assert server.wait_log(r"^the page says: (.*)$", deadline_s=60)[1] == "connected"
    old = server.worker_pids()
    since = server.mark()
    server.signal(signal.SIGHUP)
    said = server.wait_log(r"^the page says: (.*)$", since, deadline_s=60)
    assert said[1] == "passed"
    server.wait_replaced(old)
