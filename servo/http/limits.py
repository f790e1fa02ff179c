"""Limits on client data. Each has its unit, and the limits of other servers for comparison."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

# Seconds that a lingering close waits for the client. The server has closed its side of the
# connection, and discards input until the client closes its side. A full close with unread bytes
# would reset the connection, and the client might lose the response (RFC 9112 section 9.6). The
# lingering_timeout of nginx is 5 s.
LINGER_S: Final = 2.0


@dataclass(frozen=True, slots=True)
class Limits:
    """The limits that HTTP connections enforce.

    request_line      bytes of the request line without its CRLF (nginx and Apache: 8 KiB)
    header_count      header fields in a head (gunicorn and Apache: 100)
    header_field      bytes of one field line with its CRLF (gunicorn and Apache: 8190)
    header_total      bytes of all field lines together (nginx: 4 * 8 KiB, Node: 16 KiB)
    body              bytes of a request body after dechunking; 0: no limit (gunicorn)
    trailer_count     fields in a trailer section
    chunk_extension   bytes of one chunk's extensions (llhttp and Go: a bound after CVE-2023-39326)
    pipeline_depth    requests that may wait for the current one; with more, reading pauses
    strict_targets    whether to refuse quotes, "<" and ">" in queries, as RFC 3986 does
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
    """Further limits on an HTTP/2 connection. SETTINGS announce the first four to the client.

    The last two are allowances against floods: pairs of the number of frames that a client may
    spend, and the number that it gets back each second.

    streams       concurrent requests (gunicorn, hypercorn, curl: 100; RFC 9113 wants at least 100)
    window        bytes of a body that a client may send ahead of the application, for each stream
                  (gunicorn, and the protocol's default: 65535)
    frame         bytes of a frame's payload (the protocol's default and minimum: 16384)
    header_list   bytes of a decoded head, with 32 for each field (gunicorn: 65536)
    control       frames that advance no request: PING, SETTINGS, PRIORITY, WINDOW_UPDATE, empty or
                  unknown ones. Each request gives one back. Each frame of a response gives two
                  back, because the client answers it with WINDOW_UPDATE. (nghttp2's "glitches":
                  1000, 33 a second)
    resets        requests that the client cancels, or makes us reset. The default lets the client
                  cancel all of its streams at once. Each served request gives one back. (nghttp2:
                  1000, 33 a second)
    """

    streams: int = 100
    window: int = 65535
    frame: int = 16384
    header_list: int = 65536
    control: tuple[int, int] = (200, 100)
    resets: tuple[int, int] = (100, 33)
