"""Fields that repeat on a connection are judged once.

A client repeats most of its fields to the byte, request after request; HTTP/2's compression is
built on that. If everything behind the request line, and the version in it, equals the request
before, only method and target are read anew, by the rules of `headers` for an ordinary request.

The comparison is exact: the first CRLF ends the request line (RFC 9112 section 3), and all bytes
behind it must be equal. Comparing only the end of a head would let a client hide a Content-Length
in front of the remembered fields and have the body run as a second request.
"""

from __future__ import annotations

from servo.http.events import Request
from servo.http.headers import METHODS, TARGET_CHARS


class KnownFields:
    """A field section that a connection's last requests had in common, and how it was judged.

    fields   all of a head behind its request line, CRLFs included
    request  the request that was read from that head
    """

    __slots__ = (
        "_content_length",
        "_fields",
        "_has_body",
        "_headers",
        "_keep_alive",
        "_named",
        "_protocol",
        "_version",
    )

    def __init__(self, fields: bytes, request: Request) -> None:
        self._fields = fields
        self._version = request.version
        self._protocol = b"HTTP/" + request.version.encode("ascii")
        # A copy: an app may change the list that it is given.
        self._headers = tuple(request.headers)
        self._named = request.named
        self._keep_alive = request.keep_alive
        self._content_length = request.content_length
        self._has_body = request.more_body

    @staticmethod
    def fit(request: Request) -> bool:
        """Whether the fields mean the same behind every other request line of this version.

        Upgrade does not: it counts with GET only. A chunked body needs a reader of its own.
        """
        return (
            (request.content_length is not None or not request.more_body)
            and not request.expect_continue
            and b"upgrade" not in request.named
            and request.target.startswith(b"/")
        )

    def recall(self, head: bytes) -> Request | None:
        """The request of a head with exactly these fields and version; None for any other."""
        request_line, _, fields = head.partition(b"\r\n")
        if fields != self._fields:
            return None
        line = request_line.split(b" ")
        if len(line) != 3 or line[2] != self._protocol:
            return None
        target = line[1]
        name = METHODS.get(line[0])
        if name is None or name == "CONNECT" or target.translate(None, TARGET_CHARS):
            # Also a query with characters that `read_request_line` allows there: they are rare.
            return None
        if not target.startswith(b"/"):
            return None
        path, _, query = target.partition(b"?")
        return Request(
            name,
            target,
            path,
            query,
            self._version,
            [*self._headers],
            self._keep_alive,
            False,
            None,
            self._content_length,
            b"",
            self._has_body,
            (),
            self._named,
        )
