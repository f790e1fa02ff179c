"""A Django project in one file.

servo examples/django_app.py:app -w auto        # WSGI, in `sync` workers
servo examples/django_app.py:asgi_app -w auto   # ASGI, in `async` workers
"""

import hashlib
import json
import os

from django.conf import settings
from django.core.asgi import get_asgi_application
from django.core.handlers.asgi import ASGIRequest
from django.core.wsgi import get_wsgi_application
from django.http import HttpResponse, JsonResponse, StreamingHttpResponse
from django.urls import path
from django.views.decorators.http import require_GET, require_POST

settings.configure(
    ALLOWED_HOSTS=["*"],
    DEBUG=os.environ.get("DJANGO_DEBUG") == "1",
    ROOT_URLCONF=__name__,
    SECRET_KEY=os.environ.get("DJANGO_SECRET_KEY", "only-for-the-example"),
    USE_TZ=True,
)

CHUNK = 64 * 1024


@require_GET
def index(request):
    return HttpResponse(f"<h1>Django</h1><p>Answered by process {os.getpid()}.</p>")


@require_POST
def echo(request):
    return JsonResponse({"received": json.loads(request.body)})


@require_POST
def upload(request):
    """Read the body piece by piece, so that it is never in memory as a whole."""
    digest, size = hashlib.sha256(), 0
    while piece := request.read(CHUNK):
        digest.update(piece)
        size += len(piece)
    return JsonResponse({"bytes": size, "sha256": digest.hexdigest()})


@require_GET
def stream(request):
    total = int(request.GET.get("bytes", 1_000_000))
    sizes = [min(CHUNK, total - start) for start in range(0, total, CHUNK)]

    async def pieces_later():
        for size in sizes:
            yield b"." * size

    # Over ASGI, Django reads all of a plain iterator before it sends anything.
    pieces = pieces_later() if isinstance(request, ASGIRequest) else (b"." * n for n in sizes)
    return StreamingHttpResponse(pieces, content_type="application/octet-stream")


urlpatterns = [
    path("", index),
    path("json", echo),
    path("upload", upload),
    path("stream", stream),
]

app = get_wsgi_application()
asgi_app = get_asgi_application()
