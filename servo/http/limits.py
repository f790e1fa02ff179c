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
    strict_targets    whether a quote, "<" or ">" is refused in a query, too (RFC 3986)
    """

    request_line: int = 8190
    header_count: int = 100
    header_field: int = 8190
    header_total: int = 65536
    body: int = 0
    trailer_count: int = 32
    chunk_extension: int = 1024
    pipeline_depth: int = 16
    strict_targets: bool = False


@dataclass(frozen=True, slots=True)
class H2Limits:
    """What an HTTP/2 connection allows beside `Limits`; the first four are told to the client.

    An allowance is a number that may be spent at once, and what comes back of it each second.

    streams       requests at a time (gunicorn, hypercorn, curl: 100; RFC 9113 wants no fewer)
    window        bytes of a body that a client may send ahead of the application, each stream
                  (gunicorn, and the protocol's own default: 65535)
    frame         bytes of a frame (the protocol's default, and least: 16384)
    header_list   bytes of a decoded head, with 32 for each field (gunicorn: 65536)
    control       frames that move no request on: PING, SETTINGS, PRIORITY, WINDOW_UPDATE, empty or
                  unknown ones; each frame of a response gives two back, for the windows that it
                  makes needed, each request one (nghttp2's "glitches": 1000, 33 a second)
    resets        requests that the client made and took back, or made us take back: all of its
                  streams at once (nghttp2: 1000, 33 a second); each that is served gives one back
    """

    streams: int = 100
    window: int = 65535
    frame: int = 16384
    header_list: int = 65536
    control: tuple[int, int] = (200, 100)
    resets: tuple[int, int] = (100, 33)
