"""The tables of RFC 7541 against those of the `hpack` library."""

from __future__ import annotations

from hpack.huffman_constants import REQUEST_CODES, REQUEST_CODES_LENGTH
from hpack.table import HeaderTable

from servo.http.h2.hpack_tables import (
    FAILED,
    HAS_SYMBOL,
    MAY_END,
    STATE_SHIFT,
    STATIC_FIELDS,
    decoding_table,
)


def test_the_static_fields() -> None:
    assert tuple(STATIC_FIELDS) == HeaderTable.STATIC_TABLE


def test_each_code_leads_to_its_symbol() -> None:
    """Each symbol, from its first bit on, followed by ones up to a multiple of four bits."""
    table = decoding_table()
    for symbol in range(256):
        length = REQUEST_CODES_LENGTH[symbol]
        spare = -length % 4
        code = (REQUEST_CODES[symbol] + 1 << spare) - 1
        found = []
        entry = 0
        for shift in range(length + spare - 4, -1, -4):
            entry = table[(entry >> STATE_SHIFT) << 4 | code >> shift & 15]
            assert entry != FAILED
            if entry & HAS_SYMBOL:
                found.append(entry & 0xFF)
        assert found == [symbol]
        assert entry & MAY_END


def test_the_end_of_string_is_no_code() -> None:
    table = decoding_table()
    entry = 0
    for _ in range(7):
        entry = table[(entry >> STATE_SHIFT) << 4 | 15]
    assert entry != FAILED
    assert not entry & MAY_END
    assert table[(entry >> STATE_SHIFT) << 4 | 15] == FAILED
