"""The chunked transfer coding (RFC 9112 section 7.1), read strictly and within limits.

A chunked body is a series of chunks (a hexadecimal size, CRLF, the data, CRLF), a chunk of size 0,
and a trailer section that ends with an empty line. A size may have extensions, which are ignored.

The parsers of heads (llhttp, h11) could read chunks, too. But they don't limit extensions or report
the end of a message, and h11 accepts size lines that llhttp refuses.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from servo.http.errors import ProtocolError
from servo.http.h1.field_lines import TOKEN, check_field_lines
from servo.http.headers import read_trailers

if TYPE_CHECKING:
    from servo.http.events import Headers
    from servo.http.limits import Limits

# 16 hexadecimal digits are enough for any length. More may be an attempt to overflow an integer.
_DIGITS = 16
_PLAIN_SIZE = re.compile(rb"([0-9A-Fa-f]{1,16})\r\n")
_QUOTED = rb'"(?:[\t !#-\[\]-~\x80-\xff]|\\[\t -~\x80-\xff])*"'
_SIZE_LINE = re.compile(
    rb"([0-9A-Fa-f]{1,16})((?:[ \t]*;[ \t]*%b(?:[ \t]*=[ \t]*(?:%b|%b))?)*)"
    % (TOKEN.pattern, TOKEN.pattern, _QUOTED)
)
# The valid beginning of an incomplete size line. Other bytes can be refused at once.
_SIZE_BEGUN = re.compile(rb"[0-9A-Fa-f]{1,16}([ \t]*(?:;[\t -~\x80-\xff]*)?)\r?")
_MAX_SIZE = 2**63 - 1

# The limit for all extensions of a body together, as a multiple of the limit for those of one
# chunk. (Since CVE-2023-39326, Go limits them to 16 KiB more than the data.)
_EXTENSIONS_FACTOR = 16

_SIZE, _DATA, _DATA_END, _TRAILERS = range(4)


class ChunkedReader:
    """Reads one chunked body.

    limits  the limits on the body, the extensions and the trailers

    trailers  the trailer fields, after the body is complete
    """

    __slots__ = ("_checked", "_extensions", "_left", "_limits", "_received", "_state", "trailers")

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._state = _SIZE
        self._left = 0
        self._received = 0
        self._extensions = 0
        # How many bytes of an incomplete trailer section were checked.
        self._checked = 0
        self.trailers: Headers = []

    def read(self, buffer: bytes, start: int) -> tuple[bytes, int, bool]:
        """Read chunks until the end of the buffer or of the body.

        buffer  received bytes
        start   offset of the first byte to read

        Returns the data, the offset at which reading stopped, and whether the body is complete. In
        the next call, pass the bytes from that offset on, followed by new ones. Raises
        `ProtocolError`.
        """
        parts: list[bytes] = []
        pos = start
        end = len(buffer)
        while pos < end:
            if self._state == _SIZE:
                after = self._read_size(buffer, pos)
                if after == pos:
                    break
                pos = after
            elif self._state == _DATA:
                data = buffer[pos : pos + self._left]
                parts.append(data)
                pos += len(data)
                self._left -= len(data)
                if not self._left:
                    self._state = _DATA_END
            elif self._state == _DATA_END:
                if buffer.startswith(b"\r\n", pos):
                    pos += 2
                    self._state = _SIZE
                elif buffer[pos:] == b"\r":
                    break
                else:
                    raise ProtocolError(400, "chunk data not followed by CRLF")
            else:
                after = self._read_trailers(buffer, pos)
                return b"".join(parts), after, after != pos
        return b"".join(parts), pos, False

    def _read_size(self, buffer: bytes, pos: int) -> int:
        match = _PLAIN_SIZE.match(buffer, pos)
        if match is None:
            limit = _DIGITS + self._limits.chunk_extension
            line_end = buffer.find(b"\r\n", pos, pos + limit + 2)
            if line_end < 0:
                self._check_partial_size(buffer[pos : pos + limit + 2])
                return pos
            match = _SIZE_LINE.fullmatch(buffer, pos, line_end)
            if match is None:
                raise ProtocolError(400, "malformed chunk size or extension")
            self._count_extension(len(match[2]))
            after = line_end + 2
        else:
            after = match.end()
        size = int(match[1], 16)
        self._received += size
        if size > _MAX_SIZE or (self._limits.body and self._received > self._limits.body):
            raise ProtocolError(413, "request body too large")
        self._left = size
        self._state = _DATA if size else _TRAILERS
        return after

    def _check_partial_size(self, part: bytes) -> None:
        match = _SIZE_BEGUN.fullmatch(part)
        if match is None:
            raise ProtocolError(400, "malformed chunk size")
        if len(match[1]) > self._limits.chunk_extension:
            raise ProtocolError(400, "chunk extensions too long")

    def _count_extension(self, length: int) -> None:
        self._extensions += length
        limit = self._limits.chunk_extension
        if length > limit or self._extensions > limit * _EXTENSIONS_FACTOR:
            raise ProtocolError(400, "chunk extensions too long")

    def _read_trailers(self, buffer: bytes, pos: int) -> int:
        if buffer.startswith(b"\r\n", pos):
            return pos + 2
        section_end = buffer.find(b"\r\n\r\n", pos)
        if section_end < 0:
            part = buffer[pos:]
            limits = self._limits
            check_field_lines(part, 0, self._checked, limits.trailer_count, limits)
            self._checked = len(part)
            return pos
        self.trailers = read_trailers(buffer[pos : section_end + 4], self._limits)
        return section_end + 4
