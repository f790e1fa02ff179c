"""The pure-Python parser of field lines: h11, as a second opinion on what llhttp accepts."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import h11

from servo.http.errors import ProtocolError
from servo.http.headers import STRAY

if TYPE_CHECKING:
    from servo.http.events import Headers

_FOLD = re.compile(rb"\r\n[ \t]")
# h11 hands these out in a normal form ("5, 5" as "5", "Chunked" as "chunked"). The rules want them
# as they were sent.
_NORMALISED = re.compile(rb"\r\n(content-length|transfer-encoding):[ \t]*([^\r]*)", re.IGNORECASE)


class H11Fields:
    """Called with a whole head, returns its fields. One object serves one connection."""

    __slots__ = ()

    def __call__(self, head: bytes) -> Headers:
        # h11 is lenient by design where old clients need it: it lets pass control characters in
        # values, bare LF as a line's end, and folds.
        if STRAY.search(head):
            raise ProtocolError(400, "control character, bare CR or bare LF in the head")
        if _FOLD.search(head):
            raise ProtocolError(400, "folded header line")
        connection = h11.Connection(h11.SERVER, max_incomplete_event_size=len(head))
        connection.receive_data(head)
        try:
            event = connection.next_event()
        except h11.RemoteProtocolError as error:
            # Its message may quote the client's bytes, so it is not passed on.
            raise ProtocolError(400, "malformed head (h11)") from error
        if not isinstance(event, h11.Request):
            raise ProtocolError(400, "incomplete head (h11)")
        fields = [(bytes(name), bytes(value)) for name, value in event.headers]
        if len(fields) != head.count(b"\r\n") - 2:
            raise ProtocolError(400, "repeated Content-Length")
        sent = {match[1].lower(): match[2] for match in _NORMALISED.finditer(head)}
        return [(name, sent.get(name, value)) for name, value in fields]

    def renew(self) -> None:
        """Nothing to forget: every head gets a connection of its own."""
