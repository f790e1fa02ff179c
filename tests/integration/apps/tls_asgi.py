"""An ASGI app for the TLS tests: the scope, and a file."""

import json
import os
from urllib.parse import parse_qs


async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        for event in ("startup", "shutdown"):
            assert (await receive())["type"] == f"lifespan.{event}"
            await send({"type": f"lifespan.{event}.complete"})
        return
    query = parse_qs(scope["query_string"].decode())
    if scope["path"] == "/file":
        path = query["path"][0]
        size = str(os.stat(path).st_size).encode()
        headers = [(b"content-length", size)]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.pathsend", "path": path})
        return
    body = b""
    if scope["path"] == "/echo":
        more = True
        while more:
            message = await receive()
            body += message["body"]
            more = message["more_body"]
    else:
        body = json.dumps(
            {
                "pid": os.getpid(),
                "scheme": scope["scheme"],
                "client": scope["client"],
                "extensions": scope["extensions"],
            }
        ).encode()
    headers = [(b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})
