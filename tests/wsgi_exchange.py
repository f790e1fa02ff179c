"""Requests through a WSGI application over a real HTTP connection, without a socket."""

from __future__ import annotations

import io
import logging

from servo.apps.wsgi import WSGIResponder
from servo.apps.wsgi_environ import WSGIAdapter
from servo.apps.wsgi_file import FileRegion
from servo.http.errors import ClientDisconnected
from servo.http.events import Request
from servo.http.h1.connection import H1Connection
from servo.http.limits import Limits

log = logging.getLogger("test")


class Wire:
    """A transport that keeps what it is given."""

    def __init__(self, gone: bool = False) -> None:
        self.data = b""
        self.region = None
        self.sends = self.finished = 0
        self.gone = gone

    def send_all(self, data: bytes) -> None:
        if self.gone:
            raise ClientDisconnected("gone")
        self.sends += 1
        self.data += data

    def finish(self, rest) -> None:
        self.finished += 1
        if isinstance(rest, FileRegion):
            self.region = rest
            rest = rest.head
        self.data += bytes(rest)


class Exchange:
    """One request through an application."""

    def __init__(self, app, raw=b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", wire=None, **options):
        self.wire = wire or Wire()
        self.http = H1Connection(Limits())
        self.adapter = WSGIAdapter(app, log=log, multithread=False, multiprocess=True, **options)
        self.responder = WSGIResponder(self.adapter, self.http, self.wire)
        self.template = self.adapter.template(("127.0.0.1", 80), ("127.0.0.2", 5000), "http")
        self.run(raw)

    def run(self, raw: bytes) -> None:
        request = self.http.receive_data(raw)
        assert isinstance(request, Request)
        body = io.BytesIO(request.body) if request.body else None
        self.environ = self.adapter.environ(self.template, request, body, len(request.body))
        rest = self.responder.run(self.environ)
        if rest:
            self.wire.finish(rest)

    @property
    def region(self) -> FileRegion | None:
        return self.wire.region

    @property
    def head(self) -> bytes:
        return self.wire.data.partition(b"\r\n\r\n")[0]

    @property
    def body(self) -> bytes:
        return self.wire.data.partition(b"\r\n\r\n")[2]
