"""Errors of the HTTP layer, for drivers and applications."""

from __future__ import annotations

from servo.errors import ServoError
from servo.http.errors import ClientDisconnected, LocalProtocolError, ProtocolError


def test_a_refusal_carries_its_status_and_its_reason() -> None:
    error = ProtocolError(431, "too many header fields")
    assert (error.status, error.reason) == (431, "too many header fields")
    assert str(error) == "431: too many header fields"


def test_a_client_that_is_gone_is_an_oserror_to_an_asgi_application() -> None:
    assert issubclass(ClientDisconnected, OSError)
    assert issubclass(ClientDisconnected, ServoError)
    assert not issubclass(LocalProtocolError, OSError)
