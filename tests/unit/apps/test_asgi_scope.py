"""The scopes that an adapter makes of requests."""

from __future__ import annotations

import logging

import pytest

from servo.apps.asgi_scope import ASGIAdapter
from servo.http.events import Request
from servo.http.h1 import H1Connection
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
