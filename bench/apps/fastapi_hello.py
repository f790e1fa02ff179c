"""FastAPI's hello."""

from fastapi import FastAPI

asgi = FastAPI()


@asgi.get("/")
async def index():
    return "Hello, world!"
