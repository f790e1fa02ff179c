"""Fields that repeat on a connection are judged once.

A client repeats most of its fields to the byte, request after request; HTTP/2's compression is
built on that. Where version and fields are those of the request before, only the request line is
read: by the rules of `headers`, as far as an ordinary one goes.
"""

from __future__ import annotations

from servo.http.events import Request
from servo.http.headers import METHODS, TARGET_CHARS


class KnownFields:
    """A field section that a connection's last requests had in common, and how it was judged.

    `rest` is a head from its version on; `request` is the one that was read from it.
    """

    __slots__ = (
        "_content_length",
        "_cut",
        "_has_body",
        "_headers",
        "_keep_alive",
        "_named",
        "_rest",
        "_version",
    )

    def __init__(self, rest: bytes, request: Request) -> None:
        self._rest = rest
        self._cut = -len(rest)
        self._version = request.version
        # A copy: an app may change the list that it is given.
        self._headers = tuple(request.headers)
        self._named = request.named
        self._keep_alive = request.keep_alive
        self._content_length = request.content_length
        self._has_body = request.more_body

    @staticmethod
    def fit(request: Request) -> bool:
        """Whether how the fields were judged depends on nothing but themselves."""
        return (
            (request.content_length is not None or not request.more_body)
            and not request.expect_continue
            and request.upgrade is None
            and request.target.startswith(b"/")
        )

    def recall(self, head: bytes) -> Request | None:
        """The request of a head that ends with these very fields; None for any other."""
        if not head.endswith(self._rest):
            return None
        line = head[: self._cut].split(b" ")
        if len(line) != 3:
            return None
        target = line[1]
        name = METHODS.get(line[0])
        if name is None or name == "CONNECT" or target.translate(None, TARGET_CHARS):
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
