"""An app for molds: it reports the process of its import, and the process of each response."""

import os
import random
import time

IMPORTED_BY = os.getpid()
VERSION = os.environ.get("VERSION", "1")
if os.environ.get("SLOW_IMPORT_S"):
    time.sleep(float(os.environ["SLOW_IMPORT_S"]))


def report() -> str:
    values = [VERSION, os.getpid(), os.getppid(), IMPORTED_BY, random.random()]
    return " ".join(map(str, values))


def wsgi(environ, start_response):
    body = report().encode()
    start_response("200 OK", [("Content-Length", str(len(body)))])
    return [body]


async def asgi(scope, receive, send):
    if scope["type"] == "lifespan":
        await receive()
        scope["state"]["started_in"] = os.getpid()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await send({"type": "lifespan.shutdown.complete"})
        return
    assert scope["state"]["started_in"] == os.getpid()
    body = report().encode()
    headers = [(b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})
