"""An upload in plain WSGI: returns the number of bytes of the body and its SHA-256.

servo examples/upload.py:app

    head -c 50000000 /dev/urandom > big
    curl -T big http://127.0.0.1:8000/                                  # with a Content-Length
    curl -T big -H 'Transfer-Encoding: chunked' http://127.0.0.1:8000/  # without one

The server reads the body before it calls the app, and keeps a body over 1 MiB on disk, so a slow
client doesn't occupy a worker. It also ends the stream at the end of the body
(`wsgi.input_terminated`), so an app can read a chunked body, which has no Content-Length, like a
file.
"""

import hashlib
import json

CHUNK = 64 * 1024


def app(environ, start_response):
    if environ["REQUEST_METHOD"] == "GET":
        return usage(environ, start_response)
    digest, size = hashlib.sha256(), 0
    while piece := environ["wsgi.input"].read(CHUNK):
        digest.update(piece)
        size += len(piece)
    answer = json.dumps({"bytes": size, "sha256": digest.hexdigest()}).encode() + b"\n"
    start_response(
        "200 OK", [("Content-Type", "application/json"), ("Content-Length", str(len(answer)))]
    )
    return [answer]


def usage(environ, start_response):
    # If a URL ends in a slash, curl adds the name of the file.
    path = (environ["SCRIPT_NAME"] + environ["PATH_INFO"]).rstrip("/") + "/"
    url = f"{environ['wsgi.url_scheme']}://{environ['HTTP_HOST']}{path}"
    text = f"Send a file with: curl -T FILE {url}\n".encode()
    headers = [("Content-Type", "text/plain"), ("Content-Length", str(len(text)))]
    start_response("200 OK", headers)
    return [text]
