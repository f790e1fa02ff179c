"""The client's address, and the proxies that may set it."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from servo.http.errors import ProtocolError
from servo.http.forwarded import FIELDS, ClientInfo, TrustedPeers, resolve_client

PROXY = ("127.0.0.1", 50000)


def resolve(
    *lines: str,
    peer: tuple[str, int] | None = PROXY,
    trusted: str = "127.0.0.1,10.0.0.0/8",
    fields: tuple[str, ...] = FIELDS,
) -> ClientInfo:
    headers = []
    for line in lines:
        name, _, value = line.encode("latin-1").partition(b": ")
        headers.append((name.lower(), value))
    return resolve_client(headers, peer, TrustedPeers(trusted, fields=fields))


@pytest.mark.parametrize(
    ("cidrs", "trusts", "distrusts"),
    [
        ("127.0.0.1,::1", ["127.0.0.1", "::1", None, "", "::ffff:127.0.0.1"], ["127.0.0.2", "x"]),
        ("10.0.0.0/8", ["10.1.2.3", "::ffff:10.1.2.3"], ["11.0.0.1", "::1", None]),
        ("10.0.0.1/8", ["10.1.2.3"], ["11.0.0.1"]),
        (" 10.0.0.1 , 2001:db8::/32 ", ["10.0.0.1", "2001:db8::5"], ["2001:db9::1", None]),
        ("*", ["1.2.3.4", "::5", None], []),
        ("unix", [None, ""], ["127.0.0.1"]),
        ("", [], ["127.0.0.1", None]),
    ],
)
def test_trusted_peers(cidrs: str, trusts: list[str | None], distrusts: list[str | None]) -> None:
    trusted = TrustedPeers(cidrs)
    for _ in range(2):
        assert [host for host in trusts if host not in trusted] == []
        assert [host for host in distrusts if host in trusted] == []


def test_trusted_peers_as_a_list() -> None:
    assert "10.0.0.1" in TrustedPeers(["10.0.0.1", "unix"])


def test_invalid_network() -> None:
    with pytest.raises(ValueError, match="example"):
        TrustedPeers("example.org")


def test_what_is_known_of_peers_is_bounded() -> None:
    trusted = TrustedPeers("10.0.0.0/8")
    for i in range(10_000):
        assert f"11.0.{i >> 8}.{i & 255}" not in trusted
    assert len(trusted._known) <= 4096


LINES = [
    (name, value)
    for name, values in {
        b"x-forwarded-for": [b"1.2.3.4", b"1.2.3.4, 10.0.0.1", b"10.0.0.1", b"unknown", b""],
        b"x-forwarded-proto": [b"https", b"http", b"HTTPS", b"wss", b"https, http", b""],
        b"x-forwarded-ssl": [b"on", b"off", b"https"],
        b"x-forwarded-host": [b"a.example", b"a.example, b.example"],
        b"x-forwarded-prefix": [b"/p"],
        b"forwarded": [b"for=1.2.3.4", b"for=5.6.7.8;proto=https", b"host=c.example", b"="],
        b"host": [b"a.example"],
    }.items()
    for value in values
]


@given(
    requests=st.lists(st.lists(st.sampled_from(LINES), max_size=4), max_size=30),
    fields=st.sets(st.sampled_from(FIELDS)),
    peer=st.sampled_from([PROXY, ("10.0.0.9", 1), ("192.0.2.1", 1), None]),
    scheme=st.sampled_from(["http", "https"]),
)
@example(
    requests=[[(b"x-forwarded-proto", b"https"), (b"x-forwarded-ssl", b"off")]],
    fields=set(FIELDS),
    peer=PROXY,
    scheme="http",
)
def test_warm_as_cold(
    requests: list[list[tuple[bytes, bytes]]],
    fields: set[str],
    peer: tuple[str, int] | None,
    scheme: str,
) -> None:
    def judge(headers: list[tuple[bytes, bytes]], trusted: TrustedPeers) -> object:
        try:
            return resolve_client(headers, peer, trusted, scheme)
        except ProtocolError as error:
            return error.reason

    cidrs = "127.0.0.1,10.0.0.0/8,unix"
    warm = TrustedPeers(cidrs, fields=fields)
    for proto in (b"http", b"https"):
        judge([LINES[0], (b"x-forwarded-proto", proto)], warm)
    for headers in [each for drawn in requests for each in (drawn, [LINES[0], *drawn])]:
        assert judge(headers, warm) == judge(headers, TrustedPeers(cidrs, fields=fields))


def test_clients_that_are_remembered_are_bounded() -> None:
    trusted = TrustedPeers("*")
    for i in range(10_000):
        value = b"11.0.%d.%d" % (i >> 8, i & 255)
        resolve_client([(b"x-forwarded-for", value)], PROXY, trusted)
    long = b", ".join([b"1.2.3.4"] * 20)
    resolve_client([(b"x-forwarded-for", long)], PROXY, trusted)
    assert 0 < len(trusted._clients["http"]) <= 4096
    assert long not in trusted._clients["http"]


def test_nothing_forwarded() -> None:
    assert resolve("Host: h") == ClientInfo(PROXY, "http", None, "")


def test_untrusted_peer_says_nothing() -> None:
    peer = ("192.0.2.1", 1)
    claims = ["X-Forwarded-For: 1.2.3.4", "X-Forwarded-Proto: https", "Forwarded: for=5.6.7.8"]
    assert resolve(*claims, peer=peer) == ClientInfo(peer, "http", None, "")


def test_contradictions_of_an_untrusted_peer_do_not_matter() -> None:
    claims = ["X-Forwarded-Proto: https", "X-Forwarded-Ssl: off", "Forwarded: ="]
    assert resolve(*claims, peer=("192.0.2.1", 1)).scheme == "http"


def test_unix_peer() -> None:
    assert resolve("X-Forwarded-For: 1.2.3.4", peer=None).address is None
    info = resolve("X-Forwarded-For: 1.2.3.4", peer=None, trusted="unix")
    assert info.address == ("1.2.3.4", 0)


@pytest.mark.parametrize(
    ("value", "address"),
    [
        ("1.2.3.4", ("1.2.3.4", 0)),
        ("1.2.3.4:567", ("1.2.3.4", 567)),
        ("2001:DB8::1", ("2001:db8::1", 0)),
        ("[2001:db8::1]:567", ("2001:db8::1", 567)),
        ("[2001:db8::1]", ("2001:db8::1", 0)),
        ("::ffff:1.2.3.4", ("1.2.3.4", 0)),
        # The client's own claim stands left of what the proxy saw.
        ("9.9.9.9, 1.2.3.4", ("1.2.3.4", 0)),
        ("9.9.9.9, 1.2.3.4, 10.0.0.1", ("1.2.3.4", 0)),
        ("1.2.3.4,10.0.0.1 ,\t10.0.0.2", ("1.2.3.4", 0)),
        ("10.0.0.3, 10.0.0.2", ("10.0.0.3", 0)),
        ("garbage, 1.2.3.4", ("1.2.3.4", 0)),
        ("1.2.3.4, garbage", PROXY),
        ("1.2.3.4, unknown, 10.0.0.1", ("10.0.0.1", 0)),
        ("1.2.3.4:99999", ("1.2.3.4", 0)),
        ("1.2.3.4.5", PROXY),
        ("", PROXY),
        (" , ", PROXY),
    ],
)
def test_forwarded_for(value: str, address: tuple[str, int]) -> None:
    assert resolve(f"X-Forwarded-For: {value}").address == address


def test_forwarded_for_in_several_fields_is_one_list() -> None:
    info = resolve("X-Forwarded-For: 9.9.9.9", "X-Forwarded-For: 1.2.3.4, 10.0.0.1")
    assert info.address == ("1.2.3.4", 0)


def test_everyone_trusted_goes_to_the_left_end() -> None:
    info = resolve("X-Forwarded-For: 9.9.9.9, 1.2.3.4", trusted="*")
    assert info.address == ("9.9.9.9", 0)


def test_hops_are_bounded() -> None:
    for line in ("X-Forwarded-For: " + "1.2.3.4," * 100, "Forwarded: " + "for=1.2.3.4," * 100):
        with pytest.raises(ProtocolError, match="hops"):
            resolve(line)


@pytest.mark.parametrize(
    ("lines", "scheme"),
    [
        (["X-Forwarded-Proto: https"], "https"),
        (["X-Forwarded-Proto: HTTPS"], "https"),
        (["X-Forwarded-Proto: wss"], "https"),
        (["X-Forwarded-Proto: http"], "http"),
        (["X-Forwarded-Proto: gopher"], "http"),
        (["X-Forwarded-Protocol: ssl"], "https"),
        (["X-Forwarded-Ssl: on"], "https"),
        (["X-Forwarded-Ssl: off"], "http"),
        (["X-Forwarded-Proto: https, https"], "https"),
        (["X-Forwarded-Proto: https", "X-Forwarded-Proto: https"], "https"),
        (["X-Forwarded-Proto: https", "X-Forwarded-Ssl: on"], "https"),
        (["Forwarded: proto=https"], "https"),
        (["Forwarded: for=1.2.3.4;Proto=HTTPS"], "https"),
        (["Forwarded: proto=https", "X-Forwarded-Proto: https"], "https"),
    ],
)
def test_scheme(lines: list[str], scheme: str) -> None:
    assert resolve(*lines).scheme == scheme


def test_scheme_may_be_taken_back() -> None:
    headers = [(b"x-forwarded-proto", b"http")]
    assert resolve_client(headers, PROXY, TrustedPeers(), "https").scheme == "http"
    assert resolve_client([], PROXY, TrustedPeers(), "https").scheme == "https"


def test_scheme_headers_can_be_others() -> None:
    trusted = TrustedPeers(scheme_headers={b"x-https": b"1"})
    headers = [(b"x-https", b"1"), (b"x-forwarded-proto", b"http")]
    assert resolve_client(headers, PROXY, trusted).scheme == "https"


@pytest.mark.parametrize(
    "lines",
    [
        ["X-Forwarded-Proto: https", "X-Forwarded-Ssl: off"],
        ["X-Forwarded-Proto: https", "X-Forwarded-Proto: http"],
        ["X-Forwarded-Proto: http, https"],
        ["X-Forwarded-Protocol: ssl", "X-Forwarded-Proto: http"],
        ["Forwarded: proto=http", "X-Forwarded-Proto: https"],
        ["Forwarded: for=1.2.3.4", "X-Forwarded-For: 4.3.2.1"],
        ["Forwarded: host=a", "X-Forwarded-Host: b"],
        ["X-Forwarded-Host: a b"],
        ["X-Forwarded-Host: a/b"],
        ['Forwarded: host="a/b"'],
        ["Forwarded: proto=gopher"],
        ["X-Forwarded-Prefix: app"],
        ["X-Forwarded-Prefix: //evil"],
        ["X-Forwarded-Prefix: /a/../b"],
        ["X-Forwarded-Prefix: /a b"],
        ["X-Forwarded-Prefix: /a%2f"],
        ["Forwarded: for"],
        ["Forwarded: for="],
        ["Forwarded: for=1.2.3.4 for=5.6.7.8"],
        ["Forwarded: for=1.2.3.4;for=5.6.7.8"],
        ['Forwarded: for="1.2.3.4'],
        ['Forwarded: for="1.2.3.4, for=5.6.7.8'],
        ["Forwarded: for=1.2.3.4/5"],
        ["Forwarded: (for=1.2.3.4)"],
    ],
)
def test_refused(lines: list[str]) -> None:
    with pytest.raises(ProtocolError) as caught:
        resolve(*lines)
    assert caught.value.status == 400


@pytest.mark.parametrize(
    ("value", "address", "host"),
    [
        ("for=1.2.3.4", ("1.2.3.4", 0), None),
        ('For="1.2.3.4:567"', ("1.2.3.4", 567), None),
        ("for=1.2.3.4:567", ("1.2.3.4", 567), None),
        ('for="[2001:db8::1]:567"', ("2001:db8::1", 567), None),
        ('for="[2001:db8::1]"', ("2001:db8::1", 0), None),
        ("for=9.9.9.9, for=1.2.3.4;host=a;by=10.0.0.1", ("1.2.3.4", 0), b"a"),
        ("for=1.2.3.4;host=a, for=10.0.0.1;host=b", ("1.2.3.4", 0), b"a"),
        ("for=1.2.3.4 ; host=a , ,for=10.0.0.1", ("1.2.3.4", 0), b"a"),
        ('for="1.2.3.4";host="a\\:80"', ("1.2.3.4", 0), b"a:80"),
        ("for=unknown", PROXY, None),
        ("for=_hidden;host=a", PROXY, b"a"),
        ("host=a", PROXY, b"a"),
        ('for=1.2.3.4;x="a,b;c=d"', ("1.2.3.4", 0), None),
        ("", PROXY, None),
    ],
)
def test_forwarded(value: str, address: tuple[str, int], host: bytes | None) -> None:
    info = resolve(f"Forwarded: {value}")
    assert (info.address, info.host) == (address, host)


def test_forwarded_in_several_fields_is_one_list() -> None:
    info = resolve("Forwarded: for=9.9.9.9", "Forwarded: for=1.2.3.4, for=10.0.0.1")
    assert info.address == ("1.2.3.4", 0)


def test_both_kinds_may_agree() -> None:
    info = resolve(
        "Forwarded: for=1.2.3.4;proto=https;host=a",
        "X-Forwarded-For: 1.2.3.4",
        "X-Forwarded-Proto: https",
        "X-Forwarded-Host: a",
    )
    assert info == ClientInfo(("1.2.3.4", 0), "https", b"a", "")


def test_host_and_prefix_of_the_hop_next_to_the_client() -> None:
    info = resolve(
        "X-Forwarded-For: 1.2.3.4, 10.0.0.1",
        "X-Forwarded-Host: evil, outer, inner",
        "X-Forwarded-Prefix: /evil, /outer/, /inner",
    )
    assert (info.host, info.prefix) == (b"outer", "/outer")


@pytest.mark.parametrize(("value", "prefix"), [("/", ""), ("/a", "/a"), ("/a/b/", "/a/b")])
def test_prefix(value: str, prefix: str) -> None:
    assert resolve(f"X-Forwarded-Prefix: {value}").prefix == prefix


CLAIMS = (
    "X-Forwarded-For: 1.2.3.4",
    "X-Forwarded-Proto: https",
    "X-Forwarded-Host: evil.example",
    "X-Forwarded-Prefix: /evil",
    "Forwarded: for=1.2.3.4;proto=https;host=evil.example",
)


def test_by_default_a_proxy_is_believed_about_address_and_scheme_alone() -> None:
    headers = [
        (name.lower(), value)
        for name, _, value in (line.encode().partition(b": ") for line in CLAIMS)
    ]
    info = resolve_client(headers, PROXY, TrustedPeers("127.0.0.1"))
    assert info == ClientInfo(("1.2.3.4", 0), "https", None, "")


@pytest.mark.parametrize(
    ("fields", "info"),
    [
        ((), ClientInfo(PROXY, "http", None, "")),
        (("for",), ClientInfo(("1.2.3.4", 0), "http", None, "")),
        (("proto",), ClientInfo(PROXY, "https", None, "")),
        (("host",), ClientInfo(PROXY, "http", b"evil.example", "")),
        (("prefix",), ClientInfo(PROXY, "http", None, "/evil")),
        (FIELDS, ClientInfo(("1.2.3.4", 0), "https", b"evil.example", "/evil")),
    ],
)
def test_each_field_is_believed_only_if_it_is_named(
    fields: tuple[str, ...], info: ClientInfo
) -> None:
    assert resolve(*CLAIMS, fields=fields) == info
    assert resolve(*CLAIMS[-1:], fields=fields)._replace(prefix=info.prefix) == info


@pytest.mark.parametrize(
    "lines",
    [
        ["X-Forwarded-Host: a b"],
        ["X-Forwarded-Host: a", "Forwarded: host=b"],
        ["X-Forwarded-Prefix: //evil"],
        ['Forwarded: host="a/b"'],
    ],
)
def test_nothing_is_refused_for_a_field_that_is_not_believed(lines: list[str]) -> None:
    assert resolve(*lines, fields=("for", "proto")) == ClientInfo(PROXY, "http", None, "")


def test_other_fields_say_nothing() -> None:
    """However a proxy's documentation praises them: nobody has asked for them."""
    lines = (
        "X-Forwarded-Port: 444",
        "X-Forwarded-Server: evil.example",
        "X-Forwarded-Scheme: https",
        "X-Forwarded-By: 1.2.3.4",
        "X-Real-IP: 1.2.3.4",
        "X-Client-IP: 1.2.3.4",
        "X-Scheme: https",
        "X-Url-Scheme: https",
        "Front-End-Https: on",
        "X-Script-Name: /evil",
        "X_Forwarded_For: 1.2.3.4",
    )
    assert resolve(*lines) == ClientInfo(PROXY, "http", None, "")
