"""Jobs that write what they do into the file `runs`: `app` (WSGI) and `asgi`.

Each run of `tick` and `atick` writes its job, its worker's slot and pid and "begin", and later
"end". If two runs of a job overlap, the file `violated` appears.
"""

import asyncio
import contextlib
import fcntl
import os
import time
from pathlib import Path

from servo import cluster

INTERVAL_S = float(os.environ.get("INTERVAL", "0.2"))
LENGTH_S = float(os.environ.get("LENGTH", "0.02"))
log = os.open("runs", os.O_WRONLY | os.O_CREAT | os.O_APPEND)


@contextlib.contextmanager
def noted(job):
    with open(f"guard-{job}", "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            Path("violated").touch()
        os.write(log, f"{job} {cluster.slot} {os.getpid()} begin\n".encode())
        yield
        os.write(log, f"{job} {cluster.slot} {os.getpid()} end\n".encode())


@cluster.every(INTERVAL_S, name="tick")
def tick():
    with noted("tick"):
        time.sleep(LENGTH_S)


@cluster.every(INTERVAL_S, name="atick")
async def atick():
    with noted("atick"):
        await asyncio.sleep(LENGTH_S)


@cluster.every(INTERVAL_S, name="fails")
def fails():
    raise ValueError("on purpose")


def app(environ, start_response):
    start_response("200 OK", [("Content-Length", "2")])
    return [b"ok"]


async def asgi(scope, receive, send):
    assert scope["type"] == "http"
    headers = [(b"content-length", b"2")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": b"ok"})
