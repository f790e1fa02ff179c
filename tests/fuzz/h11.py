"""Invariant, for the parser h11: whatever a client sends, nothing is raised; an app is given only
requests that are in order (harness.check_request, check_body); a refusal has a status that is meant
for it and ends the connection; and how the bytes are cut into reads changes nothing."""

from __future__ import annotations

from fuzz.harness import check_parser


def target(data: bytes) -> None:
    check_parser("h11", data)
