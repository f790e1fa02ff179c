"""What server hooks get as `server` and `worker`: the names that gunicorn's hooks use."""

from __future__ import annotations

import logging
import os
from typing import TYPE_CHECKING, Any

from servo.cluster import ClusterError
from servo.workers.request.hooks import HookApp, HookObject, HookSocket, address_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from servo.arbiter.loop import Arbiter
    from servo.settings.sources import Settings


class WorkerFacade(HookObject):
    """A worker, as the arbiter knows it.

    age    how many workers were forked before: the serial
    slot   what an operator names
    pid    None before the fork
    alive  False once it was reaped
    """

    _what = "worker"

    def __init__(self, serial: int, slot: int, cfg: Settings) -> None:
        self.age = serial
        self.slot = slot
        self.cfg = cfg
        self.pid: int | None = None
        self.ppid = os.getpid()
        self.timeout = cfg.timeout
        self.log = logging.getLogger("servo.error")
        self.app = HookApp(cfg, in_worker=False)
        self.alive = True
        self.booted = self.aborted = False
        self.post: Callable[[int, Any, str], bool] | None = None
        self._own = frozenset((*vars(self), "_own"))

    def kept(self) -> dict[str, Any]:
        """What a hook has put here; the worker's own object gets it, too."""
        return {name: value for name, value in vars(self).items() if name not in self._own}

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


class ServerFacade(HookObject):
    """The server, with the names of gunicorn's arbiter."""

    _what = "server"

    def __init__(self, arbiter: Arbiter) -> None:
        self._arbiter = arbiter
        self.pid = os.getpid()
        self.log = logging.getLogger("servo.error")
        # What gunicorn calls a server that no other has executed: USR2 is not there yet.
        self.master_pid = 0
        self.master_name = "Master"

    def __repr__(self) -> str:
        return f"<Server pid={self.pid}>"

    @property
    def cfg(self) -> Settings:
        """The current settings."""
        return self._arbiter.settings

    @property
    def app(self) -> HookApp:
        """No application: the arbiter imports none. Its settings are in `app.cfg`."""
        return HookApp(self.cfg, in_worker=False)

    @property
    def timeout(self) -> float:
        """Seconds after which a silent worker is replaced."""
        return float(self.cfg.timeout)

    @property
    def proc_name(self) -> str | None:
        """The name that processes show, if one is set."""
        name: str | None = self.cfg.proc_name
        return name

    @property
    def worker_age(self) -> int:
        """How many workers were forked so far."""
        return max((worker.age for worker in self.WORKERS.values()), default=0)

    @property
    def address(self) -> list[tuple[str, int] | str]:
        """What the server listens on: (host, port), or the path of a Unix socket."""
        if not hasattr(self._arbiter, "sockets"):
            return self.cfg.address  # the on_starting hook asks before there is anything
        return [address_of(listener) for listener in self._arbiter.sockets.listeners]

    @property
    def LISTENERS(self) -> list[HookSocket]:  # noqa: N802  gunicorn's name
        """The listening sockets; none before they are bound."""
        if not hasattr(self._arbiter, "sockets"):
            return []
        return [HookSocket(listener) for listener in self._arbiter.sockets.listeners]

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
