"""The WebSockets of the integration tests: each path has one function."""

import asyncio
import json
import os
from pathlib import Path
from urllib.parse import parse_qs, unquote

PAGE = Path(__file__).with_name("websocket_page.html")
# What the worker has counted, by path; /counts tells.
counts = {"sent": 0, "received": 0, "pid": os.getpid()}
go_on = asyncio.Event()


async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        await lifespan(receive, send)
    elif scope["type"] == "http":
        await plain(scope, receive, send)
    else:
        query = {k: v[0] for k, v in parse_qs(scope["query_string"].decode()).items()}
        await HANDLERS[scope["path"]](scope, receive, send, query)


async def lifespan(receive, send):
    while True:
        message = await receive()
        await send({"type": message["type"] + ".complete"})
        if message["type"] == "lifespan.shutdown":
            return


async def plain(scope, receive, send):
    body, kind = b"plain HTTP", b"text/plain"
    if scope["path"] == "/counts":
        body = json.dumps({**counts, "pid": os.getpid()}).encode()
    elif scope["path"] == "/go-on":
        go_on.set()
    elif scope["path"] == "/report":
        print(f"the page says: {unquote(scope['query_string'].decode())}", flush=True)
    elif scope["path"] == "/page":
        body, kind = PAGE.read_bytes(), b"text/html; charset=utf-8"
    headers = [(b"content-type", kind), (b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def accept(receive, send, **more):
    assert (await receive())["type"] == "websocket.connect"
    await send({"type": "websocket.accept", **more})


async def messages(receive):
    number = 0
    while True:
        message = await receive()
        if message["type"] == "websocket.disconnect":
            print(f"disconnect {message['code']} {message['reason']!r} after {number}", flush=True)
            return
        number += 1
        counts["received"] += 1
        yield message["text"] if "text" in message else message["bytes"]


async def say(send, data):
    await send({"type": "websocket.send", "text" if isinstance(data, str) else "bytes": data})


async def echo(scope, receive, send, query):
    wanted = scope["subprotocols"]
    await accept(receive, send, subprotocol=wanted[-1] if wanted else None)
    try:
        async for data in messages(receive):
            await asyncio.sleep(float(query.get("s", 0)))
            await say(send, data)
    except OSError as error:
        print(f"echo has ended: {error}", flush=True)


async def push(scope, receive, send, query):
    """Messages as fast as they are taken, and none is ever received."""
    await accept(receive, send)
    payload = b"." * int(query["size"])
    try:
        for _ in range(int(query.get("n", 1_000_000))):
            await say(send, payload)
            counts["sent"] += 1
    except OSError as error:
        print(f"push has ended: {error}", flush=True)


async def wait(scope, receive, send, query):
    """Receives nothing until it is told to, then all of it."""
    await accept(receive, send)
    await go_on.wait()
    total = 0
    async for data in messages(receive):
        total += len(data)
        if data == "how much?":
            await say(send, str(total))


async def describe(scope, receive, send, query):
    await accept(receive, send)
    names = ("type", "scheme", "client", "path", "root_path", "subprotocols", "http_version")
    told = {name: scope[name] for name in (*names, "extensions")}
    told["host"] = dict(scope["headers"])[b"host"].decode("ascii")
    told["loop"] = type(asyncio.get_running_loop()).__module__
    await say(send, json.dumps({**told, "pid": os.getpid()}))
    async for _ in messages(receive):
        pass


async def close(scope, receive, send, query):
    await accept(receive, send)
    code = int(query.get("code", 1000))
    await send({"type": "websocket.close", "code": code, "reason": query.get("reason", "")})
    async for _ in messages(receive):
        pass


async def refuse(scope, receive, send, query):
    await receive()
    await send({"type": "websocket.close"})


async def deny(scope, receive, send, query):
    headers = [(b"content-type", b"text/plain"), (b"x-reason", b"tired")]
    await send({"type": "websocket.http.response.start", "status": 429, "headers": headers})
    await send({"type": "websocket.http.response.body", "body": b"not ", "more_body": True})
    await send({"type": "websocket.http.response.body", "body": b"now"})


async def fail(scope, receive, send, query):
    if "late" in query:
        await accept(receive, send)
    raise RuntimeError("the app failed on purpose")


async def leave(scope, receive, send, query):
    await accept(receive, send)
    await say(send, "that was all")


async def never(scope, receive, send, query):
    await asyncio.Event().wait()


HANDLERS = {
    "/echo": echo,
    "/push": push,
    "/wait": wait,
    "/describe": describe,
    "/close": close,
    "/refuse": refuse,
    "/deny": deny,
    "/fail": fail,
    "/leave": leave,
    "/never": never,
}
