"""Pictures that are computed in a pool, so that the worker stays free for other requests.

servo examples/thumbnails.py:app \
    --pools '{"thumbs": {"workers": 2, "initializer": "thumbnails:load", "queue": 50}}'
"""

import asyncio
import struct
import zlib

from starlette.applications import Starlette
from starlette.responses import HTMLResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from servo import pools

SIZE = 160
STEPS = 120

# The "model" of this example: each pool process makes it once, before its first task.
palette: list[bytes] = []


def load():
    palette[:] = [bytes((n * 7 % 256, n * 5 % 256, n * 11 % 256)) for n in range(STEPS)]
    palette.append(b"\0\0\0")


# --- tasks: functions at the top level of a module ------------------------------------------------


def row(zoom, y):
    """One row of the Mandelbrot set, as the bytes of its pixels."""
    pixels = []
    for x in range(SIZE):
        c = complex(-0.7436 + (x / SIZE - 0.5) * zoom, 0.1318 + (y / SIZE - 0.5) * zoom)
        z, steps = 0j, 0
        while steps < STEPS and abs(z) < 2:
            z, steps = z * z + c, steps + 1
        pixels.append(palette[steps])
    return b"".join(pixels)


def thumbnail(zoom):
    """A picture of the set, as a PNG."""
    lines = b"".join(b"\0" + row(zoom, y) for y in range(SIZE))
    parts = [
        (b"IHDR", struct.pack(">IIBBBBB", SIZE, SIZE, 8, 2, 0, 0, 0)),
        (b"IDAT", zlib.compress(lines)),
        (b"IEND", b""),
    ]
    chunks = (
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in parts
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def brightness(zoom):
    """A generator: the brightness of each row, as soon as it is computed."""
    for y in range(SIZE):
        yield sum(row(zoom, y)) // (3 * SIZE)


# --- the app --------------------------------------------------------------------------------------


async def page(request):
    zooms = [3 / 2**n for n in range(12)]
    images = "".join(f'<img src="/picture?zoom={zoom}">' for zoom in zooms)
    return HTMLResponse(f"<h1>Thumbnails from a pool</h1>{images}")


async def picture(request):
    zoom = float(request.query_params.get("zoom", 3))
    # With cancel_running, a picture that takes too long is not computed to its end.
    thumbs = pools.executor("thumbs", cancel_running=True)
    loop = asyncio.get_running_loop()
    try:
        png = await asyncio.wait_for(loop.run_in_executor(thumbs, thumbnail, zoom), 30)
    except pools.QueueFull:
        return PlainTextResponse("busy", 503, {"Retry-After": "5"})
    return Response(png, media_type="image/png", headers={"Cache-Control": "max-age=3600"})


async def rows(request):
    zoom = float(request.query_params.get("zoom", 3))

    async def lines():
        async with pools.executor("thumbs").stream(brightness, zoom) as stream:
            async for value in stream:
                yield f"{value}\n"

    return StreamingResponse(lines(), media_type="text/plain")


app = Starlette(routes=[Route("/", page), Route("/picture", picture), Route("/rows", rows)])
