"""`ResponseWriter`: the part of an HTTP connection that an adapter uses for a response.

The response writers are `H1Connection`, `H2Stream`, and a bridge to the event loop for a WSGI
application in the `async` worker. Each method turns a part of the response into bytes.
`H1Connection` returns the bytes, and the driver sends them. The other two send the bytes
themselves, and return an empty bytes object.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterable

    from servo.http.serialise import Body, HeaderItem, Status

# The body of the response to a request whose application failed.
ERROR_BODY = b"Internal Server Error\n"


class ResponseWriter(Protocol):
    """Writes a response. `servo.http.h1.connection.H1Connection` describes each member."""

    close_after: bool

    @property
    def response_started(self) -> bool: ...

    def send_response(self, status: Status, headers: Iterable[HeaderItem], body: Body) -> bytes: ...

    def start_response(
        self, status: Status, headers: Iterable[HeaderItem], first: int = 0
    ) -> bytes: ...

    def send_data(self, data: Body) -> bytes: ...

    def end_response(self) -> bytes: ...

    def send_informational(self, status: int, headers: Iterable[HeaderItem]) -> bytes: ...


class WSGIResponseWriter(ResponseWriter, Protocol):
    """The additional members for WSGI, so that the driver can send files itself."""

    @property
    def response_complete(self) -> bool: ...

    @property
    def raw_body(self) -> bool: ...

    def account(self, n: int) -> None: ...


class ASGIResponseWriter(ResponseWriter, Protocol):
    """The additional methods for ASGI: trailers, and 100 Continue when the app reads the body.

    The driver reads `status` and `body_sent` for the access log.
    """

    status: int
    body_sent: int

    def end_response(self, trailers: Iterable[HeaderItem] = ()) -> bytes: ...

    def send_continue(self) -> bytes: ...
