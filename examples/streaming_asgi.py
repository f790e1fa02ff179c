"""Streaming in plain ASGI: a download of any size, and a feed of events.

servo examples/streaming_asgi.py:app

    curl -o big 'http://127.0.0.1:8000/generated?bytes=100000000'
    curl -N http://127.0.0.1:8000/events
"""

import asyncio
import os
import time
from urllib.parse import parse_qs

CHUNK = 64 * 1024


async def app(scope, receive, send):
    if scope["type"] != "http":
        raise NotImplementedError(scope["type"])
    # ASGI's path begins with the root path; without it, the app works wherever it is mounted.
    if scope["path"].removeprefix(scope["root_path"]) == "/events":
        await events(receive, send)
    else:
        await generated(scope, send)


async def start(send, content_type):
    headers = [(b"content-type", content_type), (b"cache-control", b"no-store")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})


async def generated(scope, send):
    query = parse_qs(scope["query_string"].decode("latin-1"))
    total = int(query.get("bytes", ["1000000"])[0])
    await start(send, b"application/octet-stream")
    for offset in range(0, total, CHUNK):
        piece = b"." * min(CHUNK, total - offset)
        # `send` waits for a slow client, so the body does not fill the memory.
        await send({"type": "http.response.body", "body": piece, "more_body": True})
    await send({"type": "http.response.body", "body": b""})


async def events(receive, send):
    """Send one event per second until the client disconnects."""
    await start(send, b"text/event-stream")
    gone = asyncio.ensure_future(disconnected(receive))
    while not gone.done():
        line = f"data: {time.time():.0f} from process {os.getpid()}\n\n".encode()
        await send({"type": "http.response.body", "body": line, "more_body": True})
        await asyncio.wait([gone], timeout=1)


async def disconnected(receive):
    while (await receive())["type"] != "http.disconnect":
        pass
