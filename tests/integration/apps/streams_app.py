"""Event streams and WebSockets that go on until they are ended."""

import asyncio
import os


async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        for event in ("startup", "shutdown"):
            assert (await receive())["type"] == f"lifespan.{event}"
            await send({"type": f"lifespan.{event}.complete"})
    elif scope["type"] == "websocket":
        await echo(receive, send)
    elif scope["path"] == "/never":
        await asyncio.Event().wait()
    elif scope["path"] == "/pid":
        await answer(send, [], b"%d" % os.getpid())
    else:
        await events(scope, receive, send)


async def answer(send, headers, body, more=False):
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body, "more_body": more})


async def events(scope, receive, send):
    """An event every 10 ms; on /quiet there is only one, and a deaf app."""
    headers = [(b"content-type", b"text/event-stream; charset=utf-8")]
    await answer(send, headers, b"data: %d\n\n" % os.getpid(), more=True)
    try:
        while True:
            await asyncio.sleep(3600 if scope["path"] == "/quiet" else 0.01)
            body = b"data: %d\n\n" % os.getpid()
            await send({"type": "http.response.body", "body": body, "more_body": True})
    except OSError:
        print(f"the stream {scope['path']} has ended", flush=True)
    except asyncio.CancelledError:
        print(f"the stream {scope['path']} was cancelled", flush=True)
        raise


async def echo(receive, send):
    assert (await receive())["type"] == "websocket.connect"
    await send({"type": "websocket.accept"})
    while True:
        message = await receive()
        if message["type"] == "websocket.disconnect":
            print(f"disconnect {message['code']}", flush=True)
            return
        await send({"type": "websocket.send", "text": message["text"]})
