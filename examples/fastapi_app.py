"""A FastAPI app; its documentation is at /docs.

servo examples/fastapi_app.py:app -w auto
"""

import hashlib
import os
from typing import Annotated, Any

from fastapi import Body, FastAPI, Request
from fastapi.responses import HTMLResponse, StreamingResponse

app = FastAPI(title="Servo example")

CHUNK = 64 * 1024


@app.get("/", response_class=HTMLResponse)
async def index() -> str:
    return f"<h1>FastAPI</h1><p>Answered by process {os.getpid()}.</p>"


@app.post("/json")
async def echo(received: Annotated[Any, Body()]) -> dict[str, Any]:
    return {"received": received}


@app.post("/upload")
async def upload(request: Request) -> dict[str, Any]:
    """Read the body piece by piece, so that it is never in memory as a whole."""
    digest, size = hashlib.sha256(), 0
    async for piece in request.stream():
        digest.update(piece)
        size += len(piece)
    return {"bytes": size, "sha256": digest.hexdigest()}


@app.get("/stream")
async def stream(bytes: int = 1_000_000) -> StreamingResponse:
    async def pieces():
        for start in range(0, bytes, CHUNK):
            yield b"." * min(CHUNK, bytes - start)

    return StreamingResponse(pieces(), media_type="application/octet-stream")
