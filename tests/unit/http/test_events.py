"""The events of a connection."""

from __future__ import annotations

from servo.http.errors import ProtocolError
from servo.http.events import Refused, Request


def test_headers_by_name_are_made_where_nobody_has_them() -> None:
    request = Request("GET", b"/", b"/", b"", "1.1", [(b"a", b"1"), (b"a", b"2")], True)
    assert request.named == {b"a": b"2"}
    known = {b"a": b"1, 2"}
    again = Request("GET", b"/", b"/", b"", "1.1", [(b"a", b"1")], True, named=known)
    assert again.named is known


def test_a_refusal_keeps_no_frames_alive() -> None:
    try:
        try:
            raise ValueError
        except ValueError as cause:
            raise ProtocolError(400, "malformed") from cause
    except ProtocolError as error:
        event = Refused(error, method="GET", target=b"/")
    assert event.error.__traceback__ is None
    assert event.error.__cause__ is None
    assert event.error.__context__ is None
    assert (event.in_body, event.method, event.target) == (False, "GET", b"/")
