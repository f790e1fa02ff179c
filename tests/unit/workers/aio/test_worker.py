"""The `async` worker from its start to its end: accepting, heartbeats, draining."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Callable
from typing import Any

import pytest
from authority import Authority
from unit.workers.fakes import GET, ServingWorker, TLSClient, responses

from servo.errors import BootError
from servo.ipc.messages import Draining, Ready, ReplaceMe, Retire, Stop
from servo.metrics import saturation
from servo.net.tls import TLS
from servo.shared_memory import row_layout

Make = Callable[..., ServingWorker]


async def hello(scope: Any, receive: Any, send: Any) -> None:
    assert scope["type"] == "http"
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"hello"})


class Held:
    """An application that answers when it is told to; it has a lifespan."""

    def __init__(self) -> None:
        self.go_on: asyncio.Future[None] | None = None
        self.told: list[str] = []

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            while True:
                message = await receive()
                self.told.append(message["type"])
                await send({"type": f"{message['type']}.complete"})
                if message["type"] == "lifespan.shutdown":
                    return
        self.go_on = asyncio.get_running_loop().create_future()
        await self.go_on
        await hello(scope, receive, send)

    def release(self) -> None:
        assert self.go_on is not None
        self.go_on.set_result(None)


@pytest.fixture
def make(make_serving: Make) -> Make:
    return lambda app=hello, **values: make_serving(app, **values)


# --- serving --------------------------------------------------------------------------------------


def test_a_request(make: Make) -> None:
    worker = make()

    async def script() -> None:
        assert worker.world.count(row_layout.STATE) == row_layout.STATE_READY
        client = worker.connect()
        client.send(GET)
        await worker.turn(8)
        assert responses(client.read()) == [(200, b"hello")]
        assert worker.world.count(row_layout.CONNECTIONS) == 1
        client.close()
        await worker.turn(5)
        assert worker.world.count(row_layout.CONNECTIONS) == 0

    worker.run(script)
    assert next(map(type, worker.world.told())) is Ready
    assert worker.world.requests == 1


def test_requests_byte_by_byte(make: Make) -> None:
    worker = make()

    async def script() -> None:
        client = worker.connect()
        for at in range(len(GET)):
            client.send(GET[at : at + 1])
            await worker.turn(3)
        await worker.turn(5)
        assert responses(client.read()) == [(200, b"hello")]

    worker.run(script)


def test_a_wsgi_application_runs_in_threads(make: Make) -> None:
    def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        start_response("200 OK", [])
        return [str(environ["wsgi.multithread"]).encode()]

    worker = make(app, interface="wsgi", threads=2)

    async def script() -> None:
        client = worker.connect()
        client.send(GET)
        while not worker.world.requests:
            await worker.turn()
        await worker.turn(3)
        assert responses(client.read()) == [(200, b"True")]

    worker.run(script)


def test_a_worker_that_is_full_leaves_connections_in_the_queue(make: Make) -> None:
    worker = make(worker_connections=1)

    async def script() -> None:
        first, second = worker.connect(), worker.connect()
        for client in (first, second):
            client.send(GET)
        await worker.turn(10)
        assert first.read()
        assert not second.read()
        first.close()
        await worker.turn(10)
        assert responses(second.read()) == [(200, b"hello")]

    worker.run(script)


def test_it_beats_while_a_request_runs(make: Make) -> None:
    app = Held()
    worker = make(app)

    async def script() -> None:
        client = worker.connect()
        client.send(GET)
        await worker.turn(8)
        for _ in range(5):
            worker.clock.advance(0.006)
            await worker.turn(3)
            assert worker.world.count(row_layout.BEAT_NS) == worker.clock.ns
        (shown,) = worker.worker.open_requests()
        assert shown[1:] == ("GET", b"/", "192.0.2.1")
        assert worker.worker.unfinished() == [shown]
        app.release()
        await worker.turn(4)
        worker.clock.advance(0.006)
        await worker.turn(3)
        before = worker.world.count(row_layout.BEAT_NS)
        worker.clock.advance(0.006)
        await worker.turn(3)
        assert worker.world.count(row_layout.BEAT_NS) == before

    worker.run(script)


def test_a_sweep_each_second_ends_what_is_late_and_notes_the_lag(make: Make) -> None:
    worker = make(keepalive=5)

    async def script() -> None:
        client = worker.connect()
        client.send(GET)
        await worker.turn(8)
        client.read()
        await worker.after(4)
        assert worker.world.count(row_layout.BEAT_NS) == worker.clock.ns
        assert not client.gone
        await worker.after(2)
        assert client.gone
        worker.connect()
        await worker.turn(5)
        await worker.after(1)
        worker.clock.advance(1.5)
        await worker.turn(3)
        assert worker.world.count(row_layout.LAG_US) == 500_000

    worker.run(script)


def test_an_idle_worker_looks_around_less_often_until_something_comes(make: Make) -> None:
    worker = make(timeout=40)

    async def script() -> None:
        await worker.after(5)
        start = worker.world.count(row_layout.BEAT_NS)
        worker.clock.advance(2)
        await worker.turn(3)
        assert worker.world.count(row_layout.BEAT_NS) == start
        client = worker.connect()
        await worker.turn(5)
        worker.clock.advance(1)
        await worker.turn(3)
        assert worker.world.count(row_layout.BEAT_NS) == worker.clock.ns
        client.send(GET)
        await worker.turn(5)
        assert client.read()

    worker.run(script)


# --- TLS ------------------------------------------------------------------------------------------


async def shake(worker: ServingWorker, client: TLSClient) -> None:
    while not client.shaken:
        client.step()
        await worker.turn(3)


def test_a_request_over_tls(make: Make, tls: TLS, authority: Authority) -> None:
    worker = make(tls=tls)

    async def script() -> None:
        client = TLSClient(worker.connect(), authority.client_context())
        await shake(worker, client)
        client.send(GET)
        await worker.turn(8)
        assert responses(client.read()) == [(200, b"hello")]

    worker.run(script)


def test_plain_http_is_told_to_use_https(make: Make, tls: TLS) -> None:
    worker = make(tls=tls)

    async def script() -> None:
        client = worker.connect()
        client.send(GET)
        await worker.turn(10)
        assert [status for status, _ in responses(client.read())] == [400]
        assert worker.world.count(row_layout.CONNECTIONS) == 0

    worker.run(script)


@pytest.mark.parametrize("sent", [b"", b"\x16\x03\x01"], ids=["nothing", "a part"])
def test_a_handshake_that_does_not_come_in_time(make: Make, tls: TLS, sent: bytes) -> None:
    worker = make(tls=tls, header_timeout=20)

    async def script() -> None:
        client = worker.connect()
        client.send(sent)
        await worker.turn(5)
        await worker.after(19)
        assert not client.gone
        await worker.after(2)
        await worker.turn(5)
        assert client.gone
        assert worker.world.count(row_layout.CONNECTIONS) == 0

    worker.run(script)


def test_a_proxy_header_before_the_handshake(make: Make, tls: TLS, authority: Authority) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        assert scope["type"] == "http"
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": scope["client"][0].encode()})

    worker = make(app, tls=tls, proxy_protocol="v1", proxy_allow_ips="192.0.2.1")

    async def script() -> None:
        raw = worker.connect()
        raw.send(b"PROXY TCP4 198.51.100.7 203.0.113.1 4000 443\r\n")
        client = TLSClient(raw, authority.client_context())
        await shake(worker, client)
        client.send(GET)
        await worker.turn(8)
        assert responses(client.read()) == [(200, b"198.51.100.7")]

    worker.run(script)


def test_a_proxy_that_is_not_allowed_gets_no_handshake(make: Make, tls: TLS) -> None:
    worker = make(tls=tls, proxy_protocol="v1", proxy_allow_ips="")

    async def script() -> None:
        client = worker.connect()
        client.send(b"PROXY TCP4 198.51.100.7 203.0.113.1 4000 443\r\n")
        await worker.turn(8)
        assert client.gone
        assert worker.world.count(row_layout.CONNECTIONS) == 0

    worker.run(script)


# --- the end --------------------------------------------------------------------------------------


def test_a_retired_worker_ends_idle_connections_and_then_itself(make: Make) -> None:
    app = Held()
    worker = make(app, drain_idle=3, keepalive=60)

    async def script() -> None:
        idle, busy = worker.connect(), worker.connect()
        idle.send(GET)
        await worker.turn(8)
        app.release()
        await worker.turn(4)
        assert idle.read()
        busy.send(GET)
        await worker.turn(8)
        worker.world.tell(Retire("reload"))
        await worker.turn(5)
        assert worker.world.listener.closed
        await worker.after(2)
        assert not idle.gone
        await worker.after(2)
        assert idle.gone
        assert not worker.worker.drained.done()
        app.release()
        await worker.ended()

    worker.run(script)
    assert b"Connection: close\r\n" in worker.clients[1].read()
    assert any(isinstance(message, Draining) for message in worker.world.told())
    assert app.told == ["lifespan.startup", "lifespan.shutdown"]


def test_a_stopped_worker_takes_what_is_queued(make: Make) -> None:
    worker = make()

    async def script() -> None:
        worker.world.tell(Stop(quick=False))
        client = worker.connect()
        client.send(GET)
        await worker.ended()

    worker.run(script)
    (client,) = worker.clients
    assert responses(client.read()) == [(200, b"hello")]
    assert client.gone


def test_a_silent_connection_of_a_stopped_worker_is_closed_soon(make: Make) -> None:
    worker = make()

    async def script() -> None:
        silent = worker.connect()
        await worker.turn(5)
        worker.world.tell(Stop(quick=False))
        await worker.turn(5)
        assert not silent.gone
        worker.clock.advance(1.5)
        await worker.ended()

    worker.run(script)
    assert worker.clients[0].gone
    assert worker.world.requests == 0


def test_a_quick_stop_cuts_everything(make: Make) -> None:
    ints: list[Any] = []
    app = Held()
    worker = make(app, hooks={"worker_int": ints.append})

    async def script() -> None:
        client = worker.connect()
        client.send(GET)
        await worker.turn(8)
        worker.world.tell(Stop(quick=True))
        await worker.ended()

    worker.run(script)
    assert ints[0] is worker.world.context.hook_worker
    assert worker.clients[0].gone
    assert worker.world.in_flight == 0


def test_background_work_of_the_application_is_waited_for(make: Make) -> None:
    work: list[asyncio.Future[None]] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await hello(scope, receive, send)
        work.append(asyncio.get_running_loop().create_future())
        await work[0]

    worker = make(app)

    async def script() -> None:
        client = worker.connect()
        client.send(GET)
        await worker.turn(8)
        client.close()
        worker.world.tell(Stop(quick=False))
        await worker.turn(5)
        assert worker.worker.open_requests() == []
        assert [row[1] for row in worker.worker.unfinished()] == ["GET"]
        assert not worker.worker.drained.done()
        work[0].set_result(None)
        await worker.ended()

    worker.run(script)


def test_a_worker_without_an_arbiter_ends(
    make: Make, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    alarms: list[float] = []
    monkeypatch.setattr("signal.setitimer", lambda _which, seconds: alarms.append(seconds))
    before = signal.getsignal(signal.SIGALRM)
    worker = make(graceful_timeout=7)

    async def script() -> None:
        worker.world.lose_arbiter()
        await worker.ended()

    try:
        worker.run(script)
    finally:
        signal.signal(signal.SIGALRM, before)
    assert alarms == [7]
    assert "The arbiter is gone" in caplog.text


def test_sigterm_asks_the_arbiter_for_a_successor(make: Make) -> None:
    worker = make()

    async def script() -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        await worker.turn(5)

    worker.run(script)
    asked = [each for each in worker.world.told() if isinstance(each, ReplaceMe)]
    assert [each.reason for each in asked] == ["terminated"]


# --- the start ------------------------------------------------------------------------------------


def test_a_stop_while_the_application_starts_ends_it(make: Make) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await asyncio.get_running_loop().create_future()

    worker = make(app, lifespan="on")

    async def script() -> None:
        assert worker.worker.drained is None

    worker.run(script)
    assert not any(isinstance(message, Ready) for message in worker.world.told())


def test_a_failed_startup_is_a_boot_error(make: Make, caplog: pytest.LogCaptureFixture) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "lifespan.startup.failed", "message": "no database"})

    worker = make(app)

    async def script() -> None:
        await asyncio.get_running_loop().create_future()

    with pytest.raises(BootError, match="no database"):
        worker.run(script)


def test_an_exit_at_the_start_is_a_boot_error(make: Make) -> None:
    tasks: list[asyncio.Task[None]] = []

    async def leave() -> None:
        sys.exit(3)

    async def app(scope: Any, receive: Any, send: Any) -> None:
        tasks.append(asyncio.get_running_loop().create_task(leave()))
        await asyncio.get_running_loop().create_future()

    worker = make(app, lifespan="on")

    async def script() -> None:
        await asyncio.get_running_loop().create_future()

    with pytest.raises(BootError, match=r"has raised SystemExit\(3\) at its start"):
        worker.run(script)
    assert isinstance(tasks[0].exception(), SystemExit)


def test_an_exit_of_a_task_does_not_end_the_worker(
    make: Make, caplog: pytest.LogCaptureFixture
) -> None:
    async def leave() -> None:
        sys.exit(3)

    tasks: list[asyncio.Task[None]] = []
    worker = make()

    async def script() -> None:
        tasks.append(asyncio.get_running_loop().create_task(leave()))
        await worker.turn(4)
        client = worker.connect()
        client.send(GET)
        await worker.turn(8)
        assert responses(client.read()) == [(200, b"hello")]

    worker.run(script)
    assert isinstance(tasks[0].exception(), SystemExit)
    assert "A task of the application has raised SystemExit(3)" in caplog.text


# --- heartbeats -----------------------------------------------------------------------------------


def test_an_idle_worker_with_a_new_connection_does_not_seem_to_be_blocked(make: Make) -> None:
    """Without connections, it beats every five seconds, and with some, once a second."""
    worker = make(timeout=0)

    async def script() -> None:
        await worker.after(9.0)
        before = worker.world.count(row_layout.BEAT_NS)
        assert worker.clock.ns - before > 2e9
        worker.connect()
        await worker.turn(4)
        assert worker.world.count(row_layout.CONNECTIONS) == 1
        (row,) = worker.world.board.snapshot()
        assert saturation.blocked_s(row, worker.clock.ns) == 0.0

    worker.run(script)


# --- utilisation ----------------------------------------------------------------------------------


def test_a_handler_that_blocks_the_loop_uses_all_of_the_worker(make: Make) -> None:
    async def slow(scope: Any, receive: Any, send: Any) -> None:
        await asyncio.sleep(0)
        worker.clock.advance(2.0)
        await hello(scope, receive, send)

    worker = make(slow)

    async def script() -> None:
        await worker.after(3.0)
        assert worker.world.utilisation == 0.0
        client = worker.connect()
        client.send(GET)
        await worker.turn(8)
        await worker.after(1.0)
        # Two of the six seconds since the last look: an idle worker looks every five seconds.
        assert worker.world.utilisation == pytest.approx(2 / 6, abs=0.01)

    worker.run(script)


@pytest.mark.parametrize(("limit", "expected"), [(0, 0.0), (4, 0.25)])
def test_waiting_requests_use_their_share_of_limit_concurrency(
    make: Make, limit: int, expected: float
) -> None:
    """Without a limit, a loop that waits has time for any number of requests."""
    app = Held()
    worker = make(app, limit_concurrency=limit)

    async def script() -> None:
        worker.connect().send(GET)
        await worker.turn(8)
        for _ in range(1000):
            # In small steps, or the loop would seem to be blocked.
            worker.clock.advance(0.008)
            await worker.turn(3)
        assert worker.world.utilisation == pytest.approx(expected, abs=0.01)
        app.release()
        await worker.turn(3)

    worker.run(script)
