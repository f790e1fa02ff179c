"""The default parser of heads: httptools, which is Node's llhttp."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import httptools

from servo.http.errors import ProtocolError

if TYPE_CHECKING:
    from servo.http.events import Headers

# Lower-case names, by the name as sent. A reused bytes object already has its hash, so later
# look-ups are cheaper.
_NAMES: Final[dict[bytes, bytes]] = {}
_NAMES_BOUND: Final = 1024
_NAME_BOUND: Final = 64


class HttptoolsFields:
    """Parses a whole head into its fields. One object serves one connection.

    Returns the fields in order, and by name: for a repeated name, the last value.

    llhttp gets only heads, never a body. It refuses control characters, bare CR and LF, folded
    lines, malformed names, and wrong framing.
    """

    __slots__ = ("_collector", "_feed", "_fresh")

    def __init__(self) -> None:
        self._collector = _Collector()
        self._fresh = True
        self.renew()

    def __call__(self, head: bytes) -> tuple[Headers, dict[bytes, bytes]]:
        fields: Headers = []
        named: dict[bytes, bytes] = {}
        collector = self._collector
        collector.fields = fields
        collector.named = named
        fresh = self._fresh
        self._fresh = False
        try:
            self._feed(head)
        except httptools.HttpParserUpgrade:
            # llhttp has read the whole head, and is ready for the next one. `headers` decides
            # whether the connection upgrades; if not, this is an ordinary request.
            pass
        except httptools.HttpParserError as error:
            if not fresh:
                # llhttp refuses every head after "Proxy-Connection: close". This field means
                # nothing to `headers`, so the connection may go on.
                self.renew()
                return self(head)
            raise ProtocolError(400, f"llhttp: {error}") from error
        return fields, named

    def forget(self) -> None:
        """Release the fields of the last head."""
        self._collector.fields = []
        self._collector.named = {}

    def renew(self) -> None:
        """Make a new parser. Call this if a body follows, because the old one would wait for it."""
        # A new parser costs 0.25 us. It refers to a collector, not to this object: a reference
        # cycle would keep every closed connection in memory until the garbage collector runs.
        self._feed = httptools.HttpRequestParser(self._collector).feed_data
        self._fresh = True


class _Collector:
    """Receives the callbacks of llhttp."""

    __slots__ = ("fields", "named")

    fields: Headers
    named: dict[bytes, bytes]

    def on_header(self, name: bytes, value: bytes) -> None:
        lower = _NAMES.get(name)
        if lower is None:
            lower = name.lower()
            if len(name) <= _NAME_BOUND:
                if len(_NAMES) >= _NAMES_BOUND:
                    _NAMES.clear()
                _NAMES[name] = lower
        self.fields.append((lower, value))
        # Filling the dict here costs less than making it from the list afterwards.
        self.named[lower] = value
