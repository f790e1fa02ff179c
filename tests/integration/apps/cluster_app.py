"""Workers that exchange messages: `app` (WSGI) and `asgi` let a test control each of them.

POST /ask?to=SLOT&topic=TOPIC&timeout=S sends that worker a request, and responds with its reply or
the error. POST /hold waits until the file `release` exists, and responds with the messages that
arrived meanwhile.
"""

import asyncio
import contextlib
import json
import os
import signal
import threading
import time
from pathlib import Path
from urllib.parse import parse_qs

from servo import cluster

heard = []
results = []


@cluster.on_message("note")
def note(message, sender):
    heard.append([sender.slot, message[0] if isinstance(message, list) else message])


@cluster.on_message("async note")
async def async_note(message, sender):
    heard.append([sender.slot, message])
    await asyncio.sleep(0)
    return len(heard)


@cluster.on_message
def plain(message):
    heard.append(["plain", message])


@cluster.on_message("heard")
def tell(_):
    return heard


@cluster.on_message("who")
def who(_):
    return {"slot": cluster.slot, "pid": cluster.pid, "draining": cluster.is_draining()}


@cluster.on_message("workers")
def workers(_):
    return [worker._asdict() for worker in cluster.workers()]


@cluster.on_message("stats")
def stats(_):
    return cluster.stats()._asdict()


def in_thread(function, *args):
    """A thread of the application's, which the server knows nothing of."""
    thread = threading.Thread(target=lambda: results.append(function(*args)), daemon=True)
    thread.start()


def ask(order):
    while not Path("go").exists():
        time.sleep(0.01)
    try:
        return cluster.request(None, **order)
    except cluster.ClusterError as error:
        return {"error": type(error).__name__, "text": str(error)}


cluster.on_message("start ask")(lambda order: in_thread(ask, order))
cluster.on_message("start send")(lambda order: in_thread(send, order))
cluster.on_message("results")(lambda _: results)


@cluster.on_message("send")
def send(order):
    """Send numbers, each with some padding, to a slot or to all; how many were not dropped here."""
    padding = "x" * order.get("padding", 0)
    sent = 0
    for number in range(order["count"]):
        message = [number, padding] if padding else number
        if order["to"] == "all":
            sent += cluster.broadcast(message, topic="note")
        else:
            sent += cluster.send(message, to=order["to"], topic="note")
    return sent


@cluster.on_message("relay")
def relay(slots):
    """Ask the first of these slots to ask the next … who the last one is."""
    if not slots:
        return cluster.slot
    return cluster.request(slots[1:], to=slots[0], topic="relay")


@cluster.on_message("async relay")
async def async_relay(slots):
    if not slots:
        return cluster.slot
    return await cluster.arequest(slots[1:], to=slots[0], topic="async relay")


@cluster.on_message("reverse")
def reverse(data):
    assert isinstance(data, bytes)
    return data[::-1]


@cluster.on_message("ask for bytes")
def ask_for_bytes(to):
    """Send another worker all values of a byte, and return its answer as numbers."""
    return list(cluster.request(bytes(range(256)), to=to, topic="reverse"))


@cluster.on_message("block")
def block(_):
    """Hold up this worker's handlers until the file `release` is there."""
    Path(f"blocked-{cluster.slot}").touch()
    while not Path("release").exists():
        time.sleep(0.01)
    return "released"


@cluster.on_message("die")
def die(_):
    os.kill(os.getpid(), signal.SIGKILL)


@cluster.on_message("raise")
def fail(_):
    raise ValueError("on purpose")


@cluster.on_message("fork")
def fork(_):
    """What a process that this one forks gets to hear when it sends."""
    read, write = os.pipe()
    if os.fork() == 0:
        try:
            cluster.broadcast("I am no worker", topic="note")
            text = "sent"
        except cluster.ClusterError as error:
            text = str(error)
        os.write(write, text.encode())
        os._exit(0)
    os.close(write)
    with open(read, "rb") as pipe:
        return pipe.read().decode()


def flood(to):
    """Send as fast as it goes until `release` is there."""
    while not Path("release").exists():
        cluster.send("x" * 100, to=to, topic="flood")


cluster.on_message("flood")(lambda _: None)
cluster.on_message("start flood")(lambda to: in_thread(flood, to))


def arguments(query, body):
    values = {name: found[0] for name, found in parse_qs(query).items()}
    return {
        "message": json.loads(body or b"null"),
        "to": int(values.get("to", 1)),
        "topic": values.get("topic", ""),
        "timeout": float(values.get("timeout", 30)),
    }


def failure(error):
    return json.dumps({"error": type(error).__name__, "text": str(error)}).encode()


def app(environ, start_response):
    start_response("200 OK", [("Content-Type", "application/json")])
    if environ["PATH_INFO"] == "/hold":
        block(None)
        return [json.dumps({**who(None), "heard": heard}).encode()]
    given = arguments(environ["QUERY_STRING"], environ["wsgi.input"].read())
    try:
        return [json.dumps(cluster.request(given.pop("message"), **given)).encode()]
    except cluster.ClusterError as error:
        return [failure(error)]


async def asgi(scope, receive, send):
    assert scope["type"] == "http"
    body = (await receive())["body"]
    await send({"type": "http.response.start", "status": 200, "headers": []})
    if scope["path"] == "/hold":
        Path(f"blocked-{cluster.slot}").touch()
        while not Path("release").exists():
            await asyncio.sleep(0.01)
        answer = json.dumps({**who(None), "heard": heard}).encode()
    else:
        given = arguments(scope["query_string"].decode(), body)
        try:
            answer = json.dumps(await cluster.arequest(given.pop("message"), **given)).encode()
        except cluster.ClusterError as error:
            answer = failure(error)
    with contextlib.suppress(OSError):
        await send({"type": "http.response.body", "body": answer})
