"""Serve every example in one server, each under its own path; `make run` runs this.

servo examples/all.py:app
"""

import sys
from pathlib import Path

from asgiref.wsgi import WsgiToAsgi
from starlette.applications import Starlette
from starlette.responses import HTMLResponse
from starlette.routing import Mount, Route

# The examples are separate files, not a package, so their directory has to be on the path.
sys.path.insert(0, str(Path(__file__).parent))

import chat
import django_app
import fastapi_app
import flask_app
import starlette_app
import streaming_asgi
import upload
import websocket

MOUNTS = {
    "/flask": (WsgiToAsgi(flask_app.app), "Flask (WSGI, in threads)", "/"),
    "/django": (django_app.asgi_app, "Django (ASGI)", "/"),
    "/starlette": (starlette_app.app, "Starlette", "/"),
    "/fastapi": (fastapi_app.app, "FastAPI", "/docs"),
    "/cluster-chat": (chat.app, "A chat across all workers", "/"),
    "/streaming": (streaming_asgi.app, "Streaming: a feed of events", "/events"),
    "/chat": (websocket.app, "WebSocket: a chat", "/"),
    "/upload": (WsgiToAsgi(upload.app), "Upload: curl -T FILE", "/"),
}


async def index(request):
    links = "".join(
        f'<li><a href="{path}{entry}">{title}</a></li>'
        for path, (_, title, entry) in MOUNTS.items()
    )
    return HTMLResponse(f"<h1>Servo's examples</h1><ul>{links}</ul>")


app = Starlette(
    routes=[Route("/", index), *(Mount(path, app) for path, (app, _, _) in MOUNTS.items())]
)
