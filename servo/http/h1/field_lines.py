"""The grammar of field lines, read strictly (RFC 9112 section 5), and their limits.

Heads and trailer sections are checked while they arrive. The result does not depend on how they are
cut into packets. The module `headers` interprets the fields.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from servo.http.errors import ProtocolError

if TYPE_CHECKING:
    from servo.http.events import Headers
    from servo.http.limits import Limits

TOKEN = re.compile(rb"[-!#$%&'*+.^_`|~0-9A-Za-z]+")
_FIELD_LINE = re.compile(rb"(" + TOKEN.pattern + rb"):([\t -~\x80-\xff]*)")
_CONTROL = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")


def split_fields(head: bytes) -> Headers:
    """Split a head into its fields. Raises `ProtocolError` for a line that breaks the grammar.

    head  the head. Its first line is skipped, and may be empty. Its last line must be empty

    Returns pairs of the name in lower case and the value without white space around it.
    """
    headers = []
    for line in head.split(b"\r\n")[1:-2]:
        match = _FIELD_LINE.fullmatch(line)
        if match is None:
            raise ProtocolError(400, _field_fault(line))
        headers.append((match[1].lower(), match[2].strip(b" \t")))
    return headers


def check_field_lines(part: bytes, section: int, new: int, count: int, limits: Limits) -> None:
    """Refuse a field section, or the beginning of one, at its first faulty line.

    part     the received bytes
    section  offset of the first field line in them
    new      offset of the bytes that are new since the last call
    count    the allowed number of field lines
    limits   the other limits

    Raises `ProtocolError` for a line that breaks the grammar or a limit.
    """
    before = part.rfind(b"\r\n", section, new)
    start = section if before < 0 else before + 2
    lines = -1
    while True:
        end = part.find(b"\r\n", start)
        if end == start:
            return
        # Ignore faults after the byte that exceeds a limit: if the bytes arrived in smaller
        # packets, the limit would be reported first.
        room = section + limits.header_total - 2 - start
        stop = check_line(part, start, end, new, min(limits.header_field - 2, room))
        if stop - start > limits.header_field - 2:
            raise ProtocolError(431, "field line too long")
        if stop == start:
            return  # it may be the beginning of the empty line
        if stop - start > room:
            raise ProtocolError(431, "field lines too long in total")
        if end < 0:
            return
        lines = part.count(b"\r\n", section, end + 2) if lines < 0 else lines + 1
        if lines > count:
            raise ProtocolError(431, "too many field lines")
        if not _FIELD_LINE.fullmatch(part, start, end):
            raise ProtocolError(400, _field_fault(part[start:end]))
        start = end + 2


def check_line(part: bytes, start: int, end: int, new: int, limit: int) -> int:
    """Refuse control characters in a line, up to its limit. Returns the offset of the line's end.

    part   the received bytes
    start  offset of the line
    end    offset of its CRLF, or -1 if that has not arrived
    new    offset of the bytes that are new since the last call
    limit  the maximum length of the line, in bytes
    """
    # A CR at the very end may be the first half of the CRLF.
    stop = end if end >= 0 else len(part) - part.endswith(b"\r")
    if _CONTROL.search(part, max(start, new - 1), min(stop, start + limit)):
        raise ProtocolError(400, "control character, bare CR or bare LF")
    return stop


def _field_fault(line: bytes) -> str:
    """Describe the fault of a field line."""
    if line[:1] in (b" ", b"\t"):
        return "folded header line"
    name, colon, _ = line.partition(b":")
    if not colon:
        return "header line without a colon"
    if name.rstrip(b" \t") != name:
        return "white space before the colon of a header"
    if not TOKEN.fullmatch(name):
        return "invalid header name"
    return "control character in a header value"
