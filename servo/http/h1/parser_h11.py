"""A pure-Python parser of heads: h11. Tests also use it to check llhttp's results."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import h11

from servo.http.errors import ProtocolError
from servo.http.headers import STRAY

if TYPE_CHECKING:
    from servo.http.events import Headers

_FOLD = re.compile(rb"\r\n[ \t]")
# h11 changes these values ("5, 5" to "5", "Chunked" to "chunked"), but `headers` must check them as
# they were sent.
_NORMALISED = re.compile(rb"\r\n(content-length|transfer-encoding):[ \t]*([^\r]*)", re.IGNORECASE)


class H11Fields:
    """Parses a whole head into its fields. One object serves one connection.

    Returns the same as `HttptoolsFields`.
    """

    __slots__ = ()

    def __call__(self, head: bytes) -> tuple[Headers, dict[bytes, bytes]]:
        # Refuse control characters in values, lines that end in a bare LF, and folded lines: h11
        # accepts them for the sake of old clients.
        if STRAY.search(head):
            raise ProtocolError(400, "control character, bare CR or bare LF in the head")
        if _FOLD.search(head):
            raise ProtocolError(400, "folded header line")
        connection = h11.Connection(h11.SERVER, max_incomplete_event_size=len(head))
        connection.receive_data(head)
        try:
            event = connection.next_event()
        except h11.RemoteProtocolError as error:
            # Don't log h11's message: it may quote bytes of the client.
            raise ProtocolError(400, "malformed head (h11)") from error
        if not isinstance(event, h11.Request):
            raise ProtocolError(400, "incomplete head (h11)")
        fields = [(bytes(name), bytes(value)) for name, value in event.headers]
        if len(fields) != head.count(b"\r\n") - 2:
            raise ProtocolError(400, "repeated Content-Length")
        sent = {match[1].lower(): match[2] for match in _NORMALISED.finditer(head)}
        found = [(name, sent.get(name, value)) for name, value in fields]
        return found, dict(found)

    def forget(self) -> None:
        """Do nothing: no fields are kept."""

    def renew(self) -> None:
        """Do nothing: every head gets a new h11 connection."""
