"""Remembering the fields of a connection's requests, so that repeated ones are judged only once.

Clients repeat most of their fields byte by byte, request after request. (The compression of HTTP/2
relies on the same fact.) If the version and everything behind the request line equal those of the
last request, only the method and the target are read, by the rules that `headers` has for ordinary
ones.

The comparison is exact: all bytes behind the first CRLF, which ends the request line (RFC 9112
section 3), must be equal. If only the end of a head were compared, a client could hide a
Content-Length in front of the remembered fields, and its body would run as a second request.
"""

from __future__ import annotations

from servo.http.events import Request
from servo.http.headers import METHODS, TARGET_CHARS


class KnownFields:
    """A field section that the last requests of a connection had in common, and its meaning.

    fields   the bytes of a head behind its request line, CRLFs included
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
        # A copy, because an application may change the list that it gets.
        self._headers = tuple(request.headers)
        self._named = request.named
        self._keep_alive = request.keep_alive
        self._content_length = request.content_length
        self._has_body = request.more_body

    @staticmethod
    def fit(request: Request) -> bool:
        """Whether the fields of this request mean the same behind every request line.

        Upgrade does not, since only GET requests may upgrade. Chunked bodies are left out because
        each needs a reader of its own.
        """
        return (
            (request.content_length is not None or not request.more_body)
            and not request.expect_continue
            and b"upgrade" not in request.named
            and request.target.startswith(b"/")
        )

    def recall(self, head: bytes) -> Request | None:
        """The request of this head, if it has exactly these fields and this version; else None."""
        request_line, _, fields = head.partition(b"\r\n")
        if fields != self._fields:
            return None
        line = request_line.split(b" ")
        if len(line) != 3 or line[2] != self._protocol:
            return None
        target = line[1]
        name = METHODS.get(line[0])
        if name is None or name == "CONNECT" or target.translate(None, TARGET_CHARS):
            # This leaves out the characters that `read_request_line` allows in queries: they are
            # rare.
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
