"""13 bytes for every request, and echoes over WebSocket, so that only the server is measured."""

BODY = b"Hello, world!"
WSGI_HEADERS = [("Content-Type", "text/plain"), ("Content-Length", "13")]
ASGI_START = {
    "type": "http.response.start",
    "status": 200,
    "headers": [(b"content-type", b"text/plain"), (b"content-length", b"13")],
}
ASGI_BODY = {"type": "http.response.body", "body": BODY}


def wsgi(environ, start_response):
    start_response("200 OK", WSGI_HEADERS)
    return [BODY]


async def asgi(scope, receive, send):
    if scope["type"] == "http":
        await send(ASGI_START)
        await send(ASGI_BODY)
        return
    if scope["type"] == "websocket":
        await echo(receive, send)
        return
    if scope["type"] != "lifespan":  # pounce tells of its workers in a scope of its own
        raise ValueError(f"no such scope: {scope['type']}")
    # Supported, as it is in frameworks.
    while True:
        message = await receive()
        await send({"type": message["type"] + ".complete"})
        if message["type"] == "lifespan.shutdown":
            return


async def echo(receive, send):
    await receive()
    await send({"type": "websocket.accept"})
    while True:
        message = await receive()
        if message["type"] == "websocket.disconnect":
            return
        text = message.get("text")
        if text is not None:
            await send({"type": "websocket.send", "text": text})
        else:
            await send({"type": "websocket.send", "bytes": message["bytes"]})
