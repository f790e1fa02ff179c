"""Header compression (RFC 7541).

HPACK replaces a header field that was sent before by its index in a table. Each direction has its
own table, and both ends keep a copy of it. `FieldDecoder` reads the heads of requests,
`FieldEncoder` writes those of responses.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Final

from servo.http.h2.frames import COMPRESSION_ERROR, ENHANCE_YOUR_CALM, GoAwayError
from servo.http.h2.hpack_tables import (
    FAILED,
    HAS_SYMBOL,
    MAY_END,
    STATE_SHIFT,
    STATIC_FIELDS,
    decoding_table,
)

if TYPE_CHECKING:
    from collections.abc import Iterable

    Field = tuple[bytes, bytes]

# Bytes of each table (the protocol's default). The client may offer a larger one for responses, but
# we don't use it. Our SETTINGS offer the client no larger one for requests.
TABLE_SIZE: Final = 4096
# In the table, a field counts this many bytes in addition to its name and value.
_FIELD_OVERHEAD: Final = 32

_STATIC_INDICES = {field: i for i, field in reversed(list(enumerate(STATIC_FIELDS, 1)))}
_STATIC_NAMES = {field[0]: i for i, field in reversed(list(enumerate(STATIC_FIELDS, 1)))}
_FIRST_DYNAMIC: Final = 62

_HUFFMAN: Final[list[int]] = decoding_table()
_SHIFT: Final = STATE_SHIFT
# An integer may have at most this many bytes after the first one: enough for 28 bits.
_INTEGER_BYTES: Final = 4

# Secrets. If they were compressed, an attacker who chooses other fields could guess them by the
# compressed size. The "never indexed" mark keeps proxies, too, from compressing them (RFC 7541
# section 7.1.3).
_NEVER_INDEXED = frozenset((b"set-cookie", b"authorization", b"proxy-authenticate"))
# Fields with a new value in each response. They would push repeated fields out of the table.
_NOT_INDEXED = frozenset(
    (
        *(b"content-length", b"etag", b"last-modified", b"expires", b"location", b"age"),
        *(b"x-request-id", b"content-range", b"link", b"traceparent"),
    )
)
# Encoded literals by field, with their size in the table. All connections share them.
_LITERALS: dict[Field, tuple[bytes, int]] = {}
_LITERALS_BOUND: Final = 1024
_FIELD_BOUND: Final = 512


class FieldDecoder:
    """Decodes the heads of requests.

    most  maximum size of a decoded head, in bytes, plus 32 for each field. A longer head is refused
          early, because one byte can stand for a field of 4 KB (CVE-2016-1544 and others)
    """

    __slots__ = ("_data", "_entries", "_most", "_pos", "_room", "_size")

    def __init__(self, most: int) -> None:
        self._most = most
        # The newest entry is the last one.
        self._entries: list[Field] = []
        self._size = 0
        self._room = TABLE_SIZE
        # The head that is being decoded, and the position in it.
        self._data = b""
        self._pos = 0

    @property
    def table_size(self) -> int:
        """The size of the table, as RFC 7541 section 4.1 counts it."""
        return self._size

    def decode(self, data: bytes) -> list[Field]:
        """Decode a whole head. Returns its fields in order.

        data  the head, without the headers of its frames

        Raises `GoAwayError`: after an error, the tables of both ends differ, so no later head can
        be decoded.
        """
        fields: list[Field] = []
        self._data = data
        self._pos = 0
        left = self._most
        end = len(data)
        while self._pos < end:
            byte = data[self._pos]
            if byte & 0x80:
                field = self._entry(self._integer(0x7F))
            elif byte & 0x40:
                field = self._literal(0x3F)
                self._insert(field)
            elif byte & 0x20:
                # A new size comes before all fields (RFC 7541 section 4.2).
                if fields:
                    raise _fault("a table size after a field")
                self._resize(self._integer(0x1F))
                continue
            else:
                field = self._literal(0x0F)
            fields.append(field)
            left -= len(field[0]) + len(field[1]) + _FIELD_OVERHEAD
            if left < 0:
                raise GoAwayError(ENHANCE_YOUR_CALM, "header list too large")
        return fields

    def _entry(self, index: int) -> Field:
        if 0 < index < _FIRST_DYNAMIC:
            return STATIC_FIELDS[index - 1]
        back = index - _FIRST_DYNAMIC + 1
        if not 0 < back <= len(self._entries):
            raise _fault("no field has this index")
        return self._entries[-back]

    def _literal(self, mask: int) -> Field:
        """Read a field that is not in the table; its name may be. `mask` has the index's bits."""
        index = self._integer(mask)
        name = self._entry(index)[0] if index else self._string()
        return name, self._string()

    def _string(self) -> bytes:
        data = self._data
        if self._pos >= len(data):
            raise _fault("the head ends within a field")
        is_coded = data[self._pos] & 0x80
        size = self._integer(0x7F)
        start = self._pos
        self._pos = start + size
        if self._pos > len(data):
            raise _fault("the head ends within a field")
        text = data[start : self._pos]
        return _decode_huffman(text) if is_coded else text

    def _integer(self, mask: int) -> int:
        """Read an integer (RFC 7541 section 5.1) that begins in the bits of `mask`."""
        data = self._data
        pos = self._pos
        value = data[pos] & mask
        pos += 1
        if value == mask:
            shift = 0
            while True:
                if pos >= len(data) or shift == 7 * _INTEGER_BYTES:
                    raise _fault("an integer without end, or too large")
                byte = data[pos]
                pos += 1
                value += (byte & 0x7F) << shift
                if byte < 0x80:
                    break
                shift += 7
        self._pos = pos
        return value

    def _insert(self, field: Field) -> None:
        size = len(field[0]) + len(field[1]) + _FIELD_OVERHEAD
        if self._size + size > self._room:
            self._evict(self._room - size)
        if size <= self._room:
            self._entries.append(field)
            self._size += size

    def _resize(self, size: int) -> None:
        if size > TABLE_SIZE:
            raise _fault("a table size above the limit")
        self._room = size
        self._evict(size)

    def _evict(self, room: int) -> None:
        """Drop the oldest entries until the others take no more than `room` bytes."""
        entries = self._entries
        size = self._size
        dropped = 0
        while size > room and dropped < len(entries):
            name, value = entries[dropped]
            size -= len(name) + len(value) + _FIELD_OVERHEAD
            dropped += 1
        del entries[:dropped]
        self._size = size


def _decode_huffman(text: bytes) -> bytes:
    out = bytearray()
    table = _HUFFMAN
    entry = MAY_END
    for byte in text:
        entry = table[entry >> _SHIFT << 4 | byte >> 4]
        if entry & HAS_SYMBOL:
            if entry == FAILED:
                raise _fault("bits that are no code")
            out.append(entry & 0xFF)
        entry = table[entry >> _SHIFT << 4 | byte & 0x0F]
        if entry & HAS_SYMBOL:
            if entry == FAILED:
                raise _fault("bits that are no code")
            out.append(entry & 0xFF)
    if not entry & MAY_END:
        raise _fault("a string that ends within a code")
    return bytes(out)


def _fault(what: str) -> GoAwayError:
    return GoAwayError(COMPRESSION_ERROR, what)


class FieldEncoder:
    """Encodes response heads.

    Each field needs one look-up: in the static table, in the fields that this connection has sent
    before, or in the literals that all connections share. There is no Huffman coding: a repeated
    field is only an index, and other fields are too short to benefit.
    """

    __slots__ = ("_entries", "_evicted", "_inserted", "_max", "_seen", "_size", "_sizes_told")

    def __init__(self) -> None:
        self._max = TABLE_SIZE
        self._size = 0
        self._entries: deque[tuple[Field, int]] = deque()
        # field -> the number of its table entry; and how many entries were made and evicted so far.
        self._seen: dict[Field, int] = {}
        self._inserted = 0
        self._evicted = 0
        self._sizes_told: list[int] = []

    @property
    def header_table_size(self) -> int:
        """The size limit of the table, in bytes: the client's limit, but at most TABLE_SIZE."""
        return self._max

    @header_table_size.setter
    def header_table_size(self, size: int) -> None:
        size = min(size, TABLE_SIZE)
        if size != self._max:
            # After several changes, the smallest and the last size must be sent (RFC 7541 section
            # 4.2).
            self._sizes_told = [*[told for told in self._sizes_told if told < size][:1], size]
            self._max = size
            self._evict(0)

    def encode(self, headers: Iterable[Field]) -> bytes:
        """Encode a head.

        headers  the fields, all bytes, names in lower case
        """
        parts = [_integer(size, 5, 0x20) for size in self._sizes_told]
        if parts:
            self._sizes_told = []
        seen = self._seen
        for field in headers:
            index = _STATIC_INDICES.get(field)
            if index is None:
                number = seen.get(field)
                if number is None:
                    parts.append(self._literal(field))
                    continue
                index = _FIRST_DYNAMIC + self._inserted - 1 - number
            parts.append(_INDEXED[index])
        return b"".join(parts)

    def _literal(self, field: Field) -> bytes:
        known = _LITERALS.get(field)
        if known is None:
            known = _build_literal(field)
            # Content-Length is in no table, but the lengths of an app's responses repeat.
            if (known[1] or field[0] == b"content-length") and len(known[0]) <= _FIELD_BOUND:
                if len(_LITERALS) >= _LITERALS_BOUND:
                    _LITERALS.clear()
                _LITERALS[field] = known
        literal, size = known
        if size and size <= self._max:
            self._evict(size)
            self._entries.append((field, size))
            self._seen[field] = self._inserted
            self._inserted += 1
            self._size += size
        elif size:
            # If the entry is too large for the table, this empties the table, and the entry is not
            # added. The client does the same.
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
    """Encode a field as a literal. Returns it and its size in the table; 0 if it is not indexed."""
    name, value = field
    size = 0
    if name in _NEVER_INDEXED:
        bits, mark = 4, 0x10
    elif name in _NOT_INDEXED or len(value) > _FIELD_BOUND:
        bits, mark = 4, 0
    else:
        bits, mark = 6, 0x40
        size = len(name) + len(value) + _FIELD_OVERHEAD
    index = _STATIC_NAMES.get(name, 0)
    parts = [_integer(index, bits, mark)]
    if not index:
        parts += (_integer(len(name), 7, 0), name)
    parts += (_integer(len(value), 7, 0), value)
    return b"".join(parts), size


def _integer(value: int, bits: int, mark: int) -> bytes:
    """Encode an integer (RFC 7541 section 5.1) in the low `bits` of a byte that has `mark` set."""
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


# All possible indexed fields. An entry takes at least 32 bytes, so the indices are limited.
_INDEXED = [_integer(index, 7, 0x80) for index in range(_FIRST_DYNAMIC + TABLE_SIZE // 32 + 1)]
