"""Responses that an app passes in one piece, and that the client does not read, are limited.

Above the limit of the connection, further requests wait.
"""

from __future__ import annotations

import pytest
from h2frames import GET, POST, data, head, reset, settings, window

from integration.conftest import Serve
from integration.h2_client import WIDE, Client
from integration.server import APPS, Server, memory, wait_for

pytestmark = pytest.mark.slow

APP = f"{APPS / 'pieces_app.py'}:app"
FLAGS = ("-k", "async", "--http2-cleartext", "prior-knowledge", "--access-logfile", "-")
MB = 1 << 20
# Of 4 MB each. A page of its requests would be 400 MB.
PIECE = "/?mb=4"
STREAMS = 100


def start(serve: Serve, *flags: str) -> tuple[Server, int]:
    server = serve(APP, *FLAGS, *flags)
    with Client(server.port) as warm:
        assert len(warm.get("/?mb=1").body) == MB
    [pid] = server.worker_pids()
    return server, pid


def settled(client: Client, server: Server, pid: int) -> int:
    """The worker's memory, once a PING behind all that was sent is answered and nothing moves."""
    sizes = [0]

    def still() -> bool:
        client.receive(0.1)
        sizes.append(memory(pid))
        return len(sizes) > 10 and max(sizes[-10:]) - min(sizes[-10:]) < MB

    wait_for(still, "memory that stays")
    return max(sizes)


@pytest.mark.parametrize("wait", [0, 0.1])
@pytest.mark.parametrize("loop", ["uvloop", "asyncio"])
def test_a_window_of_nothing(serve: Serve, loop: str, wait: float) -> None:
    """CVE-2019-9517, where the window is that of HTTP/2."""
    server, pid = start(serve, "--loop", loop)
    at_rest = memory(pid)
    with Client(server.port, {4: 0}) as client, Client(server.port) as other:
        numbers = [client.ask(f"{PIECE}&wait={wait}") for _ in range(STREAMS)]
        assert settled(client, server, pid) - at_rest < 60 * MB
        # Others are served meanwhile.
        assert len(other.get("/?mb=0.5").body) == MB // 2
        # It was only slow: what waited is answered, as far as it asks for it.
        client.send(b"".join([reset(number) for number in numbers[12:]]))
        client.send(settings({4: 1 << 24}) + window(0, 1 << 30))
        for number in numbers[:12]:
            assert len(client.answer(number).body) == 4 * MB
        assert client.get("/").status == 200


def test_a_client_that_does_not_read(serve: Serve) -> None:
    server, pid = start(serve)
    at_rest = memory(pid)
    with Client(server.port, WIDE, generous=False) as client:
        client.send(window(0, 1 << 30))
        # Send all requests in one write. Otherwise the number of running requests would depend on
        # how they arrive. Eight begin in each turn of the loop, for two turns. Then the first
        # response shows that the client is slow.
        fields = [*GET[:3], (":path", PIECE)]
        client.send(b"".join([head(1 + 2 * i, fields) for i in range(STREAMS)]))
        sizes: list[int] = []

        def still() -> bool:
            sizes.append(memory(pid))
            return len(sizes) > 50 and max(sizes[-50:]) - min(sizes[-50:]) < MB

        wait_for(still, "memory that stays")
        assert max(sizes) - at_rest < 100 * MB


def test_an_honest_client_gets_everything(serve: Serve) -> None:
    """A hundred downloads at a time: together far more than may wait."""
    server, _ = start(serve)
    with Client(server.port) as client:
        client.send(window(0, 1 << 30))
        numbers = [client.ask("/?mb=0.25&pieces=2&wait=0.01") for _ in range(STREAMS)]
        for number in numbers:
            assert len(client.answer(number).body) == MB // 2


def test_a_slow_download_leaves_others_served(serve: Serve) -> None:
    """The client has paused one; its other requests go on, those that wait long, too."""
    server, _ = start(serve)
    with Client(server.port, {4: 65535}) as client:
        client.ask("/?mb=20")
        client.wait(lambda: len(client.answers[1].body) == 65535)
        for _ in range(10):
            assert client.get("/").status == 200
        waiting = client.ask("/?until=a")
        assert client.get("/?opens=a").status == 200
        assert client.answer(waiting).status == 200


def held(client: Client) -> int:
    """Bring the connection to the point where requests wait; how many streams have begun."""
    for _ in range(8):
        client.ask("/?mb=1")
    client.wait(lambda: sum(bool(client.answers[n].heads) for n in range(1, 17, 2)) == 8)
    return 8


def test_a_request_that_waits_keeps_its_body(serve: Serve) -> None:
    server, _ = start(serve)
    with Client(server.port, {4: 0}) as client:
        held(client)
        number = client.ask_with([*POST[:3], (":path", "/")], end=False)
        client.send(data(number, b"first ") + data(number, b"second "))
        refused = client.ask_with([*POST[:3], (":path", "/"), ("content-length", "3")], end=False)
        client.send(data(refused, b"four"))
        assert client.answer(refused).reset == 1  # PROTOCOL_ERROR
        taken_back = client.ask()
        client.send(reset(taken_back))
        client.send(data(number, b"third", end=True))
        last = client.ask()
        client.send(settings({4: 1 << 24}))
        assert client.answer(number).body == b"first second third"
        assert client.answer(last).status == 200
    # They count as requests that were refused or taken back, once.
    server.wait_log(r'"POST / HTTP/1.1" 400 .*')
    server.wait_log(r'"GET / HTTP/1.1" 499 .*')


def test_requests_that_wait_end_with_the_connection(serve: Serve) -> None:
    server, _ = start(serve)
    with Client(server.port, {4: 0}) as client:
        held(client)
        for _ in range(5):
            client.ask("/?waits=1")
        client.ask_with([*POST[:3], (":path", "/?last=1")], end=False)
    wait_for(lambda: server.log().count('"GET /?waits=1 HTTP/1.1" 499') == 5, "their log lines")
    server.wait_log(r'"POST /\?last=1 HTTP/1.1" 499')
    assert "Traceback" not in server.log()


def test_a_stuck_client_is_cut_and_its_requests_go_on(serve: Serve) -> None:
    """What waits for a request behind it waits for no longer than `send_timeout`."""
    server, _ = start(serve, "--send-timeout", "1")
    with Client(server.port, {4: 0}) as client:
        held(client)
        number = client.ask("/")
        client.wait(lambda: client.answers[1].reset is not None, "the end of the first")
        assert client.answer(number).status == 200


def test_a_stop_answers_requests_that_wait(serve: Serve) -> None:
    server, _ = start(serve)
    with Client(server.port, {4: 0}) as client:
        held(client)
        number = client.ask("/")
        server.signal(15)
        client.wait(lambda: client.goaways)
        client.send(settings({4: 1 << 24}))
        assert client.answer(number).status == 200
        client.wait_closed()
    assert server.wait_exit() == 0
