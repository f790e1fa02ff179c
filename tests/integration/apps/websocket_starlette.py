"""WebSockets in Starlette: an endpoint class, a function, and a refusal with an answer."""

from starlette.applications import Starlette
from starlette.endpoints import WebSocketEndpoint
from starlette.responses import JSONResponse
from starlette.routing import WebSocketRoute
from starlette.websockets import WebSocketDisconnect


class Shout(WebSocketEndpoint):
    encoding = "text"

    async def on_receive(self, websocket, data):
        await websocket.send_text(data.upper())

    async def on_disconnect(self, websocket, close_code):
        print(f"endpoint: {close_code}", flush=True)


async def add(websocket):
    await websocket.accept(subprotocol="sum", headers=[(b"x-adds", b"yes")])
    try:
        while True:
            await websocket.send_json(sum(await websocket.receive_json()))
    except WebSocketDisconnect as error:
        print(f"function: {error.code} {error.reason}", flush=True)


async def guarded(websocket):
    await websocket.send_denial_response(JSONResponse({"detail": "who are you?"}, status_code=401))


app = Starlette(
    routes=[
        WebSocketRoute("/shout", Shout),
        WebSocketRoute("/add", add),
        WebSocketRoute("/guarded", guarded),
    ]
)
