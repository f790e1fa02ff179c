"""Reloads under load from real HTTP/2 clients, with their different reactions to GOAWAY."""

from __future__ import annotations

import asyncio
import re
import shutil
import signal
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
from authority import Authority
from h2frames import GOAWAY, NO_ERROR, Reader, head, hello, ping

from integration import releases
from integration.conftest import Serve
from integration.server import DEADLINE_S, Server, wait_for

pytestmark = pytest.mark.slow


def start(
    serve: Serve, directory: Path, authority: Authority, kind: str = "async", *flags: str
) -> Server:
    releases.deploy(directory, releases.good(kind, "1"))
    certificate = authority.issue("server").flags
    return serve("release:app", "-k", "async", "-w", "2", *certificate, *flags, ready=2)


def reload(server: Server) -> None:
    old = server.worker_pids()
    server.signal(signal.SIGHUP)
    server.wait_replaced(old)


class HttpxLoad:
    """Tasks of one httpx client, each of which sends one request after the other.

    post  every second task sends a body
    """

    def __init__(self, url: str, authority: Authority, *, tasks: int = 16, post: bool = False):
        self.url = url
        self.context = ssl.create_default_context(cafile=str(authority.path))
        self.tasks = tasks
        self.post = post
        self.answered = 0
        self.lost: list[str] = []
        self.versions: set[str] = set()
        self._over = False
        self._thread = threading.Thread(target=lambda: asyncio.run(self._main()), name="httpx")

    def __enter__(self) -> HttpxLoad:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._over = True
        self._thread.join(DEADLINE_S)

    def wait_answers(self, count: int) -> None:
        goal = self.answered + count
        wait_for(lambda: self.answered >= goal or self.lost, f"{count} answers")

    async def _main(self) -> None:
        async with httpx.AsyncClient(http2=True, verify=self.context, timeout=20) as client:
            await asyncio.gather(*[self._run(client, i) for i in range(self.tasks)])

    async def _run(self, client: httpx.AsyncClient, i: int) -> None:
        while not self._over:
            try:
                if self.post and i % 2:
                    answer = await client.post(self.url, content=b"x" * 1000)
                else:
                    answer = await client.get(self.url)
            except httpx.HTTPError as error:
                self.lost.append(f"{type(error).__name__}: {error}")
                return
            assert answer.status_code == 200
            self.versions.add(answer.http_version)
            self.answered += 1


@pytest.mark.parametrize(("path", "reloads"), [("/?s=0.02", 4), ("/", 2), ("/?s=0.5", 1)])
def test_httpx(serve: Serve, tmp_path: Path, authority: Authority, path: str, reloads: int) -> None:
    server = start(serve, tmp_path, authority)
    with HttpxLoad(f"https://localhost:{server.port}{path}", authority) as load:
        for _ in range(reloads):
            load.wait_answers(50)
            reload(server)
        load.wait_answers(50)
    assert load.lost == []
    assert load.versions == {"HTTP/2"}


def test_httpx_with_bodies_and_a_wsgi_app(
    serve: Serve, tmp_path: Path, authority: Authority
) -> None:
    server = start(serve, tmp_path, authority, "thread", "--threads", "4")
    with HttpxLoad(f"https://localhost:{server.port}/?s=0.02", authority, post=True) as load:
        for _ in range(2):
            load.wait_answers(50)
            reload(server)
        load.wait_answers(50)
    assert load.lost == []


def test_httpx_at_the_limit_of_requests(serve: Serve, tmp_path: Path, authority: Authority) -> None:
    server = start(serve, tmp_path, authority, "async", "--keepalive-requests", "100")
    with HttpxLoad(f"https://localhost:{server.port}/?s=0.01", authority) as load:
        load.wait_answers(500)
    assert load.lost == []


def test_httpx_that_was_idle(serve: Serve, tmp_path: Path, authority: Authority) -> None:
    """It reads GOAWAY only when it uses the connection again, and does so while there is one."""
    server = start(serve, tmp_path, authority)
    context = ssl.create_default_context(cafile=str(authority.path))
    url = f"https://localhost:{server.port}/"
    with httpx.Client(http2=True, verify=context, timeout=20) as client:
        assert client.get(url).text == "1"
        old, since = server.worker_pids(), server.mark()
        server.signal(signal.SIGHUP)
        server.wait_log("is draining", since)
        for _ in range(10):
            assert client.post(url, content=b"x").text == "1"
        server.wait_replaced(old)
        server.wait_log("reload .* finished", since)


def test_a_client_that_introduces_itself_to_a_draining_worker(serve: Serve, tmp_path: Path) -> None:
    """Only its SETTINGS say that nothing may follow the GOAWAY."""
    releases.deploy(tmp_path, releases.good("async", "1"))
    cleartext = ("--http2-cleartext", "prior-knowledge")
    server = serve("release:app", "-k", "async", "-w", "1", *cleartext)
    since = server.mark()
    answers = Reader()
    with socket.create_connection(("127.0.0.1", server.port), DEADLINE_S) as client:
        first = hello({1: 4096, 2: 0, 4: 65535, 5: 16384})  # as the h2 library sends them
        client.sendall(first[:30])
        server.signal(signal.SIGHUP)
        server.wait_log("is draining", since)
        client.sendall(first[30:] + head(1))
        while received := client.recv(65536):
            answers.feed(received)
            for payload in answers.pings:
                client.sendall(ping(payload, ack=True))
            answers.pings.clear()
    assert answers.frames[-1] == GOAWAY
    assert answers.frames.count(GOAWAY) == 1
    assert answers.goaways == [(1, NO_ERROR)]
    assert answers.answers[1].body == b"1"


def test_httpx_with_an_endless_stream(serve: Serve, tmp_path: Path, authority: Authority) -> None:
    """It comes to no end by itself: bounded, and what is quick beside it is not held for long."""
    server = start(serve, tmp_path, authority, "async", "--graceful-timeout", "8")
    context = ssl.create_default_context(cafile=str(authority.path))
    url = f"https://localhost:{server.port}/"
    with httpx.Client(http2=True, verify=context, timeout=20) as client:
        assert client.get(url).text == "1"
        slow = threading.Thread(target=lambda: _expect_loss(client, f"{url}?s=60"))
        slow.start()
        old = server.worker_pids()
        server.signal(signal.SIGHUP)
        server.wait_replaced(old)
        slow.join(DEADLINE_S)
        assert client.get(url).text == "1"


def _expect_loss(client: httpx.Client, url: str) -> None:
    with pytest.raises(httpx.HTTPError):
        client.get(url)


def program(name: str) -> str:
    found = shutil.which(name)
    if found is None:
        pytest.skip(f"no {name} here (Debian: apt-get install {name.replace('nghttp', 'nghttp2')})")
    return found


def again_and_again(server: Server, once: Callable[[], None]) -> None:
    """Call it all the time, during reloads."""
    done = [0]
    errors: list[BaseException] = []
    over = threading.Event()

    def run() -> None:
        while not over.is_set():
            try:
                once()
            except (AssertionError, subprocess.SubprocessError) as error:
                errors.append(error)
                return
            done[0] += 1

    threads = [threading.Thread(target=run) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(3):
            goal = done[0] + 2
            wait_for(lambda goal=goal: done[0] >= goal or errors, "a client's end")  # type: ignore[misc]
            reload(server)
    finally:
        over.set()
        for thread in threads:
            thread.join(DEADLINE_S)
    assert errors == []


def test_curl(serve: Serve, tmp_path: Path, authority: Authority) -> None:
    curl = program("curl")
    server = start(serve, tmp_path, authority)
    urls = [f"https://localhost:{server.port}/?s=0.05&i={i}" for i in range(30)]
    common = ("-sS", "--no-progress-meter", "--fail", "--http2", "--cacert", str(authority.path))

    def once() -> None:
        # One after the other on a connection, then all at once.
        for mode in ((), ("--parallel", "--parallel-max", "10")):
            done = subprocess.run(
                [curl, *common, *mode, *urls], capture_output=True, timeout=DEADLINE_S, check=False
            )
            assert (done.returncode, done.stdout) == (0, b"1" * len(urls)), done.stderr

    again_and_again(server, once)


def test_nghttp(serve: Serve, tmp_path: Path, authority: Authority) -> None:
    nghttp = program("nghttp")
    server = start(serve, tmp_path, authority)
    urls = [f"https://localhost:{server.port}/?s=0.1&i={i}" for i in range(20)]

    def once() -> None:
        done = subprocess.run(
            [nghttp, "--no-verify-peer", *urls],
            capture_output=True,
            timeout=DEADLINE_S,
            check=False,
        )
        assert (done.returncode, done.stderr) == (0, b"")
        assert done.stdout == b"1" * len(urls)

    again_and_again(server, once)


def test_h2load(serve: Serve, tmp_path: Path, authority: Authority) -> None:
    """It gives up what it has not sent when a connection ends; what it has sent is answered."""
    h2load = program("h2load")
    server = start(serve, tmp_path, authority, "async", "--access-logfile", "-")
    url = f"https://localhost:{server.port}/?s=0.02"
    with subprocess.Popen(
        [h2load, "-n", "4000", "-c", "2", "-m", "8", url], stdout=subprocess.PIPE, text=True
    ) as process:
        time.sleep(0.5)  # it has no other sign of having begun
        for _ in range(2):
            reload(server)
        shown, _ = process.communicate(timeout=DEADLINE_S)
    found = re.search(r"\d+ started, \d+ done, (\d+) succeeded", shown)
    assert found is not None, shown
    # "Started" and "done" count those that it was about to send, too.
    assert int(found[1]) > 0
    assert server.log().count('"GET /?s=0.02 HTTP/2" 200') == int(found[1]), shown
    assert server.log().count('"GET /?s=0.02 HTTP/2"') == int(found[1]), shown
