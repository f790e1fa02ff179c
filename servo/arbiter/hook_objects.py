"""The `server` and `worker` arguments of hooks in the arbiter, with gunicorn's names.

The hooks of a configuration file written for gunicorn read `server.WORKERS`, `worker.age`,
`worker.cfg` and the like. These objects answer with Servo's own state.
"""

from __future__ import annotations

import logging
import os
from typing import TYPE_CHECKING, Any, Protocol

from servo.errors import ClusterError
from servo.workers.request.hooks import HookApp, HookObject, HookSocket, address_of

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from servo.net.listeners import Listener
    from servo.settings.sources import Settings


class ArbiterHookWorker(HookObject):
    """The `worker` argument of hooks in the arbiter.

    serial  the number of workers forked so far, including this one; gunicorn calls it `age`
    slot    the worker's place, 1 to N
    cfg     the settings of the worker's generation

    pid     its process id; None before the fork
    alive   False after the worker was reaped
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
        self.send_by: Callable[[int, Any, str], bool] | None = None
        self._own = frozenset((*vars(self), "_own"))

    def kept(self) -> dict[str, Any]:
        """The attributes that a hook has added. The hook object in the worker gets them, too."""
        return {name: value for name, value in vars(self).items() if name not in self._own}

    def __repr__(self) -> str:
        return f"<Worker {self.slot} pid={self.pid}>"

    def send(self, message: Any, topic: str = "") -> bool:
        """Send the worker a message for its `cluster.on_message` handlers. In the arbiter only.

        message  any JSON value
        topic    the topic of the handler, or ""

        Returns False if the worker has ended, or if too many messages wait for it. Raises TypeError
        if `message` is not a JSON value, and ValueError if it is too long.
        """
        if self.send_by is None:
            raise ClusterError("this worker is not forked yet")
        return self.send_by(self.age, message, topic)


class RunningServer(Protocol):
    """The part of the arbiter that `HookServer` uses."""

    @property
    def settings(self) -> Settings:
        """The settings of the current generation."""
        ...

    @property
    def listeners(self) -> Sequence[Listener]:
        """The listening sockets."""
        ...

    @property
    def target(self) -> int:
        """The number of workers that the server should have."""
        ...

    def hook_workers(self) -> dict[int, ArbiterHookWorker]:
        """The workers that were forked and not yet released, by pid."""
        ...

    def workers_by_slot(self) -> dict[int, ArbiterHookWorker]:
        """Slot -> the worker that gets messages to this slot."""
        ...

    def broadcast(self, message: Any, topic: str) -> int:
        """Send a message to all workers. Returns the number of workers."""
        ...


class HookServer(HookObject):
    """The `server` argument of hooks, with the names of gunicorn's arbiter.

    settings   the settings at the start

    running    the arbiter; None before it is made, as in the `on_starting` hook
    """

    _what = "server"

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self.running: RunningServer | None = None
        self.pid = os.getpid()
        self.log = logging.getLogger("servo.error")
        # gunicorn sets these values unless another arbiter has forked this one, on SIGUSR2.
        self.master_pid = 0
        self.master_name = "Master"

    def __repr__(self) -> str:
        return f"<Server pid={self.pid}>"

    @property
    def cfg(self) -> Settings:
        """The current settings."""
        return self._settings if self.running is None else self.running.settings

    @property
    def app(self) -> HookApp:
        """An object whose `cfg` is the settings. The arbiter imports no application."""
        return HookApp(self.cfg, in_worker=False)

    @property
    def timeout(self) -> float:
        """Seconds without a heartbeat after which a worker is replaced."""
        return float(self.cfg.timeout)

    @property
    def proc_name(self) -> str | None:
        """The setting `proc_name`."""
        name: str | None = self.cfg.proc_name
        return name

    @property
    def worker_age(self) -> int:
        """The number of workers that were forked so far."""
        return max((worker.age for worker in self.WORKERS.values()), default=0)

    @property
    def address(self) -> list[tuple[str, int] | str]:
        """The addresses that the server listens on: (host, port), or the path of a Unix socket."""
        if self.running is None:
            return self.cfg.address
        return [address_of(listener) for listener in self.running.listeners]

    @property
    def LISTENERS(self) -> list[HookSocket]:  # noqa: N802  gunicorn's name
        """The listening sockets; none before they are bound."""
        if self.running is None:
            return []
        return [HookSocket(listener) for listener in self.running.listeners]

    @property
    def num_workers(self) -> int:
        """The number of workers that the server should have."""
        return self.cfg.worker_count if self.running is None else self.running.target

    @property
    def WORKERS(self) -> dict[int, ArbiterHookWorker]:  # noqa: N802  gunicorn's name
        """The workers that were forked and not yet reaped, by pid."""
        return {} if self.running is None else self.running.hook_workers()

    @property
    def workers(self) -> dict[int, ArbiterHookWorker]:
        """Slot -> the worker that gets messages to this slot: the ready one if it has two."""
        return {} if self.running is None else self.running.workers_by_slot()

    def broadcast(self, message: Any, topic: str = "") -> int:
        """Send a message to all workers. Returns their number. See `ArbiterHookWorker.send`."""
        if self.running is None:
            raise ClusterError("no worker is forked yet")
        return self.running.broadcast(message, topic)
