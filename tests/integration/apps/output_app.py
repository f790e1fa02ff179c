"""Apps that print and log in many ways: the path says how."""

import asyncio
import logging
import multiprocessing
import os
import signal
import subprocess
import sys
import time
import traceback
from pathlib import Path

logging.basicConfig(level=logging.INFO, format="%(name)s said %(message)s")
log = logging.getLogger("shop")

print("printed by the import")


def fail():
    try:
        try:
            raise ValueError("the first on purpose")
        except ValueError:
            raise KeyError("the second on purpose")  # noqa: B904
    except KeyError:
        traceback.print_exc()


def die():
    print("last words")
    print("and a line without its end", end="", flush=True)
    os.kill(os.getpid(), signal.SIGKILL)


def flood():
    for number in range(200_000):
        sys.stdout.write(f"\x1b]0;title\x07\x9b31m{number} {'x' * 100}\n")
    os.write(1, b"\n")


def garbage():
    sys.stdout.buffer.write(bytes(range(256)) * 4 + b"\n")
    sys.stdout.buffer.write(b"\xff" * (1 << 16) + b"\n")
    sys.stdout.buffer.flush()
    print("\x1b[31mred\x1b[0m \x1b]2;title\x07 \u202eend")


def child():
    process = multiprocessing.get_context("fork").Process(
        target=lambda: print("printed by a child", flush=True)
    )
    process.start()
    process.join()
    subprocess.run(["echo", "printed by a program"], check=True)


def replaced():
    before, sys.stdout = sys.stdout, sys.stderr
    print("printed to another stream")
    sys.stdout = before


ACTS = {
    "/": lambda: None,
    "/print": lambda: print("printed by a request"),
    "/log": lambda: log.warning("logged by a request"),
    "/log-error": lambda: log.error("logged as an error"),
    "/fail": fail,
    "/die": die,
    "/flood": flood,
    "/garbage": garbage,
    "/child": child,
    "/replaced": replaced,
}


def act(path):
    ACTS.get(path, ACTS["/"])()


def is_released():
    return Path(os.environ["RELEASE"]).exists()


def wsgi(environ, start_response):
    path = environ["PATH_INFO"]
    if path == "/wait":
        print("printed while the request waits")
        while not is_released():
            time.sleep(0.01)
    act(path)
    start_response("404 Not Found" if path == "/missing" else "200 OK", [("Content-Length", "2")])
    return [b"ok"]


async def asgi(scope, receive, send):
    assert scope["type"] == "http"
    path = scope["path"]
    if path == "/wait":
        print("printed while the request waits")
        while not is_released():
            await asyncio.sleep(0.01)
    act(path)
    status = 404 if path == "/missing" else 200
    await send({"type": "http.response.start", "status": status, "headers": []})
    await send({"type": "http.response.body", "body": b"ok"})
