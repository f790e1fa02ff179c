"""A Starlette app with a lifespan; every request can read its state.

servo examples/starlette_app.py:app -w auto
"""

import contextlib
import hashlib
import os
import time

from starlette.applications import Starlette
from starlette.responses import HTMLResponse, JSONResponse, StreamingResponse
from starlette.routing import Route

CHUNK = 64 * 1024


@contextlib.asynccontextmanager
async def lifespan(app):
    """Runs before the worker accepts its first connection, and after its last response."""
    yield {"started": time.time()}


async def index(request):
    started = getattr(request.state, "started", None)  # absent if the server runs no lifespan
    since = f" for {time.time() - started:.0f} s" if started else ""
    return HTMLResponse(f"<h1>Starlette</h1><p>Process {os.getpid()} serves{since}.</p>")


async def echo(request):
    return JSONResponse({"received": await request.json()})


async def upload(request):
    """Read the body piece by piece, so that it is never in memory as a whole."""
    digest, size = hashlib.sha256(), 0
    async for piece in request.stream():
        digest.update(piece)
        size += len(piece)
    return JSONResponse({"bytes": size, "sha256": digest.hexdigest()})


async def stream(request):
    total = int(request.query_params.get("bytes", 1_000_000))

    async def pieces():
        for start in range(0, total, CHUNK):
            yield b"." * min(CHUNK, total - start)

    return StreamingResponse(pieces(), media_type="application/octet-stream")


app = Starlette(
    routes=[
        Route("/", index),
        Route("/json", echo, methods=["POST"]),
        Route("/upload", upload, methods=["POST"]),
        Route("/stream", stream),
    ],
    lifespan=lifespan,
)
