"""A WSGI app that waits for something else, as for a database, and computes nothing."""

from __future__ import annotations

import time

WAIT_S = 0.1


def app(environ, start_response):
    time.sleep(WAIT_S)
    start_response("200 OK", [("Content-Length", "2")])
    return [b"ok"]
