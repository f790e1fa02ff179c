"""Every example behind one server, each under its own path: what `make run` serves.

servo examples/all.py:app
"""

import sys
from pathlib import Path

from asgiref.wsgi import WsgiToAsgi
from starlette.applications import Starlette
from starlette.responses import HTMLResponse
from starlette.routing import Mount, Route

# The examples are files beside this one, not a package; `servo path/to/file.py:app` needs none.
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
