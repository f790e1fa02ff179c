"""A hostile client's bytes are let go at once: the garbage collector runs seldom."""

from __future__ import annotations

import gc

import pytest

from servo.http.events import Refused
from servo.http.h1.connection import PARSERS, H1Connection
from servo.http.limits import Limits


@pytest.mark.parametrize("parser", PARSERS)
def test_a_refusal_leaves_nothing_to_the_collector(parser):
    """Its traceback would hold frames, with all that was read, until the collector runs."""

    def refuse(raw: bytes) -> None:
        connection = H1Connection(Limits(), parser=parser)
        event = connection.receive_data(raw)
        while not isinstance(event, Refused):
            event = connection.next_event() or connection.receive_data(b"x")
        connection.refuse(event)

    gc.collect()
    gc.disable()
    try:
        for raw in (
            # Not what h11 itself refuses: it leaves a cycle of its own.
            b"GET /\x01 HTTP/1.1\r\nHost: a\r\n\r\n",
            b"GET / HTTP/1.1\r\nHost: a b\r\n\r\n",
            b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nx",
        ):
            refuse(raw)
            assert gc.collect() == 0, raw
    finally:
        gc.enable()
