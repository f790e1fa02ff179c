"""Hello world in Starlette; /shop/… takes two numbers of the path."""

from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route


async def index(request):
    return PlainTextResponse("Hello, world!")


asgi = Starlette(
    routes=[Route("/", index), Route("/shop/{shop:int}/items/{item:int}", index)],
)
