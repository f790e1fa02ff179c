"""The fields of HTTP/2 heads, without a connection."""

from __future__ import annotations

import pytest
from h2cases import MALFORMED, REFUSED
from h2frames import GET, POST
from hypothesis import given
from hypothesis import strategies as st

from servo.http.errors import ProtocolError
from servo.http.h2.head import _CHECKED, MalformedError, glimpse, read_head, read_trailers
from servo.http.headers import VALID_HOSTS
from servo.http.limits import Limits

Fields = list[tuple[bytes, bytes]]


def encoded(fields: list[tuple[str, str]]) -> Fields:
    return [(name.encode("latin-1"), value.encode("latin-1")) for name, value in fields]


def test_a_head_becomes_a_request() -> None:
    fields = encoded([*POST[:-1], (":path", "/a?b=c"), ("x-a", "1"), ("content-length", "3")])
    request = read_head(fields, False, Limits(), False)
    assert (request.method, request.target, request.path, request.query) == (
        "POST",
        b"/a?b=c",
        b"/a",
        b"b=c",
    )
    assert request.version == "2"
    assert request.headers == [(b"host", b"h"), (b"x-a", b"1"), (b"content-length", b"3")]
    assert request.more_body
    assert request.content_length == 3


@pytest.mark.parametrize("fields", MALFORMED.values(), ids=MALFORMED)
def test_malformed(fields: list[tuple[str, str]]) -> None:
    with pytest.raises(MalformedError):
        read_head(encoded(fields), True, Limits(), False)


@pytest.mark.parametrize("ended", [True, False])
@pytest.mark.parametrize(("status", "fields"), REFUSED.values(), ids=REFUSED)
def test_refused_with_a_status(status: int, fields: list[tuple[str, str]], ended: bool) -> None:
    with pytest.raises(ProtocolError) as caught:
        read_head(encoded(fields), ended, Limits(header_total=60_000), False)
    assert not isinstance(caught.value, MalformedError)
    assert caught.value.status == status


some_fields = st.sampled_from(
    [
        *(*GET, *POST, ("accept", "*/*"), ("a", "b"), ("te", "trailers"), ("te", "gzip")),
        *(("upgrade", "h2c"), ("host", "h"), ("host", "i"), ("a b", "c"), ("a", "b\n")),
        *((":authority", "a b"), (":scheme", "h"), (":path", "h"), ("a", "h"), ("A", "b")),
        *(("a", " b"), ("cookie", "a=b")),
    ]
)
some_heads = st.one_of(
    st.lists(some_fields, max_size=8),
    st.lists(some_fields, max_size=4).map(lambda more: [*GET, *more]),
)


@given(st.lists(some_heads, max_size=10))
def test_remembered_fields_change_nothing(session: list[list[tuple[str, str]]]) -> None:
    forget()
    for fields in session:
        warm = outcome(encoded(fields))
        kept = set(_CHECKED), set(VALID_HOSTS)
        forget()
        assert outcome(encoded(fields)) == warm
        _CHECKED.update(kept[0])
        VALID_HOSTS.update(kept[1])


def forget() -> None:
    _CHECKED.clear()
    VALID_HOSTS.clear()


def outcome(fields: Fields) -> object:
    try:
        request = read_head(fields, True, Limits(), False)
    except ProtocolError as error:
        return type(error), error.status, error.reason
    return request.method, request.target, request.headers, request.upgrade, request.keep_alive


def test_what_is_remembered_is_bounded_and_no_secret() -> None:
    for number in range(3000):
        fields = [*GET, ("x-id", str(number)), ("cookie", f"a={number}"), ("x", "y" * 300)]
        read_head(encoded(fields), True, Limits(), False)
    assert 0 < len(_CHECKED) <= 1024
    assert {name for name, _ in _CHECKED} == {b"x-id"}


def test_cookies_are_joined() -> None:
    fields = encoded([*GET, ("cookie", "a=b"), ("x", "y"), ("cookie", "c=d")])
    request = read_head(fields, True, Limits(), False)
    assert request.headers == [(b"host", b"h"), (b"x", b"y"), (b"cookie", b"a=b; c=d")]


def test_an_extended_connect_is_a_request_for_an_upgrade() -> None:
    fields = encoded([(":method", "CONNECT"), (":protocol", "websocket"), *GET[1:]])
    request = read_head(fields, False, Limits(), True)
    assert (request.method, request.upgrade) == ("CONNECT", b"websocket")


def test_trailers() -> None:
    kept = read_trailers([(b"x-sum", b"1"), (b"authorization", b"secret")], Limits())
    assert kept == [(b"x-sum", b"1")]
    with pytest.raises(MalformedError):
        read_trailers([(b":path", b"/")], Limits())
    with pytest.raises(ProtocolError) as caught:
        read_trailers([(b"a", b"b")] * 2, Limits(trailer_count=1))
    assert caught.value.status == 431


def test_a_glimpse_of_a_refused_head() -> None:
    assert glimpse(encoded(GET)) == ("GET", b"/")
    assert glimpse([(b":method", b"G T")]) == ("", b"")
    assert glimpse([(b":method", b"GET"), (b":method", b"PUT")]) == ("GET", b"")
