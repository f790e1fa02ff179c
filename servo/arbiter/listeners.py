"""The arbiter's listening sockets, and each worker's share of them.

Usually all workers accept from the same sockets. With `reuse_port` each slot has its own TCP
sockets, and the kernel spreads connections over them. Closing such a socket would lose the
connections in its queue. So the arbiter keeps the sockets of each slot, and all successive workers
of the slot inherit them.
"""

from __future__ import annotations

import logging
import os
from typing import TYPE_CHECKING, Any

from servo.net.address import TCPAddress
from servo.net.listeners import Listener, bind_all
from servo.net.stored_sockets import StoredSockets

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from servo.settings.sources import Settings

log = logging.getLogger("servo.error")


class Sockets:
    """All listening sockets of the application. The constructor binds them.

    settings  has the addresses, and whether each slot has its own sockets (`reuse_port`)
    secure    whether the sockets are for TLS, so that their names begin with https://

    listeners  the sockets of slot 1, which are bound first
    forgotten  names of sockets that systemd kept during a crash, but that are no longer needed

    Raises BindError and ConfigError.
    """

    def __init__(self, settings: Settings, secure: bool = False) -> None:
        stored = StoredSockets()
        self.listeners: list[Listener] = bind_all(settings, stored=stored)
        self.forgotten = stored.forgotten
        for listener in self.listeners if secure else ():
            listener.name = listener.name.replace("http://", "https://", 1)
        self._own_queues: bool = settings.reuse_port
        self._backlog: int = settings.backlog
        # The sockets of each slot except 1.
        self._siblings: dict[int, list[Listener]] = {}
        self._lost: set[Listener] = set()

    def to_state(self, pass_on: Callable[[int], int]) -> list[dict[str, Any]]:
        """Return the listeners as JSON values, for `from_state`.

        pass_on  keeps a descriptor open for the next program, and returns it
        """
        every = [(0, self.listeners), *self._siblings.items()]
        return [
            {**listener.to_state(pass_on), "slot": slot, "own_queues": self._own_queues}
            for slot, listeners in every
            for listener in listeners
        ]

    @classmethod
    def from_state(
        cls, state: Iterable[Mapping[str, Any]], take: Callable[[int], int], backlog: int
    ) -> Sockets:
        """Take over the sockets of this process's previous program, after an upgrade.

        state    the result of that program's `to_state`
        take     claims a descriptor from the previous program, and returns it
        backlog  the length of the accept queue, for sockets that are opened later

        Raises what `Listener.from_state` raises.
        """
        sockets = cls.__new__(cls)
        sockets.listeners = []
        sockets.forgotten = []
        sockets._own_queues = False
        sockets._backlog = backlog
        sockets._siblings = {}
        sockets._lost = set()
        for each in state:
            listener = Listener.from_state(each, take)
            slot = int(each["slot"])
            sockets._own_queues = bool(each["own_queues"])
            of_slot = sockets._siblings.setdefault(slot, []) if slot else sockets.listeners
            of_slot.append(listener)
        return sockets

    def for_slot(self, slot: int) -> list[Listener]:
        """The listeners for a worker in this slot. Binds missing ones. Raises BindError."""
        if not self._own_queues or slot == 1:
            return self.listeners
        if slot not in self._siblings:
            self._siblings[slot] = [listener.sibling(self._backlog) for listener in self._owned()]
        shared = [listener for listener in self.listeners if listener not in self._owned()]
        return self._siblings[slot] + shared

    def addresses(self) -> list[Any]:
        """The addresses of the listeners, as `getsockname` returns them."""
        return [listener.socket.getsockname() for listener in self.listeners]

    def others(self, slot: int) -> list[Listener]:
        """The listeners of other slots: a worker in this slot closes its copies of them."""
        mine = self.for_slot(slot)
        every = [*self.listeners, *(each for own in self._siblings.values() for each in own)]
        return [listener for listener in every if listener not in mine]

    def close_slot(self, slot: int) -> None:
        """Close the listeners of a slot. Its last worker still accepts the queued connections."""
        for listener in self._siblings.pop(slot, []):
            listener.close()

    def look_after(self) -> None:
        """Log a warning for each socket file that was removed. Called about once a second."""
        lost = {each for each in self.listeners if each.is_lost}
        for listener in lost - self._lost:
            # Don't make the file again: somebody may have removed it on purpose, or another server
            # may have replaced it.
            log.warning(
                "The socket file of %s was removed or replaced, so new clients can't reach this "
                "server through it; restart the server to make the file again",
                listener.name,
            )
        self._lost = lost

    def take_ownership(self) -> None:
        """Let this process remove the socket files when it ends, although its parent bound them."""
        for listener in self.listeners:
            listener.owner_pid = os.getpid()

    def close(self) -> None:
        """Close all listeners, and remove their socket files."""
        for slot in list(self._siblings):
            self.close_slot(slot)
        for listener in self.listeners:
            listener.close()

    def _owned(self) -> list[Listener]:
        return [each for each in self.listeners if isinstance(each.requested, TCPAddress)]
