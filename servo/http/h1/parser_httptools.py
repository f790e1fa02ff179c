"""The default parser of field lines: httptools, which is Node's llhttp."""

from __future__ import annotations

from typing import TYPE_CHECKING

import httptools

from servo.http.errors import ProtocolError

if TYPE_CHECKING:
    from servo.http.events import Headers


class HttptoolsFields:
    """Called with a whole head, returns its fields. One object serves one connection.

    llhttp parses each head as a message. It refuses control characters, bare CR and LF, folds,
    malformed names, and what it knows about framing; the connection keeps the bodies to itself.
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
            # llhttp has stopped behind the head, ready for another. The connection decides what an
            # Upgrade means; ignored, it is a request like any other.
            pass
        except httptools.HttpParserError as error:
            raise ProtocolError(400, f"llhttp: {error}") from error
        return fields

    def renew(self) -> None:
        """Forget the last head. To be called when a body follows, which llhttp would wait for."""
        # A new parser costs 0.25 us. The parser must not know this object: a cycle would keep every
        # closed connection until the garbage collector runs.
        self._feed = httptools.HttpRequestParser(self._collector).feed_data


class _Collector:
    __slots__ = ("fields",)

    fields: Headers

    def on_header(self, name: bytes, value: bytes) -> None:
        self.fields.append((name.lower(), value))
