"""What server hooks get as `server` and `worker`: the names that gunicorn's hooks use."""

from __future__ import annotations

import logging
import os
from typing import TYPE_CHECKING, Any

from servo.cluster import ClusterError

if TYPE_CHECKING:
    from collections.abc import Callable

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
        self.post: Callable[[int, Any, str], bool] | None = None

    def __repr__(self) -> str:
        return f"<Worker {self.slot} pid={self.pid}>"

    def send(self, message: Any, topic: str = "") -> bool:
        """Send it a message, for its `cluster.on_message` handlers. In the arbiter only.

        False: it has ended, or too many messages wait for it. Raises TypeError for what is no JSON
        value, ValueError when it is too long.
        """
        if self.post is None:
            raise ClusterError("this worker is not forked yet")
        return self.post(self.age, message, topic)


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
        if not hasattr(self._arbiter, "sockets"):
            return list(self.cfg.bind)  # the on_starting hook asks before there is anything
        return [str(listener.address) for listener in self._arbiter.sockets.listeners]

    @property
    def num_workers(self) -> int:
        """How many workers are asked for."""
        if not hasattr(self._arbiter, "supervisor"):
            return self.cfg.worker_count
        return self._arbiter.supervisor.target

    @property
    def WORKERS(self) -> dict[int, WorkerFacade]:  # noqa: N802  gunicorn's name
        """The workers that were forked and not yet reaped, by pid."""
        return self._arbiter.children.facades() if hasattr(self._arbiter, "children") else {}

    @property
    def workers(self) -> dict[int, WorkerFacade]:
        """The workers that messages go to, by slot: of two, the one that is ready."""
        return self._arbiter.post.by_slot() if hasattr(self._arbiter, "post") else {}

    def broadcast(self, message: Any, topic: str = "") -> int:
        """Send a message to all workers; to how many. As `WorkerFacade.send`."""
        return self._arbiter.post.broadcast(message, topic=topic)
