"""The pools that this process can use: set by the server, read by `servo.pools.executor`.

This module imports nothing else, because the arbiter and all workers import it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping

    from servo.pools.board import Board


class Place(NamedTuple):
    """One pool of the server; see `servo.pools.calls.Pool`."""

    name: str
    path: str
    workers: int
    queue: int
    queue_timeout: float


class Places:
    """The pools of the server.

    by_name    the pools; None outside of a server
    refusal    why this process can't use them; "" if it can
    directory  the directory of their sockets; "" if there is none
    boards     their boards; a forked process inherits those that exist
    """

    def __init__(self) -> None:
        self.by_name: dict[str, Place] | None = None
        self.refusal = ""
        self.directory = ""
        self.boards: dict[str, Board] = {}

    def refuse(self, reason: str) -> None:
        """Let `executor` raise an error in this process."""
        self.refusal = reason

    def enter(self, pools: Mapping[str, Any]) -> None:
        """Let this process use the pools of a generation.

        pools   the settings of each pool, by name
        """
        self.refusal = ""
        self.by_name = {
            name: Place(
                name,
                socket_path(self.directory, name),
                pool.workers,
                pool.queue,
                pool.queue_timeout,
            )
            for name, pool in pools.items()
        }


def socket_path(directory: str, name: str) -> str:
    """The path of a pool's socket."""
    return f"{directory}/{name}.sock"


places = Places()
