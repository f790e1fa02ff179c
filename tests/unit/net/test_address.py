"""Parsing of addresses: their forms, and messages about their errors."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from servo.errors import ConfigError
from servo.net.address import (
    AbstractAddress,
    FdAddress,
    TCPAddress,
    UnixAddress,
    parse_address,
)


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("127.0.0.1:8000", TCPAddress("127.0.0.1", 8000)),
        ("localhost:80", TCPAddress("localhost", 80)),
        ("Example.ORG:80", TCPAddress("example.org", 80)),
        ("tcp://127.0.0.1:9", TCPAddress("127.0.0.1", 9)),
        ("0.0.0.0", TCPAddress("0.0.0.0", 8000)),
        (":8000", TCPAddress("0.0.0.0", 8000)),
        ("*:8000", TCPAddress("0.0.0.0", 8000)),
        (" 127.0.0.1:0 ", TCPAddress("127.0.0.1", 0)),
        ("[::1]:80", TCPAddress("::1", 80)),
        ("[::]", TCPAddress("::", 8000)),
        ("[fe80::1%eth0]:80", TCPAddress("fe80::1%eth0", 80)),
        ("::1", TCPAddress("::1", 8000)),
        ("2001:db8::1", TCPAddress("2001:db8::1", 8000)),
        ("2001:db8:0:0:0:0:0:1:8080", TCPAddress("2001:db8:0:0:0:0:0:1", 8080)),
        ("unix:/run/app.sock", UnixAddress("/run/app.sock")),
        ("unix:///run/app.sock", UnixAddress("/run/app.sock")),
        ("unix:app.sock", UnixAddress("app.sock")),
        ("unix:/with:colon and space", UnixAddress("/with:colon and space")),
        ("unix:@app", AbstractAddress("app")),
        ("unix://@app", AbstractAddress("app")),
        ("@app", AbstractAddress("app")),
        ("fd://3", FdAddress(3)),
    ],
)
def test_forms(text, address):
    assert parse_address(text) == address
    assert parse_address(str(address)) == address


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "host:port"),
        ("8000", "host:port"),
        ("localhost:", "port must be a number"),
        ("localhost:http", "port must be a number"),
        ("localhost:-1", "port must be a number"),
        ("localhost:65536", "65535"),
        ("localhost:\u0661", "port must be a number"),
        ("[::1", r"\[::1\]:8000"),
        ("[::1]80", r"\[::1\]:8000"),
        ("[localhost]:80", r"\[::1\]:8000"),
        ("::1:8000", r"is ambiguous.*\[::1\]:8000"),
        ("a:b:80", "neither"),
        ("/run/app.sock", "unix:/run"),
        ("http://localhost:80", "unix:/run"),
        ("local host:80", "not a host name"),
        ("user@host:80", "not a host name"),
        ("unix:", "needs a path"),
        ("unix:@", "needs a path"),
        ("unix:/a\0b", "NUL"),
        ("unix:/" + "x" * 107, "at most 107"),
        ("unix:@" + "x" * 107, "at most 106"),
        ("unix:/" + "\u00e9" * 54, "109 bytes"),
        ("fd://", "number of a file descriptor"),
        ("fd://-1", "number of a file descriptor"),
        ("fd://three", "number of a file descriptor"),
    ],
)
def test_refused_addresses_and_the_reasons(text, reason):
    with pytest.raises(ConfigError, match=reason) as caught:
        parse_address(text)
    assert repr(text) in str(caught.value)


@given(st.text(max_size=40) | st.from_regex(r"\A(unix:|fd://|@|\[?)[0-9a-f:/@.%\]]{0,20}\Z"))
def test_any_text_is_refused_or_read_back_the_same(text):
    try:
        address = parse_address(text)
    except ConfigError:
        return
    assert parse_address(str(address)) == address


@given(st.ip_addresses(), st.integers(0, 65535))
def test_every_literal_with_a_port_round_trips(ip, port):
    address = TCPAddress(str(ip), port)
    assert parse_address(str(address)) == address
