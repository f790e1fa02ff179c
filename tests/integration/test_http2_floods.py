"""Each flood over HTTP/2 is ended, leaves other clients served, and costs little memory."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from h2frames import (
    ENHANCE_YOUR_CALM,
)

from integration.conftest import Serve
from integration.h2_client import H2Load
from integration.h2_floods import FLOODS, Flood
from integration.load import Load
from integration.server import APPS, Server, wait_for

pytestmark = pytest.mark.slow

ASGI = (f"{APPS / 'asgi_app.py'}:app", "-k", "async", "--http2-cleartext", "prior-knowledge")


def memory_kb(pid: int) -> int:
    found = re.search(r"^VmRSS:\s+(\d+)", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    assert found is not None
    return int(found[1])


def assert_no_noise(server: Server) -> None:
    log = server.log()
    assert "Traceback" not in log
    assert " [ERROR] " not in log
    assert "was never" not in log


@pytest.mark.parametrize(("before", "make"), FLOODS.values(), ids=FLOODS)
def test_a_flood_leaves_others_served(
    serve: Serve, before: bytes, make: Callable[[int], bytes]
) -> None:
    server = serve(*ASGI)
    [pid] = server.worker_pids()
    with H2Load(server.port, connections=1), Load(server.port, {"raw-kept": 1}) as warm:
        warm.wait_answers(200)
    at_rest = memory_kb(pid)
    with (
        Flood(server.port, before, make) as flood,
        H2Load(server.port, connections=2) as load,
        Load(server.port, {"raw-kept": 1, "raw-fresh": 1}) as http1,
    ):
        wait_for(lambda: len(flood.codes) >= 2, "the flood's end, twice")
        load.wait_answers(100)
        http1.wait_answers(100)
        grown = memory_kb(pid) - at_rest
    assert flood.errors == []
    assert set(flood.codes) == {ENHANCE_YOUR_CALM}
    assert load.failures == []
    assert http1.failures == []
    assert grown < 30_000
    assert server.worker_pids() == [pid]
    assert_no_noise(server)
