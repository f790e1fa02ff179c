"""What a connection tells its driver. Plain slotted objects: one is made for each request."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from servo.http.errors import ProtocolError

    Headers = list[tuple[bytes, bytes]]


class Request:
    """A request's head, with as much of its body as had arrived when the head was handed out.

    method           upper or mixed case as sent ("GET"); methods are case-sensitive
    target           the request target as sent (bytes of the request line)
    path, query      origin form of the target, still percent-encoded; the query without its "?"
    version          "1.1" or "1.0"
    headers          (name in lower case, value without surrounding white space), in order
    body             the body, or its beginning
    more_body        whether `Data` events follow
    content_length   the declared length, or None (no body, or chunked)
    keep_alive       whether the client allows another request after this one
    expect_continue  whether the client waits for a 100 before it sends the body
    upgrade          the lower-case protocol of an `Upgrade` that `Connection` names, or None
    trailers         trailer fields, when the whole body is already in `body`
    named            the headers by name, for look-ups; of repeated ones the last, except that the
                     lists Connection, Expect, Transfer-Encoding and Upgrade are joined
    """

    __slots__ = (
        "body",
        "content_length",
        "expect_continue",
        "headers",
        "keep_alive",
        "method",
        "more_body",
        "named",
        "path",
        "query",
        "target",
        "trailers",
        "upgrade",
        "version",
    )

    def __init__(
        self,
        method: str,
        target: bytes,
        path: bytes,
        query: bytes,
        version: str,
        headers: Headers,
        keep_alive: bool,
        expect_continue: bool = False,
        upgrade: bytes | None = None,
        content_length: int | None = None,
        body: bytes = b"",
        more_body: bool = False,
        trailers: Sequence[tuple[bytes, bytes]] = (),
        named: dict[bytes, bytes] | None = None,
    ) -> None:
        self.method = method
        self.target = target
        self.path = path
        self.query = query
        self.version = version
        self.headers = headers
        self.keep_alive = keep_alive
        self.expect_continue = expect_continue
        self.upgrade = upgrade
        self.content_length = content_length
        self.body = body
        self.more_body = more_body
        self.trailers = trailers
        self.named = dict(headers) if named is None else named


class Data:
    """Body bytes that arrived after their request was handed out.

    `more_body` is False on the last one, which then carries the trailers (and may have no data).
    """

    __slots__ = ("data", "more_body", "trailers")

    def __init__(
        self, data: bytes, more_body: bool, trailers: Sequence[tuple[bytes, bytes]] = ()
    ) -> None:
        self.data = data
        self.more_body = more_body
        self.trailers = trailers


class Refused:
    """The client broke a rule: answer with `connection.refuse(event)`, then close.

    Where `in_body` is true the request was handed out before, and its app may be running: if its
    response has begun, `refuse` returns no bytes; in any case the app is told of a disconnect.
    `method` and `target` are what could be read of the request line, for the access log.
    """

    __slots__ = ("error", "in_body", "method", "target")

    def __init__(
        self, error: ProtocolError, in_body: bool = False, method: str = "", target: bytes = b""
    ) -> None:
        # Nobody asks where it was raised; its frames hold what was read, and this event: a cycle.
        error.__traceback__ = error.__cause__ = error.__context__ = None
        self.error = error
        self.in_body = in_body
        self.method = method
        self.target = target


Event = Request | Data | Refused
