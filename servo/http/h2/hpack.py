"""Header compression for the `h2` library: its two codecs, replaced (RFC 7541).

Both stand where `h2.connection.H2Connection` has `encoder` and `decoder`.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from hpack import Decoder
from hpack.exceptions import HPACKError, OversizedHeaderListError
from hpack.table import HeaderTable

from servo.http.h2.frames import COMPRESSION_ERROR, GoAwayError

if TYPE_CHECKING:
    from collections.abc import Iterable

    Field = tuple[bytes, bytes]

# Bytes of table that we keep for a client's sake, whatever it offers (the protocol's default).
TABLE_SIZE = 4096

_STATIC = list(HeaderTable.STATIC_TABLE)
_STATIC_FIELDS = {field: i for i, field in reversed(list(enumerate(_STATIC, 1)))}
_STATIC_NAMES = {field[0]: i for i, field in reversed(list(enumerate(_STATIC, 1)))}
_FIRST_DYNAMIC = len(_STATIC) + 1

# Secrets: no proxy may compress them together with what an attacker chooses (RFC 7541 7.1.3).
_NEVER_INDEXED = frozenset((b"set-cookie", b"authorization", b"proxy-authenticate"))
# Values that change with each response would push those that repeat out of the table.
_NOT_INDEXED = frozenset(
    (
        *(b"content-length", b"etag", b"last-modified", b"expires", b"location", b"age"),
        *(b"x-request-id", b"content-range", b"link", b"traceparent"),
    )
)
_LITERALS_BOUND = 1024
_FIELD_BOUND = 512


class FieldKeeper(Decoder):
    """Decodes heads, and keeps the fields to itself in `fields`.

    `h2` gets an empty list: what it judges malformed ends the connection, and RFC 9113 section
    8.1.1 wants only the stream to end. The rules are in `h2_head`.
    """

    def __init__(self, max_header_list_size: int) -> None:
        super().__init__(max_header_list_size)
        self.fields: list[Field] = []

    def decode(self, data: bytes, raw: bool = True) -> list[Field]:  # type: ignore[override]
        try:
            self.fields = list(super().decode(data, raw=True))
        except OversizedHeaderListError:
            raise  # `h2` calls it what it is: an attack
        except HPACKError as error:
            # The two ends' tables differ from here on, so no later head could be read either (RFC
            # 9113 section 4.3). `h2` would say PROTOCOL_ERROR.
            raise GoAwayError(COMPRESSION_ERROR, ascii(str(error))[1:-1]) from error
        return []


class FieldEncoder:
    """Encodes response heads.

    Each field is one look-up: in the static table, in what this connection has sent before, or
    among literals that were built before for any connection. No Huffman code: what repeats is an
    index, and what does not is too short to gain from it.
    """

    __slots__ = ("_entries", "_evicted", "_inserted", "_max", "_seen", "_size", "_sizes_told")

    # Whole literals by field, shared by all connections, with what they would take in the table.
    _literals: dict[Field, tuple[bytes, int]] = {}

    def __init__(self) -> None:
        self._max = TABLE_SIZE
        self._size = 0
        self._entries: deque[tuple[Field, int]] = deque()
        # Field to the running number of its entry; how many entries were made, and were evicted.
        self._seen: dict[Field, int] = {}
        self._inserted = 0
        self._evicted = 0
        self._sizes_told: list[int] = []

    @property
    def header_table_size(self) -> int:
        """What the client lets the table have, or less. Set by `h2`."""
        return self._max

    @header_table_size.setter
    def header_table_size(self, size: int) -> None:
        size = min(size, TABLE_SIZE)
        if size != self._max:
            # The least of several changes must be told, and the last (RFC 7541 section 4.2).
            self._sizes_told = [*[told for told in self._sizes_told if told < size][:1], size]
            self._max = size
            self._evict(0)

    def encode(self, headers: Iterable[Field], huffman: bool = True) -> bytes:
        """The header block of these fields: names in lower case, all bytes."""
        parts = [_integer(size, 5, 0x20) for size in self._sizes_told]
        if parts:
            self._sizes_told = []
        seen = self._seen
        for field in headers:
            index = _STATIC_FIELDS.get(field)
            if index is None:
                number = seen.get(field)
                if number is None:
                    parts.append(self._literal(field))
                    continue
                index = _FIRST_DYNAMIC + self._inserted - 1 - number
            parts.append(_INDEXED[index])
        return b"".join(parts)

    def _literal(self, field: Field) -> bytes:
        known = self._literals.get(field)
        if known is None:
            known = _build_literal(field)
            if known[1] and len(known[0]) <= _FIELD_BOUND:
                if len(self._literals) >= _LITERALS_BOUND:
                    self._literals.clear()
                self._literals[field] = known
        literal, size = known
        if size and size <= self._max:
            self._evict(size)
            self._entries.append((field, size))
            self._seen[field] = self._inserted
            self._inserted += 1
            self._size += size
        elif size:
            # It would empty the table and not go in: the client's does the same.
            self._evict(size)
        return literal

    def _evict(self, room: int) -> None:
        while self._entries and self._size + room > self._max:
            field, size = self._entries.popleft()
            self._size -= size
            if self._seen.get(field) == self._evicted:
                del self._seen[field]
            self._evicted += 1


def _build_literal(field: Field) -> tuple[bytes, int]:
    """A field as a literal, and its size in the table when it goes there, or else 0."""
    name, value = field
    size = 0
    if name in _NEVER_INDEXED:
        bits, mark = 4, 0x10
    elif name in _NOT_INDEXED or len(value) > _FIELD_BOUND:
        bits, mark = 4, 0
    else:
        bits, mark = 6, 0x40
        size = len(name) + len(value) + 32
    index = _STATIC_NAMES.get(name, 0)
    parts = [_integer(index, bits, mark)]
    if not index:
        parts += (_integer(len(name), 7, 0), name)
    parts += (_integer(len(value), 7, 0), value)
    return b"".join(parts), size


def _integer(value: int, bits: int, mark: int) -> bytes:
    """RFC 7541 section 5.1: an integer behind the bits of `mark`."""
    most = (1 << bits) - 1
    if value < most:
        return bytes((mark | value,))
    out = bytearray((mark | most,))
    value -= most
    while value >= 128:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


# An entry takes 32 bytes at least, which bounds the indices there can be.
_INDEXED = [_integer(index, 7, 0x80) for index in range(_FIRST_DYNAMIC + TABLE_SIZE // 32 + 1)]
