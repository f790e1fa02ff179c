"""Releases of an app, good and broken, that a test deploys by overwriting a file."""

from __future__ import annotations

import os
from pathlib import Path

COUNT_IMPORT = "open('imports', 'a').write('x')\n"

WSGI = """
import time
from urllib.parse import parse_qs

time.sleep({slow_import_s})

def app(environ, start_response):
    seconds = parse_qs(environ["QUERY_STRING"]).get("s")
    if seconds:
        time.sleep(float(seconds[0]))
    body = b"{version}"
    start_response("200 OK", [("Content-Length", str(len(body)))])
    return [body]
"""

ASGI = """
import asyncio
import time
from urllib.parse import parse_qs

time.sleep({slow_import_s})

async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        await receive()
        {lifespan}
        await send({{"type": "lifespan.startup.complete"}})
        await receive()
        await send({{"type": "lifespan.shutdown.complete"}})
        return
    seconds = parse_qs(scope["query_string"].decode()).get("s")
    if seconds:
        await asyncio.sleep(float(seconds[0]))
    body = b"{version}"
    headers = [(b"content-length", b"%d" % len(body))]
    await send({{"type": "http.response.start", "status": 200, "headers": headers}})
    await send({{"type": "http.response.body", "body": body}})
"""

# What Starlette and others send when a lifespan raises.
FAILING_LIFESPAN = """await send(
            {"type": "lifespan.startup.failed", "message": "this lifespan is broken"}
        )
        return"""

BROKEN = {
    "raises on import": "raise RuntimeError('this release is broken')\n",
    "syntax error": "def app(:\n",
    "sys.exit on import": "import sys\nsys.exit(1)\n",
    "hangs on import": "import time\ntime.sleep(3600)\n",
}


def good(
    worker_class: str, version: str, slow_import_s: float = 0.0, lifespan: str = "pass"
) -> str:
    template = ASGI if worker_class == "async" else WSGI
    return COUNT_IMPORT + template.format(
        version=version, slow_import_s=slow_import_s, lifespan=lifespan
    )


def broken(worker_class: str) -> dict[str, str]:
    """The source of each broken release that this worker class can meet, by its fault."""
    sources = {name: COUNT_IMPORT + source for name, source in BROKEN.items()}
    if worker_class == "async":
        sources["lifespan startup fails"] = good("async", "broken", lifespan=FAILING_LIFESPAN)
    return sources


def deploy(directory: Path, source: str, name: str = "release.py") -> None:
    """Put the file there in one step, as a deployment does."""
    new = directory / f".{name}.new"
    new.write_text(source)
    os.replace(new, directory / name)


def imports(directory: Path) -> int:
    path = directory / "imports"
    return path.stat().st_size if path.exists() else 0
