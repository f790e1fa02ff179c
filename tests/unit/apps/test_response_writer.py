"""The connections that adapters answer on have all members of `ResponseWriter`."""

from __future__ import annotations

import pytest

from servo.apps import response_writer
from servo.http.h1.connection import H1Connection
from servo.http.h2.stream import H2Stream

COMMON = (
    "close_after",
    "end_response",
    "response_started",
    "send_data",
    "send_informational",
    "send_response",
    "start_response",
)


def test_the_members_are_named_here() -> None:
    assert set(COMMON) <= set(dir(response_writer.ResponseWriter)) | {"close_after"}


@pytest.mark.parametrize("writer", [H1Connection, H2Stream])
@pytest.mark.parametrize("name", [*COMMON, "send_continue", "status", "body_sent"])
def test_an_asgi_response_can_be_written(writer: type, name: str) -> None:
    assert hasattr(writer, name)


@pytest.mark.parametrize("name", [*COMMON, "response_complete", "raw_body", "account"])
def test_a_wsgi_response_can_be_written(name: str) -> None:
    assert hasattr(H1Connection, name)
