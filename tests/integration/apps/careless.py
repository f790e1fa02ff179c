"""Damages the objects that it got from the server, during and after its response.

The query selects the damage. The response has the worker's pid.
"""

import os


class Raises:
    def __str__(self):
        raise RuntimeError("no text for the access log")


def wsgi(environ, start_response):
    query = environ["QUERY_STRING"]
    body = b"%d" % os.getpid()
    headers = [("Content-Length", str(len(body)))]
    start_response("200 OK", headers)

    def blocks():
        yield body[:1]
        if query == "removed":
            del environ["REMOTE_ADDR"]
        elif query == "cleared":
            environ.clear()
        elif query == "replaced":
            environ["REMOTE_ADDR"] = [7]
        elif query == "textless":
            environ["X_ODD"] = Raises()
        elif query == "headers":
            headers.append(None)
        yield body[1:]

    return blocks()


async def asgi(scope, receive, send):
    assert scope["type"] == "http"
    query = scope["query_string"]
    body = b"%d" % os.getpid()
    headers = [(b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body[:1], "more_body": True})
    if query == b"removed":
        del scope["client"]
    elif query == b"cleared":
        scope["headers"].append(None)
        scope.clear()
    elif query == b"replaced":
        scope["client"] = [[7], 7]
    elif query == b"textless":
        scope["headers"].append((b"user-agent", [7]))
    elif query == b"headers":
        headers.append(None)
    await send({"type": "http.response.body", "body": body[1:]})
