"""The application of `bench/messages.py`, for two workers. The worker that gets the request sends
messages to the other one, which counts them."""

import json
import time

from servo import cluster

BATCH = 4096  # messages to send before asking the other worker how many have arrived
MESSAGE = {"user": 7, "text": "hello"}

received = 0
in_order = True


@cluster.on_message("count")
def count(message):
    global received, in_order
    in_order = in_order and message["number"] == received
    received += 1


@cluster.on_message("received")
def tell(reset):
    global received, in_order
    if reset:
        received, in_order = 0, True
    return {"received": received, "in_order": in_order}


@cluster.on_message("echo")
def echo(value):
    return value


def send_batch(start, other):
    for number in range(start, start + BATCH):
        assert cluster.send({"number": number, **MESSAGE}, to=other, topic="count")


async def app(scope, receive, send):
    """GET /send?COUNT and /ask?COUNT, over ASGI."""
    other, number = 3 - cluster.slot, int(scope["query_string"])
    times = [time.perf_counter()]
    if scope["path"] == "/send":
        result = await cluster.arequest(True, to=other, topic="received")
        for start in range(0, number, BATCH):
            send_batch(start, other)
            result = await cluster.arequest(False, to=other, topic="received", timeout=60)
            assert result == {"received": start + BATCH, "in_order": True}
    else:
        for value in range(number):
            assert await cluster.arequest(value, to=other, topic="echo") == value
            times.append(time.perf_counter())
        result = {"times": times}
    body = json.dumps({"seconds": time.perf_counter() - times[0], **result}).encode()
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": body})


def wsgi(environ, start_response):
    """GET /send?COUNT and /ask?COUNT, over WSGI."""
    other, number = 3 - cluster.slot, int(environ["QUERY_STRING"])
    times = [time.perf_counter()]
    if environ["PATH_INFO"] == "/send":
        result = cluster.request(True, to=other, topic="received")
        for start in range(0, number, BATCH):
            send_batch(start, other)
            result = cluster.request(False, to=other, topic="received", timeout=60)
            assert result == {"received": start + BATCH, "in_order": True}
    else:
        for value in range(number):
            assert cluster.request(value, to=other, topic="echo") == value
            times.append(time.perf_counter())
        result = {"times": times}
    body = json.dumps({"seconds": time.perf_counter() - times[0], **result}).encode()
    start_response("200 OK", [("Content-Length", str(len(body)))])
    return [body]
