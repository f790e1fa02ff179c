"""The app on the pictures of the documentation: a shop whose requests take different times."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from typing import Any

_RANDOM = random.Random(4711)


async def app(
    scope: dict[str, Any],
    receive: Callable[[], Awaitable[dict[str, Any]]],
    send: Callable[[dict[str, Any]], Awaitable[None]],
) -> None:
    """Answer `/` at once, `/search` and `/order` later; `/report` blocks the event loop."""
    if scope["type"] != "http":
        raise RuntimeError("this app only serves HTTP")
    status = 200
    match scope["path"]:
        case "/search":
            await asyncio.sleep(_RANDOM.lognormvariate(-4.2, 0.5))
        case "/order":
            await asyncio.sleep(_RANDOM.uniform(0.002, 0.006))
            status = 500 if _RANDOM.random() < 0.02 else 303
        case "/report":
            time.sleep(12)
        case "/":
            sum(range(_RANDOM.randrange(200_000)))
        case _:
            status = 404
    fields = [(b"content-length", b"2")]
    await send({"type": "http.response.start", "status": status, "headers": fields})
    await send({"type": "http.response.body", "body": b"ok"})
