"""The part of an HTTP connection that the adapters answer on: `ResponseWriter`.

An `H1Connection`, an `H2Stream` and, for a WSGI application in the `async` worker, a bridge to the
event loop are response writers. Each method frames a part of the response. `H1Connection` returns
the bytes for the driver to send; the others send by themselves and return no bytes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterable

    from servo.http.serialise import Body, HeaderItem, Status

# The body of the response to a request whose application failed.
ERROR_BODY = b"Internal Server Error\n"


class ResponseWriter(Protocol):
    """Frames a response. `servo.http.h1.connection.H1Connection` describes each member."""

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
    """The additions for WSGI: files whose bytes the driver sends itself."""

    @property
    def response_complete(self) -> bool: ...

    @property
    def raw_body(self) -> bool: ...

    def account(self, n: int) -> None: ...


class ASGIResponseWriter(ResponseWriter, Protocol):
    """The additions for ASGI: trailers, and 100 Continue when the body is asked for.

    The driver reads `status` and `body_sent` for the access log.
    """

    status: int
    body_sent: int

    def end_response(self, trailers: Iterable[HeaderItem] = ()) -> bytes: ...

    def send_continue(self) -> bytes: ...
