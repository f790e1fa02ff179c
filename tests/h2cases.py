"""Heads that are malformed by RFC 9113 section 8, and heads that are refused with a status."""

from __future__ import annotations

from h2frames import GET, POST


def without(name: str) -> list[tuple[str, str]]:
    return [field for field in GET if field[0] != name]


MALFORMED = {
    "no method": without(":method"),
    "no scheme": without(":scheme"),
    "no path": without(":path"),
    "empty path": [*without(":path"), (":path", "")],
    "empty authority": [*without(":authority"), (":authority", "")],
    "method twice": [GET[0], *GET],
    "unknown pseudo": [*GET, (":status", "200")],
    "pseudo of RFC 8441 unasked": [*GET, (":protocol", "websocket")],
    "pseudo behind a field": [*without(":path"), ("a", "b"), (":path", "/")],
    "upper case": [*GET, ("Accept", "*/*")],
    "empty name": [*GET, ("", "x")],
    "space in name": [*GET, ("a b", "x")],
    "colon in name": [*GET, ("a:b", "x")],
    "NUL in name": [*GET, ("a\0", "x")],
    "LF in name": [*GET, ("a\nb", "x")],
    "high byte in name": [*GET, ("\xe4", "x")],
    "NUL in value": [*GET, ("a", "x\0y")],
    "CR in value": [*GET, ("a", "x\ry")],
    "LF in value": [*GET, ("a", "x\ny")],
    "DEL in value": [*GET, ("a", "x\x7f")],
    "leading space": [*GET, ("a", " x")],
    "trailing tab": [*GET, ("a", "x\t")],
    "trailing space, not last": [*GET, ("a", "x "), ("b", "y")],
    "LF in path": [*without(":path"), (":path", "/a\nb")],
    "CRLF in authority": [*without(":authority"), (":authority", "a\r\nb: c")],
    "Connection": [*GET, ("connection", "keep-alive")],
    "Proxy-Connection": [*GET, ("proxy-connection", "close")],
    "Keep-Alive": [*GET, ("keep-alive", "timeout=5")],
    "Upgrade": [*GET, ("upgrade", "h2c")],
    "Transfer-Encoding": [*GET, ("transfer-encoding", "chunked")],
    "TE: gzip": [*GET, ("te", "gzip")],
    "TE: trailers, gzip": [*GET, ("te", "trailers, gzip")],
    "Host is another": [*GET, ("host", "other")],
    "CONNECT with a path": [(":method", "CONNECT"), (":authority", "h:1"), (":path", "/")],
    "CONNECT with a scheme": [(":method", "CONNECT"), (":authority", "h:1"), (":scheme", "http")],
    "CONNECT to nowhere": [(":method", "CONNECT")],
    "body announced and missing": [*POST, ("content-length", "1")],
}


REFUSED = {
    "CONNECT": (501, [(":method", "CONNECT"), (":authority", "h:443")]),
    "CONNECT without a port": (400, [(":method", "CONNECT"), (":authority", "h")]),
    "space in method": (400, [(":method", "GE T"), *GET[1:]]),
    "lower-case method": (501, [(":method", "get"), *GET[1:]]),
    "space in path": (400, [*without(":path"), (":path", "/a b")]),
    "fragment in path": (400, [*without(":path"), (":path", "/a#b")]),
    "absolute path": (400, [*without(":path"), (":path", "http://h/")]),
    "path without a slash": (400, [*without(":path"), (":path", "a")]),
    "asterisk": (400, [*without(":path"), (":path", "*")]),
    "scheme": (400, [*without(":scheme"), (":scheme", "ftp")]),
    "no authority at all": (400, without(":authority")),
    "authority": (400, [*without(":authority"), (":authority", "a/b")]),
    "userinfo": (400, [*without(":authority"), (":authority", "u:p@h")]),
    "port": (400, [*without(":authority"), (":authority", "h:70000")]),
    "two hosts": (400, [*without(":authority"), ("host", "h"), ("host", "h")]),
    "two lengths": (400, [*POST, ("content-length", "1"), ("content-length", "1")]),
    "length": (400, [*POST, ("content-length", "+1")]),
    "length of two": (400, [*POST, ("content-length", "1, 1")]),
    "expectation": (417, [*GET, ("expect", "the-unexpected")]),
    "many fields": (431, [*GET, *[(f"a{i}", "b") for i in range(101)]]),
    "long field": (431, [*GET, ("a", "b" * 8190)]),
    "long fields": (431, [*GET, *[(f"a{i}", "b" * 7000) for i in range(9)]]),
    "long method": (501, [*without(":method"), (":method", "A" * 9000)]),
    "quote in the path": (400, [*without(":path"), (":path", '/"?a')]),
    "fragment": (400, [*without(":path"), (":path", "/?a#b")]),
    "long path": (414, [*without(":path"), (":path", "/" + "a" * 8190)]),
}
