"""Check an installed Servo: that it is compiled or plain, serves with each worker class, and has
its dashboard.

    python tests/installation/smoke.py compiled

cibuildwheel runs it in the environment of each wheel that it has built, without pytest.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

DEADLINE_S = 60.0
APP = """\
def wsgi(environ, start_response):
    start_response("200 OK", [("Content-Length", "5")])
    return [b"hello"]


async def asgi(scope, receive, send):
    if scope["type"] == "http":
        headers = [(b"content-length", b"5")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": b"hello"})
"""


def main() -> None:
    servo = str(Path(sys.executable).with_name("servo"))
    version = subprocess.check_output([servo, "--version"], text=True)
    print(version, end="")
    if f", {sys.argv[1]})" not in version:
        sys.exit(f"Servo is not {sys.argv[1]}")
    with tempfile.TemporaryDirectory() as directory:
        Path(directory, "smoke_app.py").write_text(APP)
        for worker_class, app in (("sync", "wsgi"), ("thread", "wsgi"), ("async", "asgi")):
            serve([servo, f"smoke_app:{app}", "-k", worker_class], directory)
            print(f"{worker_class} serves")
    print("the dashboard has its page")


def serve(command: list[str], directory: str) -> None:
    """Start a server, get one response, and stop it gracefully."""
    with (
        socket.create_server(("127.0.0.1", 0)) as probe,
        socket.create_server(("127.0.0.1", 0)) as other,
    ):
        port, dashboard = probe.getsockname()[1], f"127.0.0.1:{other.getsockname()[1]}"
    environ = {k: v for k, v in os.environ.items() if not k.startswith("SERVO_")}
    with subprocess.Popen(
        [*command, "-b", f"127.0.0.1:{port}", "--dashboard-bind", dashboard],
        cwd=directory,
        env=environ,
    ) as server:
        try:
            assert get(server, f"http://127.0.0.1:{port}/") == b"hello"
            # The files of the page must be part of the installation.
            assert b"sign-in" in get(server, f"http://{dashboard}/")
            assert get(server, f"http://{dashboard}/static/app.js")
            server.send_signal(signal.SIGTERM)
            assert server.wait(DEADLINE_S) == 0
        finally:
            server.kill()


def get(server: subprocess.Popen[bytes], url: str) -> bytes:
    end = time.monotonic() + DEADLINE_S
    while True:
        with contextlib.suppress(OSError), urllib.request.urlopen(url, timeout=5) as response:
            body: bytes = response.read()
            return body
        assert server.poll() is None, "the server has ended"
        assert time.monotonic() < end, f"no response within {DEADLINE_S:.0f} s"
        time.sleep(0.1)


if __name__ == "__main__":
    main()
