"""An upload in plain WSGI: counts the bytes of the body and says its SHA-256.

servo examples/upload.py:app

    head -c 50000000 /dev/urandom > big
    curl -T big http://127.0.0.1:8000/                                  # with a Content-Length
    curl -T big -H 'Transfer-Encoding: chunked' http://127.0.0.1:8000/  # without one

The server takes the body in before it calls the app (past 1 MiB, on disk), so a slow client holds
no worker. It also ends the stream where the body ends (`wsgi.input_terminated`), so that an app
reads a chunked body, which has no Content-Length, like any file.
"""

import hashlib
import json

CHUNK = 64 * 1024


def app(environ, start_response):
    digest, size = hashlib.sha256(), 0
    while piece := environ["wsgi.input"].read(CHUNK):
        digest.update(piece)
        size += len(piece)
    answer = json.dumps({"bytes": size, "sha256": digest.hexdigest()}).encode() + b"\n"
    start_response(
        "200 OK", [("Content-Type", "application/json"), ("Content-Length", str(len(answer)))]
    )
    return [answer]
