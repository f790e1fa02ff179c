"""The default parser alone. `test_parser_h11` compares it with h11."""

from __future__ import annotations

import gc
import sys

import pytest

from servo.http.errors import ProtocolError
from servo.http.h1.parser_httptools import _NAMES, HttptoolsFields

HEAD = b"GET / HTTP/1.1\r\nHost: h\r\nX-Case: Kept\r\n\r\n"


def test_one_object_parses_the_heads_of_a_connection() -> None:
    parse = HttptoolsFields()
    for _ in range(3):
        fields = [(b"host", b"h"), (b"x-case", b"Kept")]
        assert parse(HEAD) == (fields, dict(fields))


def test_by_name_a_repeated_field_has_its_last_value() -> None:
    fields, named = HttptoolsFields()(b"GET / HTTP/1.1\r\nA: 1\r\nB: 2\r\na: 3\r\n\r\n")
    assert fields == [(b"a", b"1"), (b"b", b"2"), (b"a", b"3")]
    assert named == {b"a": b"3", b"b": b"2"}


def test_the_fields_of_an_idle_connection_are_released() -> None:
    parse = HttptoolsFields()
    kept = parse(HEAD)
    before = [sys.getrefcount(each) for each in kept]
    parse.forget()
    assert [sys.getrefcount(each) for each in kept] == [count - 1 for count in before]


def test_an_upgrade_is_a_head_like_any_other() -> None:
    parse = HttptoolsFields()
    fields, _ = parse(b"GET / HTTP/1.1\r\nHost: h\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n")
    assert fields[1:] == [(b"connection", b"upgrade"), (b"upgrade", b"x")]
    assert parse(HEAD)[0][0] == (b"host", b"h")


def test_after_a_head_with_a_body_the_parser_has_to_be_renewed() -> None:
    """llhttp waits for the body, which it is never shown."""
    parse = HttptoolsFields()
    parse(b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 99\r\n\r\n")
    parse.renew()
    assert parse(HEAD)[0][0] == (b"host", b"h")


@pytest.mark.parametrize("value", [b"close", b"Close", b"keep-alive, close"])
def test_a_field_that_ends_a_connection_only_for_llhttp(value: bytes) -> None:
    parse = HttptoolsFields()
    for _ in range(3):
        head = b"GET / HTTP/1.1\r\nHost: h\r\nProxy-Connection: %b\r\n\r\n" % value
        assert parse(head)[0] == [(b"host", b"h"), (b"proxy-connection", value)]
    with pytest.raises(ProtocolError):
        parse(b"GET / HTTP/1.1\r\nHost : h\r\n\r\n")


def test_names_that_are_remembered_are_bounded() -> None:
    parse = HttptoolsFields()
    long = b"n" * 65
    for i in range(2000):
        parse(b"GET / HTTP/1.1\r\nX-Name-%d: h\r\n%b: h\r\n\r\n" % (i, long))
    assert 0 < len(_NAMES) <= 1024
    assert long not in _NAMES


def test_a_malformed_head_is_a_400() -> None:
    with pytest.raises(ProtocolError) as caught:
        HttptoolsFields()(b"GET / HTTP/1.1\r\nHost : h\r\n\r\n")
    assert caught.value.status == 400


def test_it_is_freed_without_the_collector() -> None:
    def alive() -> int:
        return sum(type(each) is HttptoolsFields for each in gc.get_objects())

    gc.disable()
    try:
        before = alive()
        parse = HttptoolsFields()
        parse(HEAD)
        assert alive() == before + 1
        del parse
        assert alive() == before
    finally:
        gc.enable()
