"""The default parser by itself. How it compares with h11 is in `test_parser_h11`."""

from __future__ import annotations

import gc

import pytest

from servo.http.errors import ProtocolError
from servo.http.h1.parser_httptools import HttptoolsFields

HEAD = b"GET / HTTP/1.1\r\nHost: h\r\nX-Case: Kept\r\n\r\n"


def test_one_object_parses_the_heads_of_a_connection() -> None:
    parse = HttptoolsFields()
    for _ in range(3):
        assert parse(HEAD) == [(b"host", b"h"), (b"x-case", b"Kept")]


def test_an_upgrade_is_a_head_like_any_other() -> None:
    parse = HttptoolsFields()
    fields = parse(b"GET / HTTP/1.1\r\nHost: h\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n")
    assert fields[1:] == [(b"connection", b"upgrade"), (b"upgrade", b"x")]
    assert parse(HEAD)[0] == (b"host", b"h")


def test_after_a_head_with_a_body_the_parser_has_to_be_renewed() -> None:
    """llhttp waits for the body, which it is never shown."""
    parse = HttptoolsFields()
    parse(b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 99\r\n\r\n")
    parse.renew()
    assert parse(HEAD)[0] == (b"host", b"h")


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
