"""Unusual behaviour that ASGI allows an application, and some that it forbids."""

import asyncio
import inspect
import os
import tempfile

START = "http.response.start"
BODY = "http.response.body"
FILE = os.path.join(tempfile.gettempdir(), f"servo-torture-{os.getpid()}")


async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        raise NotImplementedError  # as an application that knows of no lifespan does
    await APPS[scope["path"]](scope, receive, send)


async def empty_parts(scope, receive, send):
    await send({"type": START, "status": 200, "headers": []})
    for part in (b"", b"a", b"", b"b", b""):
        await send({"type": BODY, "body": part, "more_body": True})
    await send({"type": BODY})


async def least_keys(scope, receive, send):
    await send({"type": START, "status": 200})
    await send({"type": BODY})


async def odd_headers(scope, receive, send):
    """Lists for tuples, a generator for a list, upper case, bytearrays."""
    headers = ([bytearray(b"X-%d" % i), b"1"] for i in range(2))
    await send({"type": START, "status": 200, "headers": headers})
    await send({"type": BODY, "body": bytearray(b"ab"), "more_body": False})


async def no_content(scope, receive, send):
    await send({"type": START, "status": 204, "headers": []})
    await send({"type": BODY, "body": b"none of this may be sent"})


async def not_modified(scope, receive, send):
    await send({"type": START, "status": 304, "headers": [(b"etag", b'"a"')]})
    await send({"type": BODY, "body": b""})


async def with_length(send, length, *parts):
    await send({"type": START, "status": 200, "headers": [(b"content-length", b"%d" % length)]})
    for part in parts[:-1]:
        await send({"type": BODY, "body": part, "more_body": True})
    await send({"type": BODY, "body": parts[-1]})


async def short(scope, receive, send):
    await with_length(send, 10, b"sh", b"ort")


async def long(scope, receive, send):
    await with_length(send, 4, b"much", b" too long")


async def long_at_once(scope, receive, send):
    await with_length(send, 4, b"much too long", b"")


async def long_whole(scope, receive, send):
    await with_length(send, 4, b"much too long")


async def plain(send, body=b"ab"):
    await send({"type": START, "status": 200, "headers": []})
    await send({"type": BODY, "body": body})


async def after_the_end(scope, receive, send):
    await plain(send)
    await send({"type": BODY, "body": b"never"})


async def start_twice(scope, receive, send):
    await send({"type": START, "status": 200, "headers": []})
    await send({"type": START, "status": 200, "headers": []})


async def body_first(scope, receive, send):
    await send({"type": BODY, "body": b"never"})


async def unknown_type(scope, receive, send):
    await send({"type": "http.response.nonsense"})


async def text(scope, receive, send):
    await send({"type": START, "status": 200, "headers": []})
    await send({"type": BODY, "body": "not bytes"})


async def injected(scope, receive, send):
    await send({"type": START, "status": 200, "headers": [(b"x-a", b"a\r\nx-injected: 1")]})
    await send({"type": BODY, "body": b"never"})


async def returns_early(scope, receive, send):
    await send({"type": START, "status": 200, "headers": []})


async def returns_in_the_middle(scope, receive, send):
    await send({"type": START, "status": 200, "headers": []})
    await send({"type": BODY, "body": b"a", "more_body": True})


async def raises(scope, receive, send):
    raise RuntimeError("on purpose")


async def receives_after_the_end(scope, receive, send):
    """The body, and then a disconnect as often as one asks."""
    message = await receive()
    await plain(send)
    got = [(await receive())["type"] for _ in range(2)]
    print(f"received {message['type']} {got}", flush=True)


async def waits_for_disconnect(scope, receive, send):
    """As frameworks do: one task listens while another sends."""

    async def listen():
        while (await receive())["type"] != "http.disconnect":
            pass

    task = asyncio.create_task(listen())
    await plain(send)
    await task


async def background(scope, receive, send):
    await plain(send)
    await asyncio.sleep(0.05)
    print("the background work is done", flush=True)


async def send_in_tasks(scope, receive, send):
    await asyncio.create_task(send({"type": START, "status": 200, "headers": []}))
    await asyncio.gather(send({"type": BODY, "body": b"ab", "more_body": True}))
    await asyncio.wait_for(send({"type": BODY}), 5)


async def hop_by_hop(scope, receive, send):
    headers = [(b"connection", b"x-a"), (b"keep-alive", b"9"), (b"upgrade", b"x")]
    await send({"type": START, "status": 200, "headers": headers})
    await send({"type": BODY, "body": b"ab"})


async def trailers(scope, receive, send):
    assert "http.response.trailers" in scope["extensions"]
    await send({"type": START, "status": 200, "headers": [], "trailers": True})
    await send({"type": BODY, "body": b"ab"})
    await send({"type": "http.response.trailers", "headers": [(b"x-sum", b"3")]})


async def hints(scope, receive, send):
    assert "http.response.early_hint" in scope["extensions"]
    links = [b"</a.css>; rel=preload", b"</b.css>; rel=preload"]
    await send({"type": "http.response.early_hint", "links": links})
    await plain(send)


async def debug(scope, receive, send):
    assert "http.response.debug" in scope["extensions"]
    await send({"type": "http.response.debug", "info": {"template": "a.html"}})
    await plain(send)


async def pathsend(scope, receive, send):
    with open(FILE, "wb") as file:
        file.write(b"0123456789" * 200_000)
    await send({"type": START, "status": 200, "headers": []})
    await send({"type": "http.response.pathsend", "path": FILE})
    os.unlink(FILE)


async def pathsend_of_nothing(scope, receive, send):
    await send({"type": START, "status": 200, "headers": []})
    await send({"type": "http.response.pathsend", "path": FILE + "-none"})


async def zerocopysend(scope, receive, send):
    with tempfile.TemporaryFile() as file:
        file.write(b"0123456789" * 200_000)
        file.flush()
        length = (b"content-length", b"2000002")
        await send({"type": START, "status": 200, "headers": [length]})
        await send({"type": BODY, "body": b"a", "more_body": True})
        copy = {"type": "http.response.zerocopysend", "file": file}
        await send({**copy, "offset": 0, "count": 1_000_000, "more_body": True})
        await send({**copy, "offset": 1_000_000, "more_body": True})
        await send({"type": BODY, "body": b"b"})


APPS = {
    f"/{name.replace('_', '-')}": value
    for name, value in list(globals().items())
    if inspect.iscoroutinefunction(value) and name not in ("app", "with_length", "plain")
}
