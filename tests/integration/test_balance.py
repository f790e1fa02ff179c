"""Kept connections spread evenly over the workers that share a listener."""

from __future__ import annotations

import collections
import contextlib
import socket
from collections.abc import Callable

import pytest

from integration.load import read_response
from integration.server import APPS, Server


@pytest.mark.slow
@pytest.mark.parametrize("loop", ["uvloop", "asyncio"])
def test_two_hundred_connections_over_four_async_workers(
    serve: Callable[..., Server], loop: str
) -> None:
    if loop == "uvloop":
        pytest.importorskip("uvloop")
    server = serve(f"{APPS / 'asgi_app.py'}:app", "-w", "4", "--loop", loop, ready=4)
    counts: collections.Counter[bytes] = collections.Counter()
    with contextlib.ExitStack() as stack:
        for _ in range(200):
            client = stack.enter_context(
                socket.create_connection(("127.0.0.1", server.port), timeout=30)
            )
            # The answer says that a worker has taken this one, before the next is opened.
            client.sendall(b"GET /pid HTTP/1.1\r\nHost: localhost\r\n\r\n")
            counts[read_response(client)[1]] += 1
    assert len(counts) == 4
    assert max(counts.values()) - min(counts.values()) <= 2, counts
