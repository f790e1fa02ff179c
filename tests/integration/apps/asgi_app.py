"""The ASGI app of the integration tests: each path has one function."""

import asyncio
import hashlib
import json
import os
import time
from urllib.parse import parse_qs

CHUNK = 64 * 1024


async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        await lifespan(receive, send, scope)
        return
    query = {k: v[0] for k, v in parse_qs(scope["query_string"].decode()).items()}
    handler = HANDLERS.get(scope["path"].removeprefix(scope.get("root_path", "")))
    if handler is None:
        await answer(send, b"no such path", 404)
    else:
        await handler(scope, receive, send, query)


async def lifespan(receive, send, scope):
    assert (await receive())["type"] == "lifespan.startup"
    scope["state"]["started_by"] = os.getpid()
    await send({"type": "lifespan.startup.complete"})
    assert (await receive())["type"] == "lifespan.shutdown"
    print(f"lifespan of {os.getpid()} has ended", flush=True)
    await send({"type": "lifespan.shutdown.complete"})


async def answer(send, body, status=200, content_type=b"text/plain"):
    headers = [(b"content-type", content_type), (b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def pieces(receive):
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return
        yield message["body"]
        if not message.get("more_body"):
            return


async def index(scope, receive, send, query):
    await answer(send, b"ok")


async def pid(scope, receive, send, query):
    await answer(send, str(os.getpid()).encode())


async def state(scope, receive, send, query):
    await answer(send, str(scope["state"]["started_by"]).encode())


async def echo(scope, receive, send, query):
    await answer(send, b"".join([piece async for piece in pieces(receive)]))


async def upload(scope, receive, send, query):
    digest, size = hashlib.sha256(), 0
    async for piece in pieces(receive):
        digest.update(piece)
        size += len(piece)
    await answer(send, json.dumps({"bytes": size, "sha256": digest.hexdigest()}).encode())


async def stream(scope, receive, send, query):
    total = int(query.get("bytes", 1_000_000))
    await send({"type": "http.response.start", "status": 200, "headers": []})
    for start in range(0, total, CHUNK):
        body = b"." * min(CHUNK, total - start)
        await send({"type": "http.response.body", "body": body, "more_body": True})
    await send({"type": "http.response.body", "body": b""})


async def file(scope, receive, send, query):
    """The file that $BIG_FILE names, sent by the server."""
    path = os.environ["BIG_FILE"]
    headers = [(b"content-length", b"%d" % os.path.getsize(path))]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.pathsend", "path": path})


async def bulk(scope, receive, send, query):
    await answer(send, b"b" * int(query.get("bytes", 100_000)))


async def endless(scope, receive, send, query):
    """Until the client goes away, which `send` tells by raising."""
    await send({"type": "http.response.start", "status": 200, "headers": []})
    try:
        while True:
            await send({"type": "http.response.body", "body": b"e" * CHUNK, "more_body": True})
    finally:
        print("the endless body has ended", flush=True)


async def ignore(scope, receive, send, query):
    """Answer without a look at the body."""
    await answer(send, b"ignored")


async def fail_late(scope, receive, send, query):
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"begun", "more_body": True})
    raise RuntimeError("the app failed in the middle, on purpose")


async def slow(scope, receive, send, query):
    await asyncio.sleep(float(query.get("s", 0.3)))
    await answer(send, b"slow")


async def block(scope, receive, send, query):
    if "s" in query:
        time.sleep(float(query["s"]))
        await answer(send, b"blocked")
    while "s" not in query:  # the blocked event loop
        time.sleep(0.01)


async def wait_forever(scope, receive, send, query):
    print("a request waits", flush=True)
    await asyncio.Event().wait()  # the waiting task


async def fail(scope, receive, send, query):
    kinds = {"cancelled": asyncio.CancelledError, "exit": SystemExit, "generator": GeneratorExit}
    raise kinds.get(query.get("kind"), RuntimeError)("the app failed on purpose")


async def describe(scope, receive, send, query):
    values = {
        "pid": os.getpid(),
        "scheme": scope["scheme"],
        "client": scope["client"],
        "server": scope["server"],
        "root_path": scope["root_path"],
        "path": scope["path"],
        "raw_path": scope["raw_path"].decode("latin-1"),
        "query_string": scope["query_string"].decode("latin-1"),
        "host": dict(scope["headers"]).get(b"host", b"").decode(),
        "loop": type(asyncio.get_running_loop()).__module__,
    }
    await answer(send, json.dumps(values).encode(), content_type=b"application/json")


async def watch_disconnect(scope, receive, send, query):
    """Say in the log when the client has gone."""
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"begun", "more_body": True})
    while (await receive())["type"] != "http.disconnect":
        pass
    print("the client has gone", flush=True)


async def leave_child(scope, receive, send, query):
    """Fork a child that lives on, with everything that this process holds; answer its pid."""
    child = os.fork()
    if child == 0:
        time.sleep(60)
        os._exit(0)
    await answer(send, str(child).encode())


HANDLERS = {
    "/leave-child": leave_child,
    "/": index,
    "/pid": pid,
    "/state": state,
    "/echo": echo,
    "/upload": upload,
    "/stream": stream,
    "/file": file,
    "/bulk": bulk,
    "/endless": endless,
    "/ignore": ignore,
    "/fail-late": fail_late,
    "/slow": slow,
    "/block": block,
    "/wait": wait_forever,
    "/fail": fail,
    "/describe": describe,
    "/watch": watch_disconnect,
}
