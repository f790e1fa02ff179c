"""A count of bytes that several connections share."""

from __future__ import annotations


class Unsent:
    """Body bytes that were handed over, and wait for clients.

    bytes  how many, of all connections that were given this object
    """

    __slots__ = ("bytes",)

    def __init__(self) -> None:
        self.bytes = 0
