"""Header compression (RFC 7541): our replacements for the two codecs of the `h2` library.

HPACK replaces a header field that was sent before by its index in a table. Each direction has a
table of its own, which both ends keep alike. `StateMachine` installs the two codecs as `encoder`
and `decoder`.
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

# Bytes of the encoder's table, even if the client offers more (the protocol's default).
TABLE_SIZE = 4096

_STATIC = list(HeaderTable.STATIC_TABLE)
_STATIC_FIELDS = {field: i for i, field in reversed(list(enumerate(_STATIC, 1)))}
_STATIC_NAMES = {field[0]: i for i, field in reversed(list(enumerate(_STATIC, 1)))}
_FIRST_DYNAMIC = len(_STATIC) + 1

# Secrets. The mark forbids proxies, too, to compress them together with text that an attacker
# chooses (RFC 7541 section 7.1.3).
_NEVER_INDEXED = frozenset((b"set-cookie", b"authorization", b"proxy-authenticate"))
# Their values change with each response, and would push repeating fields out of the table.
_NOT_INDEXED = frozenset(
    (
        *(b"content-length", b"etag", b"last-modified", b"expires", b"location", b"age"),
        *(b"x-request-id", b"content-range", b"link", b"traceparent"),
    )
)
_LITERALS_BOUND = 1024
_FIELD_BOUND = 512


class FieldDecoder(Decoder):
    """Decodes heads, and keeps the fields in `fields` instead of returning them to `h2`.

    `h2` would end the whole connection for a malformed field, but RFC 9113 section 8.1.1 wants only
    the stream to end. So it gets an empty list, and `head` judges the fields.

    max_header_list_size  bytes of a decoded head, with 32 for each field
    """

    def __init__(self, max_header_list_size: int) -> None:
        super().__init__(max_header_list_size)
        self.fields: list[Field] = []

    def decode(self, data: bytes, raw: bool = True) -> list[Field]:  # type: ignore[override]
        try:
            self.fields = list(super().decode(data, raw=True))
        except OversizedHeaderListError:
            raise  # `h2` has the right error code for it
        except HPACKError as error:
            # From here on the two ends' tables differ, and no later head could be read either, so
            # the connection ends (RFC 9113 section 4.3). `h2` would report a PROTOCOL_ERROR.
            raise GoAwayError(COMPRESSION_ERROR, ascii(str(error))[1:-1]) from error
        return []


class FieldEncoder:
    """Encodes response heads.

    Each field costs one look-up: in the static table, among the fields that this connection has
    sent before, or among the literals built for any connection. Huffman coding is not used: a
    repeated field is an index anyway, and other fields are too short to gain from it.
    """

    __slots__ = ("_entries", "_evicted", "_inserted", "_max", "_seen", "_size", "_sizes_told")

    # Encoded literals by field, with their size in the table. All connections share them.
    _literals: dict[Field, tuple[bytes, int]] = {}

    def __init__(self) -> None:
        self._max = TABLE_SIZE
        self._size = 0
        self._entries: deque[tuple[Field, int]] = deque()
        # Field to the running number of its entry, and the numbers of entries made and evicted.
        self._seen: dict[Field, int] = {}
        self._inserted = 0
        self._evicted = 0
        self._sizes_told: list[int] = []

    @property
    def header_table_size(self) -> int:
        """Bytes of the table; `h2` sets it to what the client allows."""
        return self._max

    @header_table_size.setter
    def header_table_size(self, size: int) -> None:
        size = min(size, TABLE_SIZE)
        if size != self._max:
            # Of several changes the smallest and the last must be sent (RFC 7541 section 4.2).
            self._sizes_told = [*[told for told in self._sizes_told if told < size][:1], size]
            self._max = size
            self._evict(0)

    def encode(self, headers: Iterable[Field], huffman: bool = True) -> bytes:
        """Encode a head.

        headers  the fields, all bytes, names in lower case
        huffman  ignored; `h2` passes it
        """
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
            # Too large for the table: it empties it and does not go in, as in the client's table.
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
    """Encode a field as a literal. Returns its size in the table, too; 0 if it is not indexed."""
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


# All indexed fields that can occur: an entry takes at least 32 bytes, which bounds the indices.
_INDEXED = [_integer(index, 7, 0x80) for index in range(_FIRST_DYNAMIC + TABLE_SIZE // 32 + 1)]
