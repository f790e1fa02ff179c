"""The default parser of heads: httptools, which is Node's llhttp."""

from __future__ import annotations

from typing import TYPE_CHECKING

import httptools

from servo.http.errors import ProtocolError

if TYPE_CHECKING:
    from servo.http.events import Headers


class HttptoolsFields:
    """Parses a whole head into its fields. One object serves one connection.

    llhttp takes each head for a message. It refuses control characters, bare CR and LF, folded
    lines, malformed names and framing that it knows to be wrong. It never sees a body.
    """

    __slots__ = ("_collector", "_feed")

    def __init__(self) -> None:
        self._collector = _Collector()
        self.renew()

    def __call__(self, head: bytes) -> Headers:
        fields: Headers = []
        self._collector.fields = fields
        try:
            self._feed(head)
        except httptools.HttpParserUpgrade:
            # llhttp has read the whole head, and is ready for another. `headers` decides whether
            # the upgrade counts; without it, this is a request like any other.
            pass
        except httptools.HttpParserError as error:
            raise ProtocolError(400, f"llhttp: {error}") from error
        return fields

    def renew(self) -> None:
        """Make a new parser. Call this when a body follows, for which the old one would wait."""
        # A new parser costs 0.25 us. It gets a collector, not this object: a reference cycle would
        # keep every closed connection alive until the garbage collector runs.
        self._feed = httptools.HttpRequestParser(self._collector).feed_data


class _Collector:
    """Receives the callbacks of llhttp."""

    __slots__ = ("fields",)

    fields: Headers

    def on_header(self, name: bytes, value: bytes) -> None:
        self.fields.append((name.lower(), value))
