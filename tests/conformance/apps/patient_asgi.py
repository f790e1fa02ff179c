"""An ASGI application that waits for a moment before it responds to a complete request.

In some cases of h2spec, the second frame is invalid. On a busy machine, a quick response might end
the stream before this frame arrives, and then it would not be an error.
"""

import asyncio

BODY = b"An answer that fills a window of a few bytes more than once.\n" * 4
WAIT_S = 0.3


async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        await receive()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await send({"type": "lifespan.shutdown.complete"})
        return
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return
        if not message["more_body"]:
            break
    await asyncio.sleep(WAIT_S)
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": BODY})
