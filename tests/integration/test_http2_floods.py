"""Servo ends each flood over HTTP/2, still serves other clients, and needs little memory."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from h2frames import (
    ENHANCE_YOUR_CALM,
)

from integration.conftest import Serve
from integration.h2_client import ASGI, H2Load
from integration.h2_floods import FLOODS, Flood
from integration.load import Load
from integration.server import assert_no_noise, memory, wait_for

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(("before", "make"), FLOODS.values(), ids=FLOODS)
def test_a_flood_leaves_others_served(
    serve: Serve, before: bytes, make: Callable[[int], bytes]
) -> None:
    server = serve(*ASGI)
    [pid] = server.worker_pids()
    with H2Load(server.port, connections=1), Load(server.port, {"raw-kept": 1}) as warm:
        warm.wait_answers(200)
    at_rest = memory(pid)
    with (
        Flood(server.port, before, make) as flood,
        H2Load(server.port, connections=2) as load,
        Load(server.port, {"raw-kept": 1, "raw-fresh": 1}) as http1,
    ):
        wait_for(lambda: len(flood.codes) >= 2, "the flood's end, twice")
        load.wait_answers(100)
        http1.wait_answers(100)
        grown = memory(pid) - at_rest
    assert flood.errors == []
    assert set(flood.codes) == {ENHANCE_YOUR_CALM}
    assert load.failures == []
    assert http1.failures == []
    assert grown < 30_000_000
    assert server.worker_pids() == [pid]
    assert_no_noise(server)
