"""Hello world in Starlette."""

from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route


async def index(request):
    return PlainTextResponse("Hello, world!")


asgi = Starlette(routes=[Route("/", index)])
