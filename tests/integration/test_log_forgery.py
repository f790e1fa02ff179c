"""No request can forge a line or a field of the access log, in any format, or of the error log."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from integration.conftest import class_args
from integration.raw import connect, request
from integration.server import Server, wait_for

pytestmark = pytest.mark.slow

Serve = Callable[..., Server]

EVERYTHING = (
    '%(h)s %(l)s %(u)s %(t)s "%(r)s" "%(m)s" "%(U)s" "%(q)s" "%(H)s" %(s)s %(b)s "%(f)s" "%(a)s"'
    ' "%({x-forged}i)s" "%({host}i)s" "%({cookie}i)s" "%({x-forwarded-for}i)s"'
    ' "%({content-type}o)s" "%({PATH_INFO}e)s" "%({HTTP_X_FORGED}e)s"'
)
FORMATS = {
    "default": (),
    "every atom": ("--access-logformat", EVERYTHING),
    "json": ("--access-logformat", "json"),
}
LINE = b'127.0.0.1 - - [01/Jan/2026:00:00:00 +0000] "GET /forged HTTP/1.1" 200 2 "-" "-"'
# What might end a line, or a quoted field, to some reader: controls, separators, UTF-8, quotes.
BREAKS = [
    b"\r\n", b"\n", b"\r", b"\0", b"\x0b", b"\x0c", b"\x1b[2K", b"\x1c", b"\x85", b"\x9b", b"\xa0",
    b"\xe2\x80\xa8", b"\xe2\x80\xa9", b"\xc2\x85", b'"', b"\\", b'\\"', b'" 200 2 "',
    b"%0a", b"%0d%0a",
]  # fmt: skip
PLACES = [
    b"GET /%b%b HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n",
    b"GET /?%b%b HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n",
    b"G%b%b / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n",
    b"GET / HTTP/1.1%b%b\r\nHost: a\r\nConnection: close\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: a%b%b\r\nConnection: close\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\nUser-Agent: %b%b\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\nReferer: %b%b\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\nX-Forged: %b%b\r\nCookie: a=b\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\nX-Forwarded-For: %b%b\r\n\r\n",
    b"POST /echo HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Type: a%b%b\r\n"
    b"Content-Length: 0\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\nAuthorization: Basic %b%b\r\n\r\n",
]


@pytest.mark.parametrize("layout", FORMATS)
def test_no_line_of_its_own(serve: Serve, tmp_path: Path, worker_class: str, layout: str) -> None:
    path = tmp_path / "access.log"
    server = serve(
        *class_args(worker_class), *("-w", "1", "--access-logfile", str(path), *FORMATS[layout])
    )
    sent = 0
    for place in PLACES:
        for separator in BREAKS:
            with connect(server) as client:
                client.sendall(place % (separator, LINE))
                wait_end(client)
            sent += 1
    # And one through the credentials' base64, which hides what is in it from the parser.
    with connect(server) as client:
        client.sendall(request("/", "Authorization: Basic YQpGT1JHRUQgIiAyMDA6eA=="))
        wait_end(client)
    sent += 1
    wait_for(lambda: path.read_bytes().count(b"\n") >= sent, "the access log")
    written = path.read_bytes()
    # Not a line more, whoever reads it: str.splitlines knows every separator that there is.
    text = written.decode("utf-8")
    assert len(text.splitlines()) == written.count(b"\n") == sent
    assert not re.search(rb"[\x00-\x09\x0b-\x1f\x7f]", written)
    for line in text.splitlines():
        if layout == "json":
            record = json.loads(line)
            assert record["remote"] == "127.0.0.1"
            assert record["status"] in (200, 400, 404, 501, 505)
        elif layout == "default":
            assert COMBINED.fullmatch(line), line
    assert not [line for line in server.log().splitlines() if line.startswith("127.0.0.1 - -")]
    assert "FORGED" not in server.log()


# Quotes within a field are escaped, so that a field ends where it seems to.
_FIELD = r'"(?:[^"\\]|\\.)*"'
COMBINED = re.compile(
    rf"127\.0\.0\.1 - \S+ \[[^\]]+\] {_FIELD} (?:200|400|404|501|505) \d+ {_FIELD} {_FIELD}"
)


def wait_end(client: object) -> None:
    """Until the server has answered and closed; a refused request may be reset."""
    try:
        while client.recv(65536):  # type: ignore[attr-defined]
            pass
    except ConnectionResetError:
        logging.getLogger(__name__).debug("reset")
