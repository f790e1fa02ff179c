"""A worker under an attacker's control can't harm the arbiter or its siblings."""

from __future__ import annotations

import sys
from pathlib import Path

import httpx
import pytest

from integration.conftest import CLASSES, Serve
from integration.server import alive, free_port, wait_for
from integration.test_control import servoctl

pytestmark = pytest.mark.slow

# An application that turns on its server. Each path does one thing with the descriptors that a
# worker has, and says what came of it.
HOSTILE = """
import os, socket, struct

def links():
    for name in os.listdir("/proc/self/fd"):
        try:
            yield int(name), os.readlink(f"/proc/self/fd/{name}")
        except OSError:
            pass

def channel():
    for fd, link in links():
        if not link.startswith("socket:"):
            continue
        with socket.socket(fileno=os.dup(fd)) as sock:
            if sock.family != socket.AF_UNIX or sock.getsockopt(socket.SOL_SOCKET, 30):
                continue
            pid, _, _ = struct.unpack("3i", sock.getsockopt(socket.SOL_SOCKET, 17, 12))
            if pid == os.getppid():
                return fd

def say(*texts):
    for text in texts:
        os.write(channel(), struct.pack("!I", len(text)) + text)
    return b"said"

def cut():
    found = []
    for fd, link in links():
        if "memfd:servo-scoreboard" in link:
            try:
                os.ftruncate(fd, 0)
                found.append("cut")
            except OSError as error:
                found.append(type(error).__name__)
    return " ".join(found).encode()

def held():
    return "\\n".join(link for _, link in links()).encode()

ACTS = {
    "/garbage": lambda: say(b"no message"),
    "/types": lambda: say(b'{"type": "BootFailed", "kind": "app", "text": 5}'),
    "/order": lambda: say(
        b'{"type": "Booting"}', b'{"type": "Ready", "worker_class": "async"}',
        b'{"type": "BootFailed", "kind": "app", "text": "no"}', b'{"type": "Retire", "reason": ""}',
        b'{"type": "ReplaceMe", "reason": "crashed"}', b'{"type": "Stop"}',
        b'{"type": "Report", "number": 1, "values": {}}',
        b'{"type": "LogRecords", "records": [[1, "info", "\\\\u001b[2J"]]}'),
    "/endless": lambda: os.write(channel(), b"\\xff" * 4096) and b"said",
    "/cut": cut,
    "/held": held,
    "/": lambda: str(os.getpid()).encode(),
}

def wsgi(environ, start_response):
    body = ACTS[environ["PATH_INFO"]]()
    start_response("200 OK", [("Content-Length", str(len(body)))])
    return [body]
"""


@pytest.fixture
def app(tmp_path: Path) -> str:
    (tmp_path / "hostile.py").write_text(HOSTILE)
    return "hostile:wsgi"


@pytest.mark.parametrize("worker_class", CLASSES)
def test_the_arbiter_outlives_what_a_worker_says(serve: Serve, app: str, worker_class: str) -> None:
    server = serve(app, "-k", worker_class, "-w", "1")
    with httpx.Client(base_url=server.url, trust_env=False, timeout=30) as client:
        for act in ("/types", "/garbage", "/endless"):
            pid = int(client.get("/", headers={"connection": "close"}).text)
            assert client.get(act, headers={"connection": "close"}).text == "said"
            # Cut off by the arbiter, it finishes, and another takes its place.
            wait_for(lambda pid=pid: not alive(pid), "the end of the worker")
            wait_for(lambda pid=pid: server.worker_pids() not in ([], [pid]), "another one")
        assert client.get("/order", headers={"connection": "close"}).text == "said"
        wait_for(lambda: server.worker_pids() != [], "a worker")
    assert not server.exited()
    assert "CRITICAL" not in server.log()


@pytest.mark.parametrize("worker_class", CLASSES)
def test_what_a_worker_holds(serve: Serve, app: str, worker_class: str, tmp_path: Path) -> None:
    """It can't cut the shared table, and has nothing of the arbiter's or another worker's."""
    server = serve(app, "-k", worker_class, "-w", "1", "--pid", str(tmp_path / "servo.pid"))
    with httpx.Client(base_url=server.url, trust_env=False, timeout=30) as client:
        answer = client.get("/cut").text.split()
        assert answer
        assert set(answer) == {"PermissionError"}
        held = client.get("/held").text
        assert ".lock" not in held
        assert "servo.pid" not in held
        if sys.version_info >= (3, 13):  # before, a mapping keeps a copy of the descriptor
            assert "servo-output" not in held
    assert not server.exited()


# An application that writes over the whole shared table, as damaged memory might.
SCRIBBLES = """
import os

def scribble(pattern):
    for name in os.listdir("/proc/self/fd"):
        try:
            if "memfd:servo-scoreboard" in os.readlink(f"/proc/self/fd/{name}"):
                size = os.fstat(int(name)).st_size
                os.pwrite(int(name), (pattern * (size // len(pattern) + 1))[:size], 0)
                return b"scribbled"
        except OSError:
            continue
    return b"not found"

def answer(path):
    patterns = {"/ones": b"\\xff", "/zeros": b"\\0", "/junk": os.urandom(4099)}
    return scribble(patterns[path]) if path in patterns else b"ok"

def wsgi(environ, start_response):
    body = answer(environ["PATH_INFO"])
    start_response("200 OK", [("Content-Length", str(len(body)))])
    return [body]

async def asgi(scope, receive, send):
    assert scope["type"] == "http"
    body = answer(scope["path"])
    headers = [(b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})
"""


@pytest.mark.parametrize("worker_class", CLASSES)
@pytest.mark.parametrize("junk", ["ones", "zeros", "junk"])
def test_the_arbiter_outlives_a_table_that_was_written_over(
    serve: Serve, tmp_path: Path, worker_class: str, junk: str
) -> None:
    (tmp_path / "scribbles.py").write_text(SCRIBBLES)
    app = "scribbles:asgi" if worker_class == "async" else "scribbles:wsgi"
    port = free_port()
    metrics = f"127.0.0.1:{port}"
    server = serve(app, "-k", worker_class, "-w", "2", "--metrics-bind", metrics, ready=2)

    def scrape() -> float:
        text = httpx.get(f"http://{metrics}/metrics", trust_env=False, timeout=30).text
        return sum(
            float(line.split()[-1])
            for line in text.splitlines()
            if line.startswith("servo_requests_total{")
        )

    fresh = {"connection": "close"}
    with httpx.Client(base_url=server.url, trust_env=False, timeout=30, headers=fresh) as client:
        for _ in range(10):
            assert client.get("/").text == "ok"
        wait_for(lambda: scrape() >= 10, "the requests in the metrics")
        before = scrape()
        old = server.worker_pids()
        assert client.get(f"/{junk}").text == "scribbled"
        for _ in range(10):
            after = scrape()
            assert before <= after < 1000
            before = after
        for command in ("status", "workers"):
            shown = servoctl("--pid", str(server.pid), command)
            assert shown.returncode == 0, shown.stderr
        server.wait_log("written over its row of the scoreboard")
        server.wait_replaced(old)
        assert client.get("/").text == "ok"
    assert httpx.get(f"http://{metrics}/-/ready", trust_env=False, timeout=30).is_success
    assert server.stop() == 0
    assert "Traceback" not in server.log()
    assert "CRITICAL" not in server.log()
