"""A chat over WebSockets in Starlette: a page, and a room that all clients of a process share.

servo examples/websocket.py:app

A room is a set in memory, so with several workers each one has its own. Reload the server (kill
-HUP) while the page is open: it gets close code 1012, and reconnects at once.
"""

import asyncio
import os

from starlette.applications import Starlette
from starlette.responses import HTMLResponse
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocketDisconnect

PAGE = """<!doctype html>
<title>Chat</title>
<h1>Chat</h1>
<form><input autofocus autocomplete="off" placeholder="Say something"></form>
<ul></ul>
<script>
const list = document.querySelector("ul"), input = document.querySelector("input");
let socket;

function show(text) {
  const item = document.createElement("li");
  item.textContent = text;
  list.prepend(item);
}

function connect() {
  const url = new URL("room", location.href);
  url.protocol = url.protocol.replace("http", "ws");
  socket = new WebSocket(url);
  socket.onmessage = event => show(event.data);
  socket.onclose = event => {
    show(`closed with ${event.code}`);
    // 1012: the worker was replaced, and another one is ready. Otherwise wait a little.
    setTimeout(connect, event.code === 1012 ? 0 : 2000);
  };
}

document.querySelector("form").onsubmit = event => {
  event.preventDefault();
  socket.send(input.value);
  input.value = "";
};
connect();
</script>
"""

room = set()


async def page(request):
    return HTMLResponse(PAGE)


async def join(websocket):
    # Browsers let any page open a WebSocket to us, so accept only our own page.
    origin = websocket.headers.get("origin")
    if origin and origin.partition("://")[2] != websocket.headers.get("host"):
        await websocket.close()  # before `accept`, this sends a 403
        return
    await websocket.accept()
    await websocket.send_text(f"You are in the room of process {os.getpid()}.")
    room.add(websocket)
    try:
        while True:
            await say(await websocket.receive_text())
    except WebSocketDisconnect:
        pass
    finally:
        room.discard(websocket)


async def say(text):
    await asyncio.gather(*(tell(member, text) for member in room))


async def tell(member, text):
    try:
        await member.send_text(text)
    except WebSocketDisconnect:
        room.discard(member)  # this member has just left


app = Starlette(routes=[Route("/", page), WebSocketRoute("/room", join)])
