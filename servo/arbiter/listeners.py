"""The arbiter's listening sockets, and which of them each worker inherits.

Usually all workers accept from the same sockets. With `reuse_port` each slot has TCP sockets of its
own, and the kernel spreads connections over them. Connections wait in a socket's queue, and would
be lost with it. So a slot's sockets outlive its workers: each worker of the slot inherits them from
the arbiter.
"""

from __future__ import annotations

import logging
import os
from typing import TYPE_CHECKING

from servo.net.address import TCPAddress
from servo.net.listeners import bind_all

if TYPE_CHECKING:
    from servo.net.listeners import Listener
    from servo.settings.sources import Settings

log = logging.getLogger("servo.error")


class Sockets:
    """All listening sockets of the application. Binds them.

    settings  what to bind, and whether each slot has sockets of its own (`reuse_port`)
    secure    they are for TLS, so their names begin with https://

    listeners  the sockets that were bound first; those of slot 1

    Raises BindError and ConfigError.
    """

    def __init__(self, settings: Settings, secure: bool = False) -> None:
        self.listeners: list[Listener] = bind_all(settings)
        for listener in self.listeners if secure else ():
            listener.name = listener.name.replace("http://", "https://", 1)
        self._own_queues: bool = settings.reuse_port
        self._backlog: int = settings.backlog
        # The own sockets of each slot but 1.
        self._siblings: dict[int, list[Listener]] = {}
        self._lost: set[Listener] = set()

    def for_slot(self, slot: int) -> list[Listener]:
        """The listeners of a worker in this slot, bound if need be. Raises BindError."""
        if not self._own_queues or slot == 1:
            return self.listeners
        if slot not in self._siblings:
            self._siblings[slot] = [listener.sibling(self._backlog) for listener in self._owned()]
        shared = [listener for listener in self.listeners if listener not in self._owned()]
        return self._siblings[slot] + shared

    def others(self, slot: int) -> list[Listener]:
        """The listeners of other slots, which a worker in this slot closes."""
        mine = self.for_slot(slot)
        every = [*self.listeners, *(each for own in self._siblings.values() for each in own)]
        return [listener for listener in every if listener not in mine]

    def close_slot(self, slot: int) -> None:
        """Close the own listeners of a slot. Its last worker still accepts what is queued."""
        for listener in self._siblings.pop(slot, []):
            listener.close()

    def look_after(self) -> None:
        """Log a warning for each socket file that was removed. Called about once a second."""
        lost = {each for each in self.listeners if each.is_lost}
        for listener in lost - self._lost:
            # The file is not made anew: it may have been removed on purpose, or replaced by another
            # server's.
            log.warning(
                "The socket file of %s was removed or replaced, so no new client reaches this "
                "server through it; restart the server to make it anew",
                listener.name,
            )
        self._lost = lost

    def take_ownership(self) -> None:
        """Let this process remove the socket files at its end. A daemon did not bind them."""
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
