"""The events that a connection returns to its driver.

They are plain classes with slots, which are the cheapest to make: each request needs one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from servo.http.errors import ProtocolError

    Headers = list[tuple[bytes, bytes]]


class Request:
    """The head of a request, with the part of its body that arrived with it.

    method           as sent ("GET"); methods are case-sensitive
    target           the request target as sent (bytes of the request line)
    path, query      the parts of the target's origin form, percent-encoded, without the "?"
    version          "1.0", "1.1" or "2"
    headers          pairs in order: name in lower case, value without white space around it
    body             the body, or its beginning
    more_body        whether `Data` events follow
    content_length   the declared length in bytes; None if there is no body, or it is chunked
    keep_alive       whether the client allows another request after this one
    expect_continue  whether the client waits for a 100 before it sends the body
    upgrade          the protocol (in lower case) that the client offers to upgrade to, or None
    trailers         the trailer fields, if the whole body is in `body`
    named            the headers by name, for look-ups. For a repeated name, it has the last value.
                     But the values of Connection, Expect, Transfer-Encoding and Upgrade, which are
                     lists, are joined
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
    """Body bytes that arrived after the event of their request.

    data       the bytes; the last event may have none
    more_body  whether further `Data` events follow
    trailers   the trailer fields, in the last event
    """

    __slots__ = ("data", "more_body", "trailers")

    def __init__(
        self, data: bytes, more_body: bool, trailers: Sequence[tuple[bytes, bytes]] = ()
    ) -> None:
        self.data = data
        self.more_body = more_body
        self.trailers = trailers


class Refused:
    """A refused request. The driver sends `connection.refuse(event)`, and then closes.

    error           the status and the reason
    in_body         whether the fault is in the body of a request that was already returned. The app
                    may be running, and must get a disconnect. If the response has begun, `refuse`
                    returns no bytes
    method, target  the readable parts of the request line, for the access log
    """

    __slots__ = ("error", "in_body", "method", "target")

    def __init__(
        self, error: ProtocolError, in_body: bool = False, method: str = "", target: bytes = b""
    ) -> None:
        # Drop the traceback. Its frames refer to received bytes and to this event. This reference
        # cycle would keep all of them in memory until the garbage collector runs.
        error.__traceback__ = error.__cause__ = error.__context__ = None
        self.error = error
        self.in_body = in_body
        self.method = method
        self.target = target


Event = Request | Data | Refused
