"""Hello world in FastAPI."""

from fastapi import FastAPI

asgi = FastAPI()


@asgi.get("/")
async def index():
    return "Hello, world!"
