"""The pools that this process can use: set by the server, read by `servo.pools.executor`.

This module imports nothing, because the arbiter and all workers import it.
"""

from __future__ import annotations

from typing import NamedTuple


class Place(NamedTuple):
    """One pool of the server; see `servo.pools.calls.Pool`."""

    name: str
    path: str
    board: str
    workers: int
    queue: int
    queue_timeout: float


class Places:
    """The pools of the server.

    by_name   the pools; None outside of a server
    refusal   why this process can't use them; "" if it can
    """

    def __init__(self) -> None:
        self.by_name: dict[str, Place] | None = None
        self.refusal = ""


places = Places()
