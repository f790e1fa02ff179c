"""The arbiter's copies of the listening sockets, and which worker inherits which."""

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
    """All listeners. With reuse_port each slot has TCP ones of its own, which its workers inherit
    from one another, as what waits in their queues would be lost with them."""

    def __init__(self, settings: Settings, secure: bool = False) -> None:
        """Bind everything. `secure`: for TLS, as their names then say. Raises BindError or
        ConfigError."""
        self.listeners: list[Listener] = bind_all(settings)
        for listener in self.listeners if secure else ():
            listener.name = listener.name.replace("http://", "https://", 1)
        self._own_queues: bool = settings.reuse_port
        self._backlog: int = settings.backlog
        # Slot 1 has the ones that were bound first.
        self._siblings: dict[int, list[Listener]] = {}
        self._lost: set[Listener] = set()

    def for_slot(self, slot: int) -> list[Listener]:
        """The listeners of a worker in this slot. Raises BindError."""
        if not self._own_queues or slot == 1:
            return self.listeners
        if slot not in self._siblings:
            self._siblings[slot] = [listener.sibling(self._backlog) for listener in self._owned()]
        shared = [listener for listener in self.listeners if listener not in self._owned()]
        return self._siblings[slot] + shared

    def others(self, slot: int) -> list[Listener]:
        """The listeners that a worker in this slot has no business with."""
        mine = self.for_slot(slot)
        every = [*self.listeners, *(each for own in self._siblings.values() for each in own)]
        return [listener for listener in every if listener not in mine]

    def close_slot(self, slot: int) -> None:
        """Give up a slot's own listeners; its worker empties their queues."""
        for listener in self._siblings.pop(slot, []):
            listener.close()

    def look_after(self) -> None:
        """To be called about once a second: warn, once, of a socket file that is gone."""
        lost = {each for each in self.listeners if each.is_lost}
        for listener in lost - self._lost:
            # Not made anew: it may have been removed on purpose, or another server's lies there.
            log.warning(
                "The socket file of %s was removed or replaced: no new client reaches this server "
                "by it; restart the server to have it back",
                listener.name,
            )
        self._lost = lost

    def take_ownership(self) -> None:
        """This process, not the one that bound, is to remove the socket files."""
        for listener in self.listeners:
            listener.owner_pid = os.getpid()

    def close(self) -> None:
        """Close all, and remove the socket files."""
        for slot in list(self._siblings):
            self.close_slot(slot)
        for listener in self.listeners:
            listener.close()

    def _owned(self) -> list[Listener]:
        return [each for each in self.listeners if isinstance(each.requested, TCPAddress)]
