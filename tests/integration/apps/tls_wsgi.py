"""A WSGI app for the TLS tests: the environ, and a file."""

import json
import os
from urllib.parse import parse_qs


def app(environ, start_response):
    query = parse_qs(environ["QUERY_STRING"])
    if environ["PATH_INFO"] == "/file":
        size = str(os.stat(query["path"][0]).st_size)
        start_response("200 OK", [("Content-Length", size)])
        return environ["wsgi.file_wrapper"](open(query["path"][0], "rb"))
    if environ["PATH_INFO"] == "/echo":
        body = environ["wsgi.input"].read()
    else:
        body = json.dumps(
            {
                "pid": os.getpid(),
                "scheme": environ["wsgi.url_scheme"],
                "client": [environ["REMOTE_ADDR"], environ["REMOTE_PORT"]],
                "environ": {k: v for k, v in environ.items() if isinstance(v, str)},
            }
        ).encode()
    start_response("200 OK", [("Content-Length", str(len(body)))])
    return [body]
