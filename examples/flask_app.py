"""A Flask app: checksums of uploads, and a download that is generated while it is sent.

servo examples/flask_app.py:app -w auto --threads 4
"""

import hashlib
import os

from flask import Flask, Response, jsonify, request

app = Flask(__name__)

CHUNK = 64 * 1024


@app.get("/")
def index():
    return f"<h1>Flask</h1><p>Answered by process {os.getpid()}.</p>"


@app.post("/json")
def echo():
    return jsonify(received=request.get_json())


@app.post("/upload")
def upload():
    """Read the body piece by piece, so that it is never in memory as a whole."""
    digest, size = hashlib.sha256(), 0
    while piece := request.stream.read(CHUNK):
        digest.update(piece)
        size += len(piece)
    return jsonify(bytes=size, sha256=digest.hexdigest())


@app.get("/stream")
def stream():
    total = request.args.get("bytes", default=1_000_000, type=int)

    def pieces():
        for start in range(0, total, CHUNK):
            yield b"." * min(CHUNK, total - start)

    return Response(pieces(), mimetype="application/octet-stream")
