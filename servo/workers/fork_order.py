"""An order to a mold: the data and the descriptors of a worker to fork.

The arbiter sends an order as one datagram. The descriptors travel with it as SCM_RIGHTS (unix(7)):
the kernel opens the same files in the mold.
"""

from __future__ import annotations

import logging
import os
import pickle
import socket
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

    from servo.ipc.channel import Channel
    from servo.net.address import Address
    from servo.net.listeners import Listener

log = logging.getLogger("servo.error")

# A datagram must fit the socket's buffer, which has 208 KiB.
MAX_ORDER_BYTES = 1 << 17
# The kernel allows this many descriptors in a datagram (SCM_MAX_FD).
MAX_FDS = 253


@dataclass(frozen=True, slots=True)
class ForkOrder:
    """The data of a worker for a mold to fork; see WorkerContext.

    serial           the worker's number, never reused
    slot             the worker's place, 1 to N
    row_index        the worker's row of the scoreboard
    kept             the attributes that the pre_fork hook has set: name -> pickled value
    listeners        address, name, requested address and label of each listener
    has_dump_file    whether a descriptor of a dump file comes with the order
    has_mold_socket  whether a socket for the mold that the worker may fork comes with the order

    The descriptors come in this order: the worker's end of its channel, its dump file, the mold's
    socket, its listeners.
    """

    serial: int
    slot: int
    row_index: int
    kept: dict[str, bytes]
    listeners: list[tuple[Address, str, Address, str]]
    has_dump_file: bool
    has_mold_socket: bool = False

    def send(
        self,
        sock: socket.socket,
        channel: Channel,
        dump_fd: int,
        listeners: list[Listener],
        mold_fd: int = -1,
    ) -> None:
        """Send the order to a mold.

        sock       a SOCK_SEQPACKET socket
        channel    the worker's end of its channel
        dump_fd    its dump file, or -1
        listeners  the sockets of `self.listeners`, in the same order
        mold_fd    the socket for the mold that the worker may fork, or -1

        Raises OSError, and ValueError if the order is too long or a listener is closed.
        """
        # Not the object itself: after an upgrade the mold may be of another version of Servo.
        data = pickle.dumps({each.name: getattr(self, each.name) for each in fields(self)})
        if len(data) > MAX_ORDER_BYTES:
            raise ValueError("the attributes that the pre_fork hook has set are too long")
        fds = [channel.fileno(), *((dump_fd,) if self.has_dump_file else ())]
        fds += (mold_fd,) if self.has_mold_socket else ()
        fds += [listener.fileno() for listener in listeners]
        if min(fds) < 0:
            raise ValueError("a listener is closed")
        socket.send_fds(sock, [data], fds)


def receive_order(sock: socket.socket) -> tuple[ForkOrder, list[int]] | None:
    """Wait for the next order. Returns it with its descriptors; None at the end of the stream.

    If this process has too few free descriptors, some are missing: `check_fds` checks this.
    """
    data, fds, _, _ = socket.recv_fds(sock, MAX_ORDER_BYTES, MAX_FDS)
    for fd in fds:
        os.set_inheritable(fd, False)  # Python 3.11's recv_fds drops MSG_CMSG_CLOEXEC
    if not data:
        return None
    values = pickle.loads(data)  # noqa: S301  from the arbiter, which forked this process
    known = {each.name for each in fields(ForkOrder)}
    return ForkOrder(**{name: value for name, value in values.items() if name in known}), fds


def check_fds(order: ForkOrder, fds: list[int]) -> None:
    """Raise OSError if descriptors of an order are missing."""
    wanted = 1 + order.has_dump_file + order.has_mold_socket + len(order.listeners)
    if len(fds) != wanted:
        for fd in fds:
            os.close(fd)
        fds.clear()
        raise OSError("the mold has no free descriptors (ulimit -n)")


def pickle_attributes(values: dict[str, Any]) -> dict[str, bytes]:
    """Pickle the attributes of a pre_fork hook. Log and leave out those that can't be pickled."""
    lost = "The pre_fork hook's worker.%s can't be passed on to a mold: %s; set it in post_fork"
    return _attempt(pickle.dumps, values, lost)


def unpickle_attributes(values: dict[str, bytes]) -> dict[str, Any]:
    """Unpickle the attributes. Log and leave out those that raise an error."""
    lost = "The pre_fork hook's worker.%s can't be unpickled in the worker: %s; set it in post_fork"
    return _attempt(pickle.loads, values, lost)


def _attempt(convert: Callable[[Any], Any], values: dict[str, Any], lost: str) -> dict[str, Any]:
    converted = {}
    for name, value in values.items():
        try:
            converted[name] = convert(value)
        except Exception as error:  # noqa: BLE001, PERF203  runs code of the value's class
            log.warning(lost, name, error)
    return converted
