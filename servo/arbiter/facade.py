"""What server hooks get as `server` and `worker`: the names that gunicorn's hooks use."""

from __future__ import annotations

import logging
import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from servo.arbiter.loop import Arbiter
    from servo.settings.sources import Settings


class WorkerFacade:
    """A worker, as the arbiter knows it.

    age    how many workers were forked before: the serial
    slot   what an operator names
    pid    None before the fork
    """

    def __init__(self, serial: int, slot: int, cfg: Settings) -> None:
        self.age = serial
        self.slot = slot
        self.cfg = cfg
        self.pid: int | None = None
        self.log = logging.getLogger("servo.error")

    def __repr__(self) -> str:
        return f"<Worker {self.slot} pid={self.pid}>"


class ServerFacade:
    """The server: `log`, `cfg`, `pid`, `address`, `num_workers` and `WORKERS` (pid -> worker)."""

    def __init__(self, arbiter: Arbiter) -> None:
        self._arbiter = arbiter
        self.pid = os.getpid()
        self.log = logging.getLogger("servo.error")

    def __repr__(self) -> str:
        return f"<Server pid={self.pid}>"

    @property
    def cfg(self) -> Settings:
        """The current settings."""
        return self._arbiter.settings

    @property
    def address(self) -> list[str]:
        """What the server listens on."""
        return [str(listener.address) for listener in self._arbiter.sockets.listeners]

    @property
    def num_workers(self) -> int:
        """How many workers are asked for."""
        return self._arbiter.supervisor.target

    @property
    def WORKERS(self) -> dict[int, WorkerFacade]:  # noqa: N802  gunicorn's name
        """The workers that were forked and not yet reaped, by pid."""
        return self._arbiter.children.facades()
