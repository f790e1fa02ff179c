"""The requests of HttpArena, answered as its Python entries do; `wsgi` and `asgi` do the same.

/baseline?a=1&b=2   the sum of the query's numbers, and of the number that a POST sends
/json/50?m=1        50 items, each with a total that is computed for the request, as JSON
/static/NAME        a file of `.bench/static`, by the server's own means if it has some:
                    wsgi.file_wrapper; http.response.pathsend, http.response.zerocopysend
"""

from pathlib import Path
from urllib.parse import parse_qs

import orjson

STATIC = Path(__file__).parents[2] / ".bench" / "static"
TYPES = {
    ".css": "text/css",
    ".html": "text/html",
    ".js": "text/javascript",
    ".json": "application/json",
    ".svg": "image/svg+xml",
    ".webp": "image/webp",
    ".woff2": "font/woff2",
}
# Name -> path, type, bytes. Only these files are served.
FILES = {
    path.name: (str(path), TYPES[path.suffix], path.stat().st_size)
    for path in (STATIC.iterdir() if STATIC.is_dir() else ())
}
PIECE = 65_536
ITEMS = [
    {
        "id": number,
        "name": f"Item {number:02}",
        "category": ("electronics", "tools", "books")[number % 3],
        "price": 100 + number * 7,
        "quantity": 1 + number % 20,
        "active": number % 4 > 0,
        "tags": ["sale", "heavy-duty", "popular"],
        "rating": {"score": number % 50, "count": 50 + number},
    }
    for number in range(1, 51)
]


def total(query, body):
    found = sum(int(values[0]) for values in parse_qs(query).values())
    return b"%d" % (found + int(body) if body else found)


def items(path, query):
    factor = int(parse_qs(query)["m"][0])
    found = [
        {**item, "total": item["price"] * item["quantity"] * factor}
        for item in ITEMS[: int(path.rpartition("/")[2])]
    ]
    return orjson.dumps({"items": found, "count": len(found)})


def wsgi(environ, start_response):
    path, query = environ["PATH_INFO"], environ["QUERY_STRING"]
    if path.startswith("/static/"):
        return wsgi_file(path[8:], environ, start_response)
    if path.startswith("/json/"):
        kind, body = "application/json", items(path, query)
    else:
        size = int(environ.get("CONTENT_LENGTH") or 0)
        kind, body = "text/plain", total(query, environ["wsgi.input"].read(size) if size else b"")
    start_response("200 OK", [("Content-Type", kind), ("Content-Length", str(len(body)))])
    return [body]


def wsgi_file(name, environ, start_response):
    path, kind, size = FILES[name]
    start_response("200 OK", [("Content-Type", kind), ("Content-Length", str(size))])
    file = open(path, "rb")  # noqa: SIM115 (the server closes it)
    wrapper = environ.get("wsgi.file_wrapper")
    return wrapper(file, PIECE) if wrapper else pieces(file)


def pieces(file):
    with file:
        while piece := file.read(PIECE):
            yield piece


async def asgi(scope, receive, send):
    if scope["type"] == "lifespan":
        await lifespan(receive, send)
        return
    path, query = scope["path"], scope["query_string"].decode()
    if path.startswith("/static/"):
        await asgi_file(path[8:], scope, send)
        return
    if path.startswith("/json/"):
        kind, body = b"application/json", items(path, query)
    else:
        body = await read(receive) if scope["method"] == "POST" else b""
        kind, body = b"text/plain", total(query, body)
    headers = [(b"content-type", kind), (b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def asgi_file(name, scope, send):
    path, kind, size = FILES[name]
    headers = [(b"content-type", kind.encode()), (b"content-length", b"%d" % size)]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    extensions = scope.get("extensions") or {}
    if "http.response.pathsend" in extensions:
        await send({"type": "http.response.pathsend", "path": path})
        return
    with open(path, "rb") as file:  # noqa: ASYNC230 (the file is in memory)
        if "http.response.zerocopysend" in extensions:
            await send({"type": "http.response.zerocopysend", "file": file.fileno()})
            return
        for piece in pieces(file):
            await send({"type": "http.response.body", "body": piece, "more_body": True})
    await send({"type": "http.response.body", "body": b""})


async def read(receive):
    body, more = b"", True
    while more:
        message = await receive()
        more = message.get("more_body", False)
        body += message.get("body", b"")
    return body


async def lifespan(receive, send):
    while True:
        message = await receive()
        await send({"type": message["type"] + ".complete"})
        if message["type"] == "lifespan.shutdown":
            return
