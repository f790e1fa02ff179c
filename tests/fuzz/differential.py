"""Invariant: httptools and h11 agree on any bytes: they find the same requests, with the same
fields, bodies and trailers, and refuse with the same status at the same place."""

from __future__ import annotations

from fuzz.harness import Player, cuts, limits_and_stream


def target(data: bytes) -> None:
    if len(data) < 4:
        return
    limits, stream = limits_and_stream(data)
    first, second = (Player(parser, limits).play([stream]) for parser in ("httptools", "h11"))
    assert first == second
    first, second = (Player(parser, limits).play(cuts(data)) for parser in ("httptools", "h11"))
    assert first == second
