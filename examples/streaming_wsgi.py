"""Streaming downloads in plain WSGI: a generated body of any size, and a file sent by the kernel.

servo examples/streaming_wsgi.py:app

    curl -o big   'http://127.0.0.1:8000/generated?bytes=100000000'
    curl -o itself http://127.0.0.1:8000/file
"""

import os
from urllib.parse import parse_qs

CHUNK = 64 * 1024


def app(environ, start_response):
    if environ["PATH_INFO"] == "/file":
        return send_file(environ, start_response)
    query = parse_qs(environ["QUERY_STRING"])
    total = int(query.get("bytes", ["1000000"])[0])
    # Without a Content-Length, the server frames the body itself (chunked for HTTP/1.1 clients).
    start_response("200 OK", [("Content-Type", "application/octet-stream")])
    return generate(total)


def generate(total):
    for start in range(0, total, CHUNK):
        yield b"." * min(CHUNK, total - start)


def send_file(environ, start_response):
    """Return PEP 3333's `wsgi.file_wrapper`: the server copies the file with sendfile(2)."""
    file = open(__file__, "rb")  # noqa: SIM115 - the server closes it after sending it
    start_response(
        "200 OK",
        [
            ("Content-Type", "text/x-python; charset=utf-8"),
            ("Content-Length", str(os.fstat(file.fileno()).st_size)),
        ],
    )
    return environ["wsgi.file_wrapper"](file, CHUNK)
