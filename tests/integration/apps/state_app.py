"""Counters and locks that all workers share: `app` (WSGI) and `asgi`.

/add adds 1 to the counter `hits` and 3 to `work{step="add"}`, and then appends a byte to the file
`returned`: so that a test knows which additions have returned, also in workers that it kills.
/value responds with the values of both.

/critical holds the lock `one` for a moment. A lock of the file `guard`, which the kernel releases,
too, shows whether two processes or threads were inside at once: then the file `violated` appears.
/hold holds the lock until the worker is killed.
"""

import asyncio
import contextlib
import fcntl
import json
import os
import time
from pathlib import Path

from servo import cluster

hits = cluster.counter("hits")
returned = os.open("returned", os.O_WRONLY | os.O_CREAT | os.O_APPEND)


@contextlib.contextmanager
def guarded():
    """Note it if another thread or process is in this block, too."""
    with open("guard", "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            Path("violated").touch()
        yield
        os.write(returned, b"x")


def critical():
    with cluster.lock("one", timeout=20), guarded():
        time.sleep(0.001)


async def critical_async():
    async with cluster.lock("one", timeout=20):
        with guarded():
            await asyncio.sleep(0.001)


def answer(path):
    if path == "/add":
        hits.add()
        os.write(returned, b"x")
        cluster.counter("work", step="add").add(3)
    elif path == "/fork":
        pid = os.fork()
        if pid == 0:
            hits.add(1000)
            os._exit(0)
        os.waitpid(pid, 0)
    elif path == "/hold":
        with cluster.lock("one"):
            Path("held").write_text(str(os.getpid()))
            time.sleep(60)
    elif path == "/critical":
        critical()
        return b"ok"
    elif path != "/value":
        return b"ok"
    return json.dumps([hits.value(), cluster.counter("work", step="add").value()]).encode()


def app(environ, start_response):
    body = answer(environ["PATH_INFO"])
    start_response("200 OK", [("Content-Length", str(len(body)))])
    return [body]


async def asgi(scope, receive, send):
    assert scope["type"] == "http"
    if scope["path"] == "/critical":
        await critical_async()
        body = b"ok"
    elif scope["path"] == "/hold":
        async with cluster.lock("one"):
            Path("held").write_text(str(os.getpid()))
            await asyncio.sleep(60)
        body = b""
    else:
        body = answer(scope["path"])
    headers = [(b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})
