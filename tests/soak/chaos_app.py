"""The application of the chaos run, for every worker class. Clients can check its responses.

{version} is replaced for each release. Every response begins with the release and the worker's pid.
If {fails} is replaced by a text, every request is answered with 500, and with nothing else.
"""

import asyncio
import hashlib
import os
import time

VERSION = "{version}"
FAILS = "{fails}"
BLOCK = bytes(range(256)) * 64


def who():
    return f"{VERSION} {os.getpid()} ".encode()


def answer(path, query, body):
    if path == "/upload":
        return who() + hashlib.sha256(body).hexdigest().encode()
    if path == "/slow":
        time.sleep(0.05)
    return who() + query.encode()


def wsgi(environ, start_response):
    path, query = environ["PATH_INFO"], environ["QUERY_STRING"]
    if FAILS:
        environ["wsgi.input"].read()
        start_response("500 Internal Server Error", [("Content-Length", str(len(who())))])
        return [who()]
    if path == "/big":
        start_response("200 OK", [("Content-Type", "application/octet-stream")])
        return (BLOCK for _ in range(int(query)))
    data = answer(path, query, environ["wsgi.input"].read())
    start_response("200 OK", [("Content-Length", str(len(data)))])
    return [data]


async def asgi(scope, receive, send):
    if scope["type"] == "lifespan":
        while True:
            kind = (await receive())["type"]
            await send({"type": f"{kind}.complete"})
            if kind == "lifespan.shutdown":
                return
    if scope["type"] == "websocket":
        await echo(receive, send)
        return
    path, query, body = scope["path"], scope["query_string"].decode(), b""
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return
        body += message["body"]
        if not message["more_body"]:
            break
    if FAILS:
        await start(send, [(b"content-length", b"%d" % len(who()))], 500)
        await send(part(who(), False))
    elif path == "/events":
        await start(send, [(b"content-type", b"text/event-stream")])
        for number in range(int(query)):
            await send(part(b"data: %d\n\n" % number, True))
            await asyncio.sleep(0.02)
        await send(part(b"data: end\n\n", False))
    elif path == "/big":
        await start(send, [])
        for _ in range(int(query)):
            await send(part(BLOCK, True))
        await send(part(b"", False))
    else:
        data = answer("/" if path == "/slow" else path, query, body)
        if path == "/slow":
            await asyncio.sleep(0.05)
        await start(send, [(b"content-length", str(len(data)).encode())])
        await send(part(data, False))


async def start(send, headers, status=200):
    await send({"type": "http.response.start", "status": status, "headers": headers})


def part(body, more):
    return {"type": "http.response.body", "body": body, "more_body": more}


async def echo(receive, send):
    while True:
        message = await receive()
        if message["type"] == "websocket.connect":
            await send({"type": "websocket.accept"})
        elif message["type"] == "websocket.disconnect":
            return
        else:
            await send({"type": "websocket.send", "text": message["text"]})
