"""A chat across all workers: each line is broadcast to them, and each sends it to its own readers.

servo examples/chat.py:app -w 4

Each reader keeps a stream of server-sent events open to the worker that accepted its connection. In
a reload, that worker ends the stream when it drains. Browsers reconnect by themselves and send the
id of the last line that they got. A new worker asks an older one for the earlier lines.
"""

import asyncio
import json
import time
from collections import deque
from contextlib import asynccontextmanager

from starlette.applications import Starlette
from starlette.responses import HTMLResponse, Response, StreamingResponse
from starlette.routing import Route

from servo import cluster

history = deque(maxlen=500)
readers = set()

PAGE = """<!doctype html><meta charset="utf-8"><title>Chat</title>
<h1>Chat</h1><pre id="lines"></pre>
<form>
  <input name="name" placeholder="name"> <input name="text" size="60"> <button>Say</button>
</form>
<script>
const seen = new Set(), form = document.querySelector("form")
const events = new EventSource("events")
events.onmessage = (event) => {
  if (seen.has(event.lastEventId)) return  // a stream may begin with lines that we already have
  seen.add(event.lastEventId)
  const line = JSON.parse(event.data)
  document.getElementById("lines").append(`${line.name}: ${line.text}\\n`)
}
form.onsubmit = (event) => {
  event.preventDefault()
  const line = {name: form.name.value, text: form.text.value}
  fetch("say", {method: "POST", body: JSON.stringify(line)})
  form.text.value = ""
}
</script>"""


@cluster.on_message("chat")
def hear(line):
    """Receive a line that some worker, maybe this one, broadcast. All get the same order."""
    if any(line["id"] == old["id"] for old in history):
        return  # it was already in the history that another worker sent
    history.append(line)
    for queue in list(readers):
        if queue.full():
            readers.discard(queue)  # too slow: the stream ends, and the reader may reconnect
        else:
            queue.put_nowait(line)


@cluster.on_message("chat.history")
def tell_history(_):
    return list(history)


async def say(request):
    line = json.loads(await request.body())
    line = {name: str(line[name])[:2000] for name in ("name", "text")}
    line["id"] = f"{time.time_ns()}-{cluster.slot}"
    sent = cluster.broadcast(line, topic="chat")
    return Response(status_code=204 if sent else 503)


async def events(request):
    return StreamingResponse(
        stream(request.headers.get("last-event-id")),
        media_type="text/event-stream",
        headers={"cache-control": "no-store"},
    )


async def stream(last_id):
    queue = asyncio.Queue(maxsize=1000)
    readers.add(queue)
    ids = [line["id"] for line in history]
    missed = list(history)[ids.index(last_id) + 1 if last_id in ids else 0 :]
    try:
        yield f"retry: 100\nevent: worker\ndata: {cluster.slot} {cluster.pid}\n\n"
        for line in missed:
            yield event(line)
        while queue in readers and not cluster.is_draining():
            yield await next_event(queue)
    finally:
        readers.discard(queue)


async def next_event(queue):
    try:
        return event(await asyncio.wait_for(queue.get(), timeout=1))
    except asyncio.TimeoutError:
        return ": still here\n\n"


def event(line):
    return f"id: {line['id']}\ndata: {json.dumps(line)}\n\n"


@asynccontextmanager
async def lifespan(app):
    for worker in cluster.workers():
        if worker.state == "ready":
            try:
                lines = await cluster.arequest(None, to=worker.slot, topic="chat.history")
            except cluster.ClusterError:
                continue  # that worker has just ended
            for line in lines:
                hear(line)
            break
    yield


async def page(request):
    return HTMLResponse(PAGE)


app = Starlette(
    routes=[
        Route("/", page),
        Route("/events", events),
        Route("/say", say, methods=["POST"]),
    ],
    lifespan=lifespan,
)
