"""Bodies of each kind, and paths for tests of workers; `wsgi` and `asgi` give the same responses.

/echo     the request's body, as application/json
/upload   the number of bytes of the request's body, read piece by piece
/10k /1m  that many bytes, in one piece
/stream   1 MB in pieces of 64 KB, without a Content-Length
/slow     blocks its worker's thread for 0.1 s
/pid      the worker's process id, after a pause in which other workers get requests
"""

import os
import time

PIECE = b"x" * 65536
PIECES = 16
FIXED = {"/10k": b"x" * 10_240, "/1m": PIECE * PIECES}
SLOW_S = 0.1
PAUSE_S = 0.005


def small(path):
    """The response's body for the paths that read no request body."""
    if path in FIXED:
        return FIXED[path]
    if path == "/slow":
        time.sleep(SLOW_S)
    elif path == "/pid":
        time.sleep(PAUSE_S)
        return b"%d" % os.getpid()
    return b"Hello, world!"


def wsgi(environ, start_response):
    path = environ["PATH_INFO"]
    kind = "text/plain"
    if path == "/stream":
        start_response("200 OK", [("Content-Type", kind)])
        return (PIECE for _ in range(PIECES))
    if path == "/echo":
        kind = "application/json"
        body = environ["wsgi.input"].read(int(environ["CONTENT_LENGTH"]))
    elif path == "/upload":
        left = int(environ["CONTENT_LENGTH"])
        while left > 0 and (piece := environ["wsgi.input"].read(min(left, len(PIECE)))):
            left -= len(piece)
        body = b"%d" % (int(environ["CONTENT_LENGTH"]) - left)
    else:
        body = small(path)
    start_response("200 OK", [("Content-Type", kind), ("Content-Length", str(len(body)))])
    return [body]


async def asgi(scope, receive, send):
    if scope["type"] == "lifespan":
        await lifespan(receive, send)
        return
    path = scope["path"]
    kind = b"text/plain"
    if path == "/stream":
        await stream(send)
        return
    if path == "/echo":
        kind = b"application/json"
        body = b"".join([piece async for piece in pieces(receive)])
    elif path == "/upload":
        size = 0
        async for piece in pieces(receive):
            size += len(piece)
        body = b"%d" % size
    else:
        body = small(path)
    headers = [(b"content-type", kind), (b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def stream(send):
    headers = [(b"content-type", b"text/plain")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    for _ in range(PIECES):
        await send({"type": "http.response.body", "body": PIECE, "more_body": True})
    await send({"type": "http.response.body", "body": b""})


async def pieces(receive):
    more = True
    while more:
        message = await receive()
        more = message.get("more_body", False)
        yield message.get("body", b"")


async def lifespan(receive, send):
    while True:
        message = await receive()
        await send({"type": message["type"] + ".complete"})
        if message["type"] == "lifespan.shutdown":
            return
