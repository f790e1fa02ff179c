"""The accept queue of one listener, as a worker sees it.

A client that sends one request per connection makes us pay for accept(2) with each request. So an
`AcceptQueue` does once for its listener what `socket.accept` does for each connection, and knows
our own address of the connections, which saves a getsockname(2) for each.
"""

from __future__ import annotations

import socket
from typing import Any

# getsockopt options of ip(7) and ipv6(7), for which Python has no names.
_IP_TRANSPARENT = 19
_IPV6_TRANSPARENT = 75


class AcceptQueue:
    """Accepts the connections of one listener.

    listener  its socket, in non-blocking mode

    socket  the same
    local   our address in all its connections, as getsockname(2) returns it; None if it differs
            from connection to connection
    """

    def __init__(self, listener: socket.socket) -> None:
        self.socket = listener
        self.local = _local_address(listener)
        self._family = int(listener.family)
        self._type = int(listener.type)
        self._proto = listener.proto
        # `socket.socket` makes an enum member each time that its family or type is read, as
        # `socket.accept` and uvloop do. In all, this takes as long as accept(2). All connections of
        # a listener have the same ones, so their class may have them as plain attributes.
        attributes = {"family": listener.family, "type": listener.type, "__slots__": ()}
        self._class: Any = type("AcceptedSocket", (socket.socket,), attributes)
        # The method that `socket.accept` itself calls: it returns a descriptor and an address.
        self._accept: Any = listener._accept  # type: ignore[attr-defined]

    def accept(self) -> tuple[socket.socket, Any]:
        """Accept a connection. Returns its socket, and the client's address.

        Raises OSError, and BlockingIOError if none is queued.
        """
        fd, peer = self._accept()
        return self._class(self._family, self._type, self._proto, fd), peer


def _local_address(listener: socket.socket) -> Any:
    address = listener.getsockname()
    if listener.family == socket.AF_UNIX:
        return address
    if listener.family == socket.AF_INET:
        wildcard, level, option = "0.0.0.0", socket.SOL_IP, _IP_TRANSPARENT  # noqa: S104
    elif listener.family == socket.AF_INET6:
        wildcard, level, option = "::", socket.IPPROTO_IPV6, _IPV6_TRANSPARENT
    else:
        return None
    # A transparent proxy's listener (systemd's Transparent=) gets connections to any address.
    if address[0] == wildcard or listener.getsockopt(level, option):
        return None
    return address
