"""The scopes that an adapter builds for requests."""

from __future__ import annotations

import logging

import pytest

from servo.apps.asgi_scope import ASGIAdapter, remote_of
from servo.http.events import Request
from servo.http.h1.connection import H1Connection
from servo.http.limits import Limits


def scope_of(raw, **options):
    adapter = ASGIAdapter(None, log=logging.getLogger("test"), **options)
    template = adapter.template(("127.0.0.1", 80), ("127.0.0.2", 5000), "http")
    request = H1Connection(Limits()).receive_data(raw)
    assert isinstance(request, Request)
    return adapter.scope(template, request)


def test_scope():
    raw = b"GET /a%20b?q=%31 HTTP/1.1\r\nHost: h\r\nX-A: 1\r\n\r\n"
    scope = scope_of(raw, state={"db": 1})
    assert scope["type"] == "http"
    assert scope["path"] == "/a b"
    assert scope["raw_path"] == b"/a%20b"
    assert scope["query_string"] == b"q=%31"
    assert scope["headers"] == [(b"host", b"h"), (b"x-a", b"1")]
    assert scope["client"] == ("127.0.0.2", 5000)
    assert scope["state"] == {"db": 1}
    assert scope["http_version"] == "1.1"


@pytest.mark.parametrize(
    ("target", "path"), [("/x", "/app/x"), ("/app/x", "/app/x"), ("/apple", "/app/apple")]
)
def test_the_path_begins_with_the_root_path(target, path):
    raw = f"GET {target} HTTP/1.1\r\nHost: h\r\n\r\n".encode()
    scope = scope_of(raw, root_path="/app/")
    assert (scope["root_path"], scope["path"]) == ("/app", path)


@pytest.mark.parametrize("root_path", ["/café", "/caf%C3%A9", "/caf%c3%a9/"])
@pytest.mark.parametrize(
    ("target", "path", "raw_path"),
    [
        ("/x", "/café/x", b"/caf%C3%A9/x"),
        ("/caf%C3%A9/x", "/café/x", b"/caf%C3%A9/x"),
        ("/caf%c3%a9", "/café", b"/caf%c3%a9"),
        ("/cafe/%C3%A9", "/café/cafe/é", b"/caf%C3%A9/cafe/%C3%A9"),
    ],
)
def test_a_root_path_beyond_ascii(root_path, target, path, raw_path):
    raw = f"GET {target} HTTP/1.1\r\nHost: h\r\n\r\n".encode()
    scope = scope_of(raw, root_path=root_path)
    assert scope["root_path"] == "/café"
    assert (scope["path"], scope["raw_path"]) == (path, raw_path)


def test_a_proxy_mounts_below_a_root_path_beyond_ascii():
    adapter = ASGIAdapter(None, log=logging.getLogger("test"), root_path="/café")
    template = adapter.template(("127.0.0.1", 80), None, "http")
    request = H1Connection(Limits()).receive_data(b"GET /x HTTP/1.1\r\nHost: h\r\n\r\n")
    scope = adapter.scope(template, request)
    adapter.mount(scope, "/up")
    assert scope["root_path"] == "/up/café"
    assert (scope["path"], scope["raw_path"]) == ("/up/café/x", b"/up/caf%C3%A9/x")


@pytest.mark.parametrize(
    ("client", "remote"),
    [
        (("192.0.2.1", 80), "192.0.2.1"),
        (["192.0.2.1", 80], "192.0.2.1"),
        *((odd, "") for odd in (None, (), [], 7, "192.0.2.1", ([7], 7), {0: "192.0.2.1"})),
    ],
)
def test_the_remote_address_may_have_been_changed_by_the_app(client, remote):
    assert remote_of({"client": client}) == remote
    assert remote_of({}) == ""
