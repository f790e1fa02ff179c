"""Invariant, for the parser h11: no bytes of a client raise an exception. The app gets only
valid requests (harness.check_request, check_body). A refusal has one of the allowed statuses and
ends the connection. The division of the bytes into reads changes nothing.
"""

from __future__ import annotations

from fuzz.harness import check_parser


def target(data: bytes) -> None:
    check_parser("h11", data)
