"""The process, in a real child, with the test as its arbiter."""

from __future__ import annotations

import hashlib
import http.client
import os
import signal
import socket
import time
from collections.abc import Iterator

import pytest

from servo.arbiter.processes import spawn
from servo.control.protocol import parse_request
from servo.dashboard import server_link
from servo.dashboard.process import KEY_BYTES, DashboardSetup, serve_dashboard
from servo.net.address import parse_address
from servo.net.listeners import Listener

pytestmark = pytest.mark.slow
DEADLINE_S = 30.0
TOKEN = "0123456789abcdef"


class Dashboard:
    """A dashboard process, and the arbiter's ends of its connections."""

    def __init__(self) -> None:
        self.sock = socket.create_server(("127.0.0.1", 0))
        self.sock.setblocking(False)
        self.files = [os.memfd_create(name) for name in ("history", "key")]
        self.pid = 0
        self.ends: list[socket.socket] = []

    def start(self) -> None:
        pairs = [socket.socketpair() for _ in range(3)]
        self.ends = [ours for ours, _ in pairs]
        for end in self.ends:
            end.settimeout(DEADLINE_S)
        address = parse_address("127.0.0.1:0")
        setup = DashboardSetup(
            listeners=[Listener(self.sock, address, "test", address)],
            links=[theirs for _, theirs in pairs],
            digest=hashlib.sha256(TOKEN.encode()).digest(),
            control=False,
            history=self.files[0],
            key=self.files[1],
            tls=None,
        )

        def close() -> None:
            for end in self.ends:
                end.close()

        self.pid = spawn.fork(lambda: serve_dashboard(setup), close)
        for _, theirs in pairs:
            theirs.close()

    def get(self, target: str, **fields: str) -> http.client.HTTPResponse:
        connection = http.client.HTTPConnection(*self.sock.getsockname(), timeout=DEADLINE_S)
        connection.request("GET", target, headers=fields)
        response = connection.getresponse()
        response.read()
        connection.close()
        return response

    def hang_up(self) -> None:
        for end in self.ends:
            end.close()
        self.ends = []

    def wait(self) -> int:
        pid, self.pid = self.pid, 0
        end = time.monotonic() + DEADLINE_S
        while (found := os.waitpid(pid, os.WNOHANG)) == (0, 0):
            assert time.monotonic() < end, "the process does not end"
            time.sleep(0.01)
        return os.waitstatus_to_exitcode(found[1])

    def close(self) -> None:
        self.hang_up()
        if self.pid:
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
        self.sock.close()
        for file in self.files:
            os.close(file)


@pytest.fixture
def dashboard(monkeypatch: pytest.MonkeyPatch) -> Iterator[Dashboard]:
    monkeypatch.setattr(server_link, "LOST_S", 0.05)  # this arbiter never answers
    made = Dashboard()
    made.start()
    yield made
    made.close()


def test_it_serves_and_asks_the_arbiter(dashboard: Dashboard) -> None:
    assert dashboard.get("/").status == 200
    assert dashboard.get("/api/history").status == 401
    assert dashboard.get("/api/history", Authorization=f"Bearer {TOKEN}").status == 200
    assert parse_request(dashboard.ends[0].recv(1000)).command == "status"
    assert parse_request(dashboard.ends[1].recv(1000)).command == "events"
    long = {f"X-{number}": "x" for number in range(70)}
    assert dashboard.get("/", **long).status == 431


def test_it_ends_with_the_arbiters_connections(dashboard: Dashboard) -> None:
    assert dashboard.get("/").status == 200
    dashboard.hang_up()
    assert dashboard.wait() == 0


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1])
def test_it_does_not_end_on_a_signal_to_all_processes(
    dashboard: Dashboard, signum: signal.Signals
) -> None:
    for _ in range(2):
        os.kill(dashboard.pid, signum)
        assert dashboard.get("/").status == 200
    dashboard.hang_up()
    assert dashboard.wait() == 0


def test_the_next_process_accepts_the_cookies_of_the_last_one(dashboard: Dashboard) -> None:
    signed_in = dashboard.get(f"/?token={TOKEN}")
    cookie = str(signed_in.getheader("set-cookie")).partition(";")[0]
    assert len(os.pread(dashboard.files[1], 100, 0)) == KEY_BYTES
    os.kill(dashboard.pid, signal.SIGKILL)
    assert dashboard.wait() == -signal.SIGKILL
    dashboard.hang_up()
    dashboard.start()
    assert dashboard.get("/api/history", Cookie=cookie).status == 200
