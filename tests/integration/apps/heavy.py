"""Tasks of a pool, and the same app for WSGI and ASGI: `/NAME?ARGUMENT` runs the task NAME."""

from __future__ import annotations

import asyncio
import ctypes
import json
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote

from servo import pools

# The code's release, which a test changes for a reload.
RELEASE = 1
loaded: list[int] = []


def load() -> None:
    if os.path.exists("broken"):
        raise RuntimeError("the model is missing")
    loaded.append(os.getpid())


# --- tasks ------------------------------------------------------------------------------------


def pid(_argument: str) -> list[int]:
    return [os.getpid(), *loaded]


def release(_argument: str) -> int:
    return RELEASE


def upper(text: str) -> str:
    return text.upper()


def fail(text: str) -> None:
    raise ValueError(text)


def wait(path: str) -> int:
    """Say that it runs, and wait for a file."""
    Path(path + ".begun").write_text(str(os.getpid()))
    while not os.path.exists(path):
        time.sleep(0.01)
    return os.getpid()


def hang(path: str) -> None:
    """Hold the interpreter in C code."""
    Path(path + ".begun").write_text(str(os.getpid()))
    ctypes.PyDLL(None).sleep(600)


def die(_argument: str) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def megabytes(size: str) -> bytes:
    return bytes(int(size) << 20)


def numbers(size: str) -> Iterator[int]:
    yield from range(int(size))


def nested(_argument: str) -> list[str]:
    return pools.names()


TASKS = {f.__name__: f for f in (pid, release, upper, fail, wait, hang, die, megabytes, nested)}


# --- the app ----------------------------------------------------------------------------------


def describe(error: BaseException) -> dict[str, str]:
    return {"error": type(error).__name__, "text": str(error), "cause": str(error.__cause__)}


def shown(value: object) -> object:
    return len(value) if isinstance(value, bytes) else value


def call(name: str, argument: str) -> object:
    try:
        if name == "stream":
            return list(pools.executor("ml").stream(numbers, argument))
        executor = pools.executor("ml", cancel_running=name == "hang")
        future = executor.submit(TASKS[name], argument)
        if name == "hang" and argument.startswith("give-up"):
            while not os.path.exists(argument + ".begun"):
                time.sleep(0.01)
            return [future.cancel(), future.cancelled()]
        return shown(future.result())
    except Exception as error:  # noqa: BLE001  shown to the test
        return describe(error)


def wsgi(environ, start_response):
    name, argument = environ["PATH_INFO"].strip("/"), unquote(environ["QUERY_STRING"])
    body = json.dumps(call(name, argument) if name else os.getpid()).encode()
    start_response("200 OK", [("Content-Length", str(len(body)))])
    return [body]


async def acall(name: str, argument: str) -> object:
    try:
        if name == "stream":
            async with pools.executor("ml").stream(numbers, argument) as stream:
                return [item async for item in stream]
        executor = pools.executor("ml", cancel_running=name == "hang")
        loop = asyncio.get_running_loop()
        future = loop.run_in_executor(executor, TASKS[name], argument)
        if name == "hang" and argument.startswith("give-up"):
            while not os.path.exists(argument + ".begun"):
                await asyncio.sleep(0.01)
            future.cancel()
            return [True, future.cancelled()]
        return shown(await future)
    except Exception as error:  # noqa: BLE001  shown to the test
        return describe(error)


async def asgi(scope, receive, send):
    if scope["type"] == "lifespan":
        while (await receive())["type"] != "lifespan.shutdown":
            await send({"type": "lifespan.startup.complete"})
        await send({"type": "lifespan.shutdown.complete"})
        return
    name, argument = scope["path"].strip("/"), unquote(scope["query_string"].decode())
    body = json.dumps(await acall(name, argument) if name else os.getpid()).encode()
    headers = [(b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})
