"""Returns the request as the app saw it, and records each call in the file $SEEN."""

import json
import os

SEEN = os.open(os.environ["SEEN"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)


def app(environ, start_response):
    body = environ["wsgi.input"].read()
    target = environ["RAW_URI"]
    path = target.partition("?")[0] if target[:1] in ("/", "*") else environ["PATH_INFO"]
    os.write(SEEN, json.dumps([path, None]).encode() + b"\n")
    headers = [
        [key.removeprefix("HTTP_").replace("_", "-").lower(), value]
        for key, value in environ.items()
        if key.startswith("HTTP_") or key in ("CONTENT_TYPE", "CONTENT_LENGTH")
    ]
    answer = {
        "method": environ["REQUEST_METHOD"],
        "path": path,
        "query": environ["QUERY_STRING"],
        "body": body.decode("latin-1"),
        "headers": headers,
    }
    data = json.dumps(answer).encode()
    start_response("200 OK", [("Content-Length", str(len(data)))])
    return [data]
