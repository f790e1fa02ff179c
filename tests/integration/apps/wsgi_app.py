"""The WSGI app of the integration tests: each path has one function."""

import asyncio
import hashlib
import json
import os
import threading
import time
from urllib.parse import parse_qs

CHUNK = 64 * 1024


def app(environ, start_response):
    path = environ["PATH_INFO"]
    query = {k: v[0] for k, v in parse_qs(environ["QUERY_STRING"]).items()}
    handler = HANDLERS.get(path)
    if handler is None:
        return answer(start_response, b"no such path", "404 Not Found")
    return handler(environ, start_response, query)


def answer(start_response, body, status="200 OK", content_type="text/plain"):
    start_response(status, [("Content-Type", content_type), ("Content-Length", str(len(body)))])
    return [body]


def index(environ, start_response, query):
    return answer(start_response, b"ok")


def pid(environ, start_response, query):
    return answer(start_response, str(os.getpid()).encode())


def echo(environ, start_response, query):
    body = environ["wsgi.input"].read()
    return answer(start_response, body, content_type=environ.get("CONTENT_TYPE") or "text/plain")


def upload(environ, start_response, query):
    digest, size = hashlib.sha256(), 0
    while piece := environ["wsgi.input"].read(CHUNK):
        digest.update(piece)
        size += len(piece)
    return answer(
        start_response, json.dumps({"bytes": size, "sha256": digest.hexdigest()}).encode()
    )


def stream(environ, start_response, query):
    total = int(query.get("bytes", 1_000_000))
    start_response("200 OK", [("Content-Type", "application/octet-stream")])
    return (b"." * min(CHUNK, total - start) for start in range(0, total, CHUNK))


def file(environ, start_response, query):
    """The file that $BIG_FILE names, sent by the server."""
    start_response("200 OK", [("Content-Type", "application/octet-stream")])
    return environ["wsgi.file_wrapper"](open(os.environ["BIG_FILE"], "rb"))


def bulk(environ, start_response, query):
    return answer(start_response, b"b" * int(query.get("bytes", 100_000)))


def endless(environ, start_response, query):
    """Until the client goes away; says in the log that the iterator was closed."""
    start_response("200 OK", [("Content-Type", "text/plain")])
    try:
        while True:
            yield b"e" * CHUNK
    finally:
        print("the endless body has ended", flush=True)


def ignore(environ, start_response, query):
    """Answer without a look at the body."""
    return answer(start_response, b"ignored")


def fail_late(environ, start_response, query):
    start_response("200 OK", [("Content-Type", "text/plain")])
    yield b"begun"
    raise RuntimeError("the app failed in the middle, on purpose")


def slow(environ, start_response, query):
    time.sleep(float(query.get("s", 0.3)))
    return answer(start_response, b"slow")


def describe(environ, start_response, query):
    """The environ, what the process is, and what it was given."""
    values = {k: v for k, v in environ.items() if isinstance(v, str | bool | int)}
    values.update(
        pid=os.getpid(),
        uid=os.getuid(),
        gid=os.getgid(),
        groups=os.getgroups(),
        cwd=os.getcwd(),
        env=dict(os.environ),
        threads=threading.active_count(),
    )
    return answer(start_response, json.dumps(values).encode(), content_type="application/json")


def umask(environ, start_response, query):
    mask = os.umask(0)
    os.umask(mask)
    return answer(start_response, f"{mask:03o}".encode())


def hang_forever(environ, start_response, query):
    while True:  # the endless request
        time.sleep(0.01)


def deadlock(environ, start_response, query):
    lock = threading.Lock()
    lock.acquire()
    lock.acquire()  # the deadlocked thread


def fail(environ, start_response, query):
    kinds = {"cancelled": asyncio.CancelledError, "exit": SystemExit, "generator": GeneratorExit}
    raise kinds.get(query.get("kind"), RuntimeError)("the app failed on purpose")


def orphan(environ, start_response, query):
    """Leave a grandchild behind that ends by itself: whoever is PID 1 has to reap it."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        grandchild = os.fork()
        if grandchild == 0:
            time.sleep(0.2)
        else:
            os.write(writer, str(grandchild).encode())
        os._exit(0)
    os.waitpid(child, 0)
    grandchild = os.read(reader, 20)
    os.close(reader)
    os.close(writer)
    return answer(start_response, grandchild)


def pattern(environ, start_response, query):
    """Blocks that differ, so that none can be lost or come twice unseen.

    how   pieces (chunked), sized (with a Content-Length), write, list (whole), or two (of which the
          second comes once the file that $GATE names is there)
    """
    count = int(query.get("blocks", 100))
    blocks = (b"%015d\n" % number * 4096 for number in range(count))
    how = query.get("how", "pieces")
    headers = [("Content-Type", "application/octet-stream")]
    if how == "sized":
        headers.append(("Content-Length", str(65536 * count)))
    write = start_response("200 OK", headers)
    if how == "write":
        for block in blocks:
            write(block)
        return []
    return list(blocks) if how == "list" else blocks if how != "two" else two(blocks)


def two(blocks):
    try:
        yield b"".join(blocks)
        while not os.path.exists(os.environ["GATE"]):
            time.sleep(0.01)
        yield b"the end"
    finally:
        print("the second block is out", flush=True)


class Closing:
    """A response whose `close` fails, or waits until the file that $GATE names is there."""

    def __init__(self, blocks, fails):
        self.blocks = blocks
        self.fails = fails

    def __iter__(self):
        return iter(self.blocks)

    def close(self):
        if self.fails:
            raise RuntimeError("close has failed, on purpose")
        while not os.path.exists(os.environ["GATE"]):
            time.sleep(0.01)


def closing(environ, start_response, query):
    size = int(query.get("bytes", 100_000))
    gate = Closing([], "fails" in query)
    if query["how"] == "file":
        response = file(environ, start_response, query)
        close_file = response.close

        def close():
            close_file()
            gate.close()

        response.close = close
        return response
    headers = [("Content-Type", "application/octet-stream")]
    if query["how"] != "chunks":
        headers.append(("Content-Length", str(size)))
    start_response("200 OK", headers)
    gate.blocks = [b"c" * size]
    if query["how"] != "list":
        gate.blocks = (b"c" * (size // 4) for _ in range(4))
    return gate


def descriptors(environ, start_response, query):
    """How many are open."""
    return answer(start_response, str(len(os.listdir("/proc/self/fd"))).encode())


def leave_child(environ, start_response, query):
    """Fork a child that lives on, with everything that this process holds; answer its pid."""
    child = os.fork()
    if child == 0:
        time.sleep(60)
        os._exit(0)
    return answer(start_response, str(child).encode())


HANDLERS = {
    "/pattern": pattern,
    "/closing": closing,
    "/descriptors": descriptors,
    "/leave-child": leave_child,
    "/": index,
    "/pid": pid,
    "/echo": echo,
    "/upload": upload,
    "/stream": stream,
    "/file": file,
    "/bulk": bulk,
    "/endless": endless,
    "/ignore": ignore,
    "/fail-late": fail_late,
    "/slow": slow,
    "/describe": describe,
    "/umask": umask,
    "/hang": hang_forever,
    "/deadlock": deadlock,
    "/fail": fail,
    "/orphan": orphan,
}
