"""Hello world in FastAPI; /shop/… takes two numbers of the path."""

from fastapi import FastAPI

asgi = FastAPI()


@asgi.get("/")
async def index():
    return "Hello, world!"


@asgi.get("/shop/{shop}/items/{item}")
async def item(shop: int, item: int):
    return "Hello, world!"
