"""Applications that respond, wait, or accept a WebSocket, depending on the path."""

import asyncio
import os
import time


def wsgi(environ, start_response):
    if environ["PATH_INFO"] == "/wait":
        os.write(1, b"waiting\n")
        time.sleep(0.6)
    start_response("200 OK", [("Content-Length", "2")])
    return [b"ok"]


async def asgi(scope, receive, send):
    if scope["type"] == "lifespan":
        await receive()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await send({"type": "lifespan.shutdown.complete"})
        return
    if scope["path"] == "/wait":
        os.write(1, b"waiting\n")
        await asyncio.sleep(0.6)
    if scope["type"] == "websocket":
        await receive()
        await send({"type": "websocket.accept"})
        await receive()
        return
    headers = [(b"content-length", b"2")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": b"ok"})
