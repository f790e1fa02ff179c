"""`servo.run` and `servo.serve` in scripts."""

from __future__ import annotations

import signal
import sys
import textwrap
from pathlib import Path

import pytest
import requests

from integration.conftest import Serve
from integration.server import Server, wait_for

pytestmark = pytest.mark.slow

APP = """
import asyncio, os, sys
import servo

async def app(scope, receive, send):
    if scope["type"] != "http":
        raise RuntimeError("no lifespan")
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": f"{os.getpid()} {__name__}".encode()})
"""


def script(tmp_path: Path, serve: Serve, text: str, *, ready: int = 1) -> Server:
    """Start `python main.py PORT` with the application and this text."""
    path = tmp_path / "main.py"
    path.write_text(APP + textwrap.dedent(text))
    server = Server(cwd=tmp_path)
    command = (sys.executable, str(path), str(server.port))
    started = serve(cwd=tmp_path, bind=False, command=command, ready=ready)
    started.port = server.port
    return started


@pytest.mark.parametrize("app", ["'main:app'", "app"], ids=["name", "object"])
def test_run_is_a_server_with_workers(serve: Serve, tmp_path: Path, app: str) -> None:
    server = script(
        tmp_path,
        serve,
        f"""
        if __name__ == "__main__":
            servo.run({app}, host="127.0.0.1", port=int(sys.argv[1]), workers=2)
            print("it has returned", flush=True)
        """,
        ready=2,
    )
    pid, name = requests.get(server.url).text.split()
    assert int(pid) in server.worker_pids()
    assert name == ("main" if "'" in app else "__main__")
    before = server.ready_pids()
    server.signal(signal.SIGHUP)
    server.wait_replaced(before)
    requests.get(server.url)
    assert server.stop() == 0
    assert "it has returned" in server.log()


def test_run_ends_the_script_if_the_app_can_not_be_imported(serve: Serve, tmp_path: Path) -> None:
    server = script(tmp_path, serve, "servo.run('nowhere:app', port=int(sys.argv[1]))", ready=0)
    assert server.wait_exit() == 4
    assert "nowhere" in server.log()


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_serve_in_a_running_loop(serve: Serve, tmp_path: Path, signum: signal.Signals) -> None:
    server = script(
        tmp_path,
        serve,
        """
        async def main():
            task = asyncio.ensure_future(asyncio.sleep(1000))
            try:
                await servo.serve(app, port=int(sys.argv[1]), access_log=True)
            finally:
                print("it has ended", task.done(), flush=True)

        asyncio.run(main())
        """,
        ready=0,
    )
    server.wait_log(f"Listening on http://127.0.0.1:{server.port}")

    def answer() -> str:
        return requests.get(server.url).text

    assert answer() == f"{server.pid} __main__"
    assert server.children() == []
    assert server.stop(signum) == (-signum if signum == signal.SIGTERM else -signal.SIGINT)
    wait_for(lambda: '"GET / HTTP/1.1" 200' in server.log(), "the access log")
    assert "it has ended" in server.log() or signum == signal.SIGTERM
