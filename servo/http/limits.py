"""How much of everything a client may send, with the unit and the precedent of each default."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds that the HTTP connections enforce by themselves; 0 means no limit where said so.

    request_line      bytes of the request line without its CRLF (nginx and Apache: 8 KiB)
    header_count      header fields in a head (gunicorn and Apache: 100)
    header_field      bytes of one field line with its CRLF (gunicorn and Apache: 8190)
    header_total      bytes of all field lines together (nginx: 4 * 8 KiB, Node: 16 KiB)
    body              bytes of a request body after dechunking; 0: no limit (gunicorn)
    trailer_count     fields in a trailer section
    chunk_extension   bytes of one chunk's extensions (llhttp and Go: a bound after CVE-2023-39326)
    pipeline_depth    requests waiting behind the one being answered; reading pauses there
    """

    request_line: int = 8190
    header_count: int = 100
    header_field: int = 8190
    header_total: int = 65536
    body: int = 0
    trailer_count: int = 32
    chunk_extension: int = 1024
    pipeline_depth: int = 16
