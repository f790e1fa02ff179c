"""Both codecs against those of the `hpack` library."""

from __future__ import annotations

import pytest
from hpack import Decoder, Encoder
from hpack.exceptions import HPACKError
from hypothesis import given
from hypothesis import strategies as st

from servo.http.h2.frames import COMPRESSION_ERROR, ENHANCE_YOUR_CALM, GoAwayError
from servo.http.h2.hpack import _LITERALS, TABLE_SIZE, FieldDecoder, FieldEncoder

Field = tuple[bytes, bytes]

names = st.sampled_from([b":status", b"content-type", b"x-a", b"x-b", b"set-cookie", b"etag"])
values = st.binary(max_size=30) | st.sampled_from([b"200", b"text/plain", b"", b"v" * 600])
heads = st.lists(st.tuples(names, values), max_size=12)
sizes = st.lists(st.integers(0, 2 * TABLE_SIZE), max_size=3)


@given(st.lists(st.tuples(heads, sizes), max_size=12))
def test_what_is_encoded_is_what_is_decoded(
    session: list[tuple[list[tuple[bytes, bytes]], list[int]]],
) -> None:
    encoder, decoder = FieldEncoder(), Decoder()
    for fields, told in session:
        for size in told:
            encoder.header_table_size = size
            decoder.max_allowed_table_size = max(size, min(told))
        if told:
            decoder.max_allowed_table_size = max(told)
        decoded = decoder.decode(encoder.encode(fields), raw=True)
        assert [(bytes(name), bytes(value)) for name, value in decoded] == fields
        # Both sides have the same table, or the next head would be another.
        assert encoder._size == decoder.header_table._current_size


def test_what_repeats_is_one_byte() -> None:
    encoder = FieldEncoder()
    fields = [(b":status", b"200"), (b"content-type", b"text/html; charset=utf-8")]
    assert len(encoder.encode(fields)) > 20
    assert len(encoder.encode(fields)) == 2


def test_a_smaller_table_is_told() -> None:
    encoder, decoder = FieldEncoder(), Decoder()
    field = (b"x-a", b"b" * 100)
    decoder.decode(encoder.encode([field]), raw=True)
    encoder.header_table_size = 0
    encoder.header_table_size = 50
    assert encoder.encode([field])[:2] == bytes((0x20, 0x20 | 31))


def test_secrets_are_never_indexed() -> None:
    encoder = FieldEncoder()
    encoded = encoder.encode([(b"set-cookie", b"session=1")])
    assert encoded[0] & 0xF0 == 0x10
    assert (b"set-cookie", b"session=1") not in _LITERALS


@given(st.lists(st.tuples(heads, st.booleans(), sizes), min_size=1, max_size=12))
def test_decoded_is_what_the_hpack_library_has_encoded(
    session: list[tuple[list[Field], bool, list[int]]],
) -> None:
    encoder, decoder = Encoder(), FieldDecoder(100_000)
    for fields, huffman, told in session:
        # One size for each head: of two equal ones, the library's encoder sends none.
        if told and told[0] != encoder.header_table_size:
            encoder.header_table_size = min(told[0], TABLE_SIZE)
        assert decoder.decode(encoder.encode(fields, huffman=huffman)) == fields
        assert decoder.table_size == encoder.header_table._current_size


@given(st.lists(st.binary(max_size=40), min_size=1, max_size=4))
def test_any_bytes_are_decoded_as_by_the_hpack_library(blocks: list[bytes]) -> None:
    """Both take the same fields from the same bytes, or both refuse them."""
    judge, decoder = Decoder(100_000), FieldDecoder(100_000)
    for block in blocks:
        try:
            expected = judge.decode(block, raw=True)
        except HPACKError:
            with pytest.raises(GoAwayError):
                decoder.decode(block)
            return
        assert decoder.decode(block) == [(bytes(name), bytes(value)) for name, value in expected]
        assert decoder.table_size == judge.header_table._current_size


@given(st.binary(max_size=40))
def test_any_huffman_string_is_decoded_as_by_the_hpack_library(text: bytes) -> None:
    block = b"\x00\x01a" + bytes((0x80 | len(text),)) + text
    try:
        ((_, value),) = Decoder().decode(block, raw=True)
    except HPACKError:
        value = None
    try:
        ((_, found),) = FieldDecoder(1000).decode(block)
    except GoAwayError:
        assert value is None
    else:
        assert found == value


@pytest.mark.parametrize(
    ("block", "code"),
    [
        (b"\x80", COMPRESSION_ERROR),  # index 0
        (b"\xbe", COMPRESSION_ERROR),  # beyond the table
        (b"\x7f", COMPRESSION_ERROR),  # an integer that does not go on
        (b"\xff\xff\xff\xff\xff\xff", COMPRESSION_ERROR),  # one without end
        (b"\x00\x05a", COMPRESSION_ERROR),  # a name that is cut off
        (b"\x00\x01a", COMPRESSION_ERROR),  # no value
        (b"\x82\x20", COMPRESSION_ERROR),  # a table size after a field
        (b"\x3f\xe2\x1f", COMPRESSION_ERROR),  # 4097
        (b"\x00\x01a\x81\x1c", COMPRESSION_ERROR),  # padded with zeros
        (b"\x00\x01a\x84\xff\xff\xff\xff", COMPRESSION_ERROR),  # the end of string
        (b"\x40\x01a\x7f\x81\x07" + b"x" * 1024 + b"\xbe" * 64, ENHANCE_YOUR_CALM),
    ],
)
def test_what_can_not_be_decoded(block: bytes, code: int) -> None:
    with pytest.raises(GoAwayError) as caught:
        FieldDecoder(60_000).decode(block)
    assert caught.value.code == code


def test_literals_are_bounded() -> None:
    encoder = FieldEncoder()
    for number in range(3000):
        encoder.encode([(b"x-a", b"%d" % number), (b"x-b", b"v" * 600), (b"etag", b"%d" % number)])
    assert len(_LITERALS) <= 1024
    assert max(len(literal) for literal, _ in _LITERALS.values()) <= 512
    assert not any(name == b"etag" for name, _ in _LITERALS)
    assert encoder._size <= TABLE_SIZE
    assert len(encoder._seen) <= len(encoder._entries) <= TABLE_SIZE // 32
