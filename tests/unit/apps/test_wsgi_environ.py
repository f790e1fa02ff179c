"""The environs that an adapter makes of requests."""

from __future__ import annotations

import io
import logging

import pytest

from servo.apps.wsgi_environ import WSGIAdapter
from servo.http.errors import ProtocolError
from servo.http.events import Request
from servo.http.h1 import H1Connection
from servo.http.limits import Limits


def adapter_with(**options):
    return WSGIAdapter(
        None, log=logging.getLogger("test"), multithread=False, multiprocess=True, **options
    )


def environ_of(raw, **options):
    adapter = adapter_with(**options)
    template = adapter.template(("127.0.0.1", 80), ("127.0.0.2", 5000), "http")
    request = H1Connection(Limits()).receive_data(raw)
    assert isinstance(request, Request)
    body = io.BytesIO(request.body) if request.body else None
    return adapter.environ(template, request, body, len(request.body))


def test_environ():
    environ = environ_of(
        b"POST /a%20b/%C3%A9?q=%31 HTTP/1.1\r\nHost: h\r\nX-A: 1\r\nX-A: 2\r\nX_B: evil\r\n"
        b"Cookie: a=1\r\nCookie: b=2\r\nContent-Length: 2\r\nContent-Type: t/x\r\n\r\nhi",
    )
    assert environ["REQUEST_METHOD"] == "POST"
    assert environ["PATH_INFO"] == "/a b/\xc3\xa9"
    assert environ["QUERY_STRING"] == "q=%31"
    assert environ["RAW_URI"] == "/a%20b/%C3%A9?q=%31"
    assert environ["HTTP_X_A"] == "1,2"
    assert environ["HTTP_COOKIE"] == "a=1; b=2"
    assert "HTTP_X_B" not in environ
    assert environ["CONTENT_LENGTH"] == "2"
    assert environ["CONTENT_TYPE"] == "t/x"
    assert environ["REMOTE_ADDR"] == "127.0.0.2"
    assert environ["SERVER_PORT"] == "80"
    assert environ["wsgi.input"].read() == b"hi"


def test_a_chunked_body_is_given_its_length():
    environ = environ_of(
        b"POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
    )
    assert environ["CONTENT_LENGTH"] == "3"
    assert "HTTP_TRANSFER_ENCODING" not in environ


def test_names_with_underscores_can_be_refused():
    with pytest.raises(ProtocolError):
        environ_of(b"GET / HTTP/1.1\r\nHost: h\r\nX_B: 1\r\n\r\n", header_map="refuse")
    environ = environ_of(b"GET / HTTP/1.1\r\nHost: h\r\nX_B: 1\r\n\r\n", header_map="dangerous")
    assert environ["HTTP_X_B"] == "1"


@pytest.mark.parametrize(
    ("target", "path"), [("/app/x", "/x"), ("/app", ""), ("/apple", "/apple"), ("/", "/")]
)
def test_root_path_is_cut_from_the_path(target, path):
    raw = f"GET {target} HTTP/1.1\r\nHost: h\r\n\r\n".encode()
    environ = environ_of(raw, root_path="/app/")
    assert (environ["SCRIPT_NAME"], environ["PATH_INFO"]) == ("/app", path)


def test_names_of_clients_do_not_fill_memory():
    adapter = adapter_with()
    for number in range(3000):
        adapter._learn(b"x-%d" % number)
    assert len(adapter._keys) <= 1024
