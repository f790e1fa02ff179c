"""The encoder of response heads against the `hpack` library's decoder."""

from __future__ import annotations

from hpack import Decoder, Encoder
from hypothesis import given
from hypothesis import strategies as st

from servo.http.h2.hpack import TABLE_SIZE, FieldDecoder, FieldEncoder

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
    assert (b"set-cookie", b"session=1") not in FieldEncoder._literals


def test_the_decoder_keeps_the_fields() -> None:
    keeper = FieldDecoder(1000)
    assert keeper.decode(bytes((0x82, 0x84))) == []
    assert keeper.fields == [(b":method", b"GET"), (b":path", b"/")]


@given(st.lists(heads, min_size=1, max_size=12))
def test_a_table_of_earlier_fields_gives_the_same_fields(session: list[list[Field]]) -> None:
    encoder, keeper = Encoder(), FieldDecoder(100_000)
    for fields in session:
        keeper.decode(encoder.encode(fields))
        assert keeper.fields == fields
        assert keeper.header_table._current_size <= TABLE_SIZE


def test_literals_are_bounded() -> None:
    encoder = FieldEncoder()
    for number in range(3000):
        encoder.encode([(b"x-a", b"%d" % number), (b"x-b", b"v" * 600), (b"etag", b"%d" % number)])
    assert len(FieldEncoder._literals) <= 1024
    assert max(len(literal) for literal, _ in FieldEncoder._literals.values()) <= 512
    assert not any(name == b"etag" for name, _ in FieldEncoder._literals)
    assert encoder._size <= TABLE_SIZE
    assert len(encoder._seen) <= len(encoder._entries) <= TABLE_SIZE // 32
