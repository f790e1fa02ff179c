"""An ASGI application that waits a moment after a complete request before it responds.

In some cases of h2spec, the second frame is wrong. On a busy machine it may arrive after a quick
response has ended the stream, and then it is no error any more.
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
