"""Responses and messages in pieces of a size from the query, passed in one call."""

import asyncio
from urllib.parse import parse_qs

MB = 1 << 20
gates = {}


async def app(scope, receive, send):
    query = {k: v[0] for k, v in parse_qs(scope.get("query_string", b"").decode()).items()}
    piece = b"x" * int(float(query.get("mb", "0")) * MB)
    if scope["type"] == "websocket":
        await receive()
        await send({"type": "websocket.accept"})
        while True:
            await send({"type": "websocket.send", "bytes": piece})
    assert scope["type"] == "http", scope["type"]
    body = b""
    while True:
        message = await receive()
        body += message.get("body", b"")
        if not message.get("more_body"):
            break
    await asyncio.sleep(float(query.get("wait", "0")))
    if "until" in query:  # another request comes
        await gates.setdefault(query["until"], asyncio.Event()).wait()
    if "opens" in query:
        gates.setdefault(query["opens"], asyncio.Event()).set()
    await send({"type": "http.response.start", "status": 200, "headers": []})
    for _ in range(int(query.get("pieces", "1")) - 1):
        await send({"type": "http.response.body", "body": piece, "more_body": True})
    await send({"type": "http.response.body", "body": piece + body})
