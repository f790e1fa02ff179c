"""The environs that an adapter builds for requests."""

from __future__ import annotations

import io
import logging

import pytest

from servo.apps.wsgi_environ import WSGIAdapter, is_nameless, name_server
from servo.http.errors import ProtocolError
from servo.http.events import Request
from servo.http.h1.connection import H1Connection
from servo.http.limits import Limits


def adapter_with(**options):
    return WSGIAdapter(
        None, log=logging.getLogger("test"), multithread=False, multiprocess=True, **options
    )


def environ_of(raw, server=("127.0.0.1", 80), scheme="http", **options):
    adapter = adapter_with(**options)
    template = adapter.template(server, ("127.0.0.2", 5000), scheme)
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


@pytest.mark.parametrize("root_path", ["/café", "/caf%C3%A9", "/caf%c3%a9/"])
@pytest.mark.parametrize(
    ("target", "path"),
    [
        ("/caf%C3%A9/x", "/x"),
        ("/caf%c3%a9/%C3%A9", "/\xc3\xa9"),
        ("/caf%C3%A9", ""),
        ("/cafe/x", "/cafe/x"),
        ("/x", "/x"),
    ],
)
def test_a_root_path_beyond_ascii(root_path, target, path):
    raw = f"GET {target} HTTP/1.1\r\nHost: h\r\n\r\n".encode()
    environ = environ_of(raw, root_path=root_path)
    assert (environ["SCRIPT_NAME"], environ["PATH_INFO"]) == ("/caf\xc3\xa9", path)


def test_options_about_the_server_have_no_path():
    environ = environ_of(b"OPTIONS * HTTP/1.1\r\nHost: h\r\n\r\n")
    assert (environ["PATH_INFO"], environ["SCRIPT_NAME"]) == ("", "")
    assert environ["REQUEST_URI"] == environ["RAW_URI"] == "*"
    environ = environ_of(b"OPTIONS * HTTP/1.1\r\nHost: h\r\n\r\n", root_path="/app")
    assert (environ["PATH_INFO"], environ["SCRIPT_NAME"]) == ("", "/app")


@pytest.mark.parametrize("header_map", ["drop", "dangerous"])
@pytest.mark.parametrize(
    "fields",
    [("Proxy: p",), ("PROXY: p",), ("proxy: p", "Proxy: q"), ("X-A: 1", "X-A: 2", "pRoXy:")],
)
def test_no_request_sets_http_proxy(fields, header_map):
    adapter = adapter_with(header_map=header_map)
    template = adapter.template(("127.0.0.1", 80), None, "http")
    connection = H1Connection(Limits())
    raw = "\r\n".join(["GET / HTTP/1.1", "Host: h", *fields, "\r\n"]).encode()
    for _ in range(3):
        request = connection.receive_data(raw)
        assert isinstance(request, Request)
        environ = adapter.environ(template, request, None, 0)
        assert "HTTP_PROXY" not in environ
        assert environ["HTTP_HOST"] == "h"
        connection.send_response(200, [], b"")


@pytest.mark.parametrize("name", ["Proxy-Authorization", "X-Proxy", "Proxy-Connection"])
def test_other_fields_about_proxies_stay(name):
    environ = environ_of(f"GET / HTTP/1.1\r\nHost: h\r\n{name}: p\r\n\r\n".encode())
    assert environ["HTTP_" + name.upper().replace("-", "_")] == "p"


@pytest.mark.parametrize("server", ["", "/run/servo.sock", ("", 0)])
@pytest.mark.parametrize(
    ("host", "scheme", "named"),
    [
        ("example.com", "http", ("example.com", "80")),
        ("example.com", "https", ("example.com", "443")),
        ("example.com:8080", "https", ("example.com", "8080")),
        ("example.com:", "https", ("example.com", "443")),
        ("[::1]", "http", ("[::1]", "80")),
        ("[::1]:99", "http", ("[::1]", "99")),
        ("", "http", ("localhost", "80")),
        (None, "https", ("localhost", "443")),
    ],
)
def test_a_server_without_an_address_is_named_by_host(server, host, scheme, named):
    raw = b"GET / HTTP/1.0\r\n"
    if host is not None:
        raw += b"Host: " + host.encode() + b"\r\n"
    environ = environ_of(raw + b"\r\n", server=server, scheme=scheme)
    assert is_nameless(server)
    name_server(environ)
    assert (environ["SERVER_NAME"], environ["SERVER_PORT"]) == named


def test_a_server_with_an_address_keeps_it():
    environ = environ_of(b"GET / HTTP/1.1\r\nHost: example.com:99\r\n\r\n")
    assert (environ["SERVER_NAME"], environ["SERVER_PORT"]) == ("127.0.0.1", "80")


def test_names_of_clients_do_not_fill_memory():
    adapter = adapter_with()
    for number in range(3000):
        adapter._learn(b"x-%d" % number)
    assert len(adapter._keys) <= 1024
