"""Returns the request as the app saw it, and records each call in the file $SEEN."""

import json
import os

SEEN = os.open(os.environ["SEEN"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)


async def app(scope, receive, send):
    if scope["type"] != "http":
        raise NotImplementedError(scope["type"])
    body, error = b"", None
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            error = "disconnected"
            break
        body += message["body"]
        if not message["more_body"]:
            break
    path = scope["raw_path"].decode("latin-1")
    os.write(SEEN, json.dumps([path, error]).encode() + b"\n")
    if error:
        return
    answer = {
        "method": scope["method"],
        "path": path,
        "query": scope["query_string"].decode("latin-1"),
        "body": body.decode("latin-1"),
        "headers": [[n.decode("latin-1"), v.decode("latin-1")] for n, v in scope["headers"]],
    }
    data = json.dumps(answer).encode()
    length = [(b"content-length", b"%d" % len(data))]
    await send({"type": "http.response.start", "status": 200, "headers": length})
    await send({"type": "http.response.body", "body": data})
