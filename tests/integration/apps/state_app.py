"""Counters and locks that all workers share: `app` (WSGI) and `asgi`.

/add adds 1 to the counter `hits` and 3 to `work{step="add"}`, and then appends a byte to the file
`returned`: so that a test knows which additions have returned, also in workers that it kills.
/value responds with the values of both.
"""

import json
import os

from servo import cluster

hits = cluster.counter("hits")
returned = os.open("returned", os.O_WRONLY | os.O_CREAT | os.O_APPEND)


def answer(path):
    if path == "/add":
        hits.add()
        os.write(returned, b"x")
        cluster.counter("work", step="add").add(3)
    elif path == "/fork":
        pid = os.fork()
        if pid == 0:
            hits.add(1000)
            os._exit(0)
        os.waitpid(pid, 0)
    elif path != "/value":
        return b"ok"
    return json.dumps([hits.value(), cluster.counter("work", step="add").value()]).encode()


def app(environ, start_response):
    body = answer(environ["PATH_INFO"])
    start_response("200 OK", [("Content-Length", str(len(body)))])
    return [body]


async def asgi(scope, receive, send):
    assert scope["type"] == "http"
    body = answer(scope["path"])
    headers = [(b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})
