"""Remembers the fields of a connection's requests, to parse repeated ones only once.

Most clients send the same fields, byte for byte, with every request. (The compression of HTTP/2
relies on this, too.) If the version and all bytes after the request line are those of the last
request, only the method and the target are parsed, by the same rules as in `headers`.

The comparison is exact: all bytes after the first CRLF, which ends the request line (RFC 9112
section 3), must be equal. If only the end of a head were compared, a client could hide a
Content-Length before the remembered fields, and the body would be parsed as a second request.
"""

from __future__ import annotations

from servo.http.events import Request
from servo.http.headers import METHODS, TARGET_CHARS


class KnownFields:
    """The common field section of a connection's last requests, and its parsed form.

    fields   the bytes of a head after its request line, with CRLFs
    request  the request that was parsed from that head
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
        # A copy, because an application may change its list.
        self._headers = tuple(request.headers)
        self._named = request.named
        self._keep_alive = request.keep_alive
        self._content_length = request.content_length
        self._has_body = request.more_body

    @staticmethod
    def fit(request: Request) -> bool:
        """Whether this request's fields mean the same with any request line, so we can reuse them.

        Fields with Upgrade don't, because only GET requests may upgrade. Requests with a chunked
        body are left out for another reason: each needs its own reader.
        """
        return (
            (request.content_length is not None or not request.more_body)
            and not request.expect_continue
            and b"upgrade" not in request.named
            and request.target.startswith(b"/")
        )

    def recall(self, head: bytes) -> Request | None:
        """The request of this head if its fields and version are the remembered ones; else None."""
        request_line, _, fields = head.partition(b"\r\n")
        if fields != self._fields:
            return None
        line = request_line.split(b" ")
        if len(line) != 3 or line[2] != self._protocol:
            return None
        target = line[1]
        name = METHODS.get(line[0])
        if name is None or name == "CONNECT" or target.translate(None, TARGET_CHARS):
            # The target may still be valid: `read_request_line` allows more characters in queries,
            # but these are rare.
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
