"""The `thread` worker: its threads run the application, and its poller does the other work.

To wait for a thread, a script yields WAIT. The poller then waits until the thread wakes it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from unit.workers.fakes import GET, WAIT, BlockingServer, Client, responses

from servo.ipc.messages import ReplaceMe, Retire
from servo.shared_memory import row_layout
from servo.workers.blocking import thread as thread_module
from servo.workers.blocking.thread import ThreadWorker

Make = Callable[..., BlockingServer]
Script = Iterator[object]


class Held:
    """An application whose requests wait until they are released, one at a time."""

    def __init__(self, body: bytes = b"done") -> None:
        self.body = body
        self.begun = threading.Semaphore(0)
        self.go_on = threading.Semaphore(0)
        self.errors: list[BaseException] = []

    def __call__(self, environ: dict[str, Any], start_response: Any) -> list[bytes]:
        self.begun.release()
        assert self.go_on.acquire(timeout=20)
        start_response("200 OK", [("Content-Length", str(len(self.body)))])
        return [self.body]

    def started(self) -> None:
        """A request has come to the application."""
        assert self.begun.acquire(timeout=20)

    def release(self) -> None:
        self.go_on.release()


def hello(environ: dict[str, Any], start_response: Any) -> list[bytes]:
    start_response("200 OK", [])
    return [threading.current_thread().name.encode(), str(environ["wsgi.multithread"]).encode()]


@pytest.fixture
def make(make_blocking: Make) -> Make:
    return lambda app, **values: make_blocking(app, "thread", **{"threads": 2, **values})


def count(client: Client) -> int:
    """How many bytes have come by now."""
    client.read()
    return len(client.received)


def finish(server: BlockingServer, requests: int) -> Script:
    """Turns until so many requests are counted."""
    while server.world.requests < requests:
        yield WAIT


def test_a_thread_runs_the_application(make: Make) -> None:
    server = make(hello)

    def script() -> Script:
        client = server.connect()
        client.send(GET)
        yield
        yield from finish(server, 1)
        ((status, body),) = responses(client.read())
        assert status == 200
        assert body in (b"servo-0True", b"servo-1True")

    server.run(script())
    assert server.world.in_flight == 0


def test_byte_by_byte(make: Make) -> None:
    server = make(hello)

    def script() -> Script:
        client = server.connect()
        for at in range(len(GET)):
            client.send(GET[at : at + 1])
            yield
        yield from finish(server, 1)
        assert [status for status, _ in responses(client.read())] == [200]

    server.run(script())


def test_requests_run_at_the_same_time_but_those_of_one_connection_do_not(make: Make) -> None:
    app = Held()
    server = make(app)

    def script() -> Script:
        first, second = server.connect(), server.connect()
        first.send(GET * 2)
        second.send(GET)
        for _ in range(3):
            yield
        app.started()
        app.started()
        assert server.world.in_flight == 2
        assert len(server.worker.open_requests()) == 2
        app.release()
        app.release()
        yield from finish(server, 2)
        yield
        app.started()
        app.release()
        yield from finish(server, 3)
        assert len(responses(first.read())) == 2
        assert len(responses(second.read())) == 1

    server.run(script())


def test_the_poller_reads_and_beats_while_threads_are_busy(make: Make) -> None:
    app = Held()
    server = make(app, threads=2)

    def script() -> Script:
        client, silent = server.connect(), server.connect()
        client.send(GET)
        yield
        yield
        app.started()
        yield from server.after(70)
        assert silent.gone  # its time limit
        app.release()
        yield from finish(server, 1)
        assert responses(client.read()) == [(200, b"done")]

    server.run(script())


def test_a_request_beyond_the_threads_waits(make: Make) -> None:
    app = Held()
    server = make(app)

    def script() -> Script:
        clients = [server.connect() for _ in range(3)]
        for client in clients:
            client.send(GET)
        for _ in range(4):
            yield
        app.started()
        app.started()
        assert not app.begun.acquire(blocking=False)
        app.release()
        yield from finish(server, 1)
        app.started()
        app.release()
        app.release()
        yield from finish(server, 3)

    server.run(script())


def test_more_bytes_of_a_client_whose_request_runs_do_not_wake_the_poller_again(
    make: Make,
) -> None:
    app = Held()
    server = make(app)

    def script() -> Script:
        client = server.connect()
        client.send(GET)
        yield
        yield
        app.started()
        (connection,) = server.worker.connections.values()
        client.send(GET)
        yield
        yield
        assert connection.watched == 0
        app.release()
        yield from finish(server, 1)
        yield
        app.started()
        app.release()
        yield from finish(server, 2)
        assert len(responses(client.read())) == 2

    server.run(script())


def test_a_client_that_leaves_while_its_request_runs(make: Make) -> None:
    app = Held(b"x" * 1_000_000)
    server = make(app)

    def script() -> Script:
        client = server.connect()
        client.send(GET)
        yield
        yield
        app.started()
        client.close()
        yield
        app.release()
        yield from finish(server, 1)
        yield
        assert not server.worker.connections

    server.run(script())
    assert server.world.in_flight == 0


def test_an_error_of_the_application(make: Make, caplog: pytest.LogCaptureFixture) -> None:
    def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        raise ValueError("broken")

    server = make(app)

    def script() -> Script:
        client = server.connect()
        client.send(GET)
        yield
        yield from finish(server, 1)
        assert [status for status, _ in responses(client.read())] == [500]

    server.run(script())
    assert "broken" in caplog.text


# --- a slow reader --------------------------------------------------------------------------------


def test_a_slow_reader_gets_what_its_thread_has_left(make: Make) -> None:
    server = make(Held(b"x" * 1_000_000))
    app = server.worker.app.app

    def script() -> Script:
        client = server.connect(buffer=4096)
        client.send(GET)
        app.release()
        yield
        while count(client) < 1_000_000:
            yield WAIT if server.world.in_flight else None
        client.read()
        assert [len(body) for _, body in responses(client.received)] == [1_000_000]

    server.run(script())


def test_the_poller_sends_while_the_thread_produces(make: Make) -> None:
    reads = threading.Semaphore(0)

    def app(environ: dict[str, Any], start_response: Any) -> Iterator[bytes]:
        start_response("200 OK", [])
        for _ in range(50):
            yield b"x" * 20_000
        reads.acquire(timeout=20)
        yield b"end"

    server = make(app)

    def script() -> Script:
        client = server.connect(buffer=4096)
        client.send(GET)
        yield
        while count(client) < 1_000_000:
            yield WAIT
        assert server.world.in_flight == 1
        reads.release()
        yield from finish(server, 1)
        while not client.received.endswith(b"0\r\n\r\n"):
            client.read()
            yield
        assert responses(client.received) == [(200, b"x" * 1_000_000 + b"end")]

    server.run(script())


def test_a_reader_that_has_stopped_is_cut_and_its_thread_told(make: Make) -> None:
    errors: list[str] = []

    def app(environ: dict[str, Any], start_response: Any) -> Iterator[bytes]:
        start_response("200 OK", [])
        try:
            while True:
                yield b"x" * 100_000
        finally:
            errors.append("closed")

    server = make(app, response_buffer_size=1000, response_spool_limit=0, send_timeout=30)

    def script() -> Script:
        client = server.connect(buffer=4096)
        client.send(GET)
        yield
        while not _lags(server):
            yield WAIT
        yield from server.after(31)
        yield from server.after(31)
        yield from finish(server, 1)
        yield
        assert client.gone

    server.run(script())
    assert errors == ["closed"]
    assert server.world.in_flight == 0


def _lags(server: BlockingServer) -> bool:
    """A running request has something to send that its client does not take."""
    outputs = [each.output for each in server.worker.connections.values()]
    return any(output is not None and output.size() and output.watched for output in outputs)


# --- a request that takes too long ----------------------------------------------------------------


def test_request_timeout_answers_504_and_asks_for_a_successor(
    make: Make, caplog: pytest.LogCaptureFixture
) -> None:
    app = Held()
    server = make(app, request_timeout=30)

    def script() -> Script:
        client = server.connect()
        client.send(GET)
        yield
        yield
        app.started()
        yield from server.after(29)
        assert not client.read()
        yield from server.after(2)
        assert [status for status, _ in responses(client.read())] == [504]
        assert client.gone
        assert not server.worker.connections
        app.release()  # what the thread makes of it goes nowhere
        while server.worker.stuck:
            yield WAIT
        assert not client.reset

    server.run(script())
    assert server.world.statuses == {504: 1}
    assert server.world.in_flight == 0
    asked = [each for each in server.world.told() if isinstance(each, ReplaceMe)]
    assert [each.reason for each in asked] == ["request_timeout"]
    assert "its thread hangs here" in caplog.text
    assert "go_on.acquire" in caplog.text  # the stack


def test_request_timeout_after_the_head_cuts_the_connection(make: Make) -> None:
    go_on = threading.Semaphore(0)

    def app(environ: dict[str, Any], start_response: Any) -> Iterator[bytes]:
        start_response("200 OK", [])
        yield b"begun"
        go_on.acquire(timeout=20)
        yield b"never sent"

    server = make(app, request_timeout=30)

    def script() -> Script:
        client = server.connect()
        client.send(GET)
        yield
        while b"begun" not in client.received:
            client.await_data()
            client.read()
        yield from server.after(31)
        assert client.gone
        go_on.release()
        while server.worker.stuck:
            yield WAIT
        assert b"never sent" not in client.received
        assert b"504" not in client.received

    server.run(script())


def test_a_request_that_was_still_queued_when_its_time_was_over(
    make: Make, caplog: pytest.LogCaptureFixture
) -> None:
    app = Held()
    server = make(app, threads=2, request_timeout=30)

    def script() -> Script:
        clients = [server.connect() for _ in range(3)]
        for client in clients:
            client.send(GET)
            yield
            yield
        app.started()
        app.started()
        yield from server.after(31)
        assert [responses(client.read())[0][0] for client in clients] == [504] * 3
        app.release()
        app.release()
        while server.worker.stuck:
            yield WAIT
        assert not app.begun.acquire(blocking=False)

    server.run(script())
    assert "(it was still queued)" in caplog.text


# --- the end --------------------------------------------------------------------------------------


def test_a_retired_worker_ends_when_its_threads_are_done(make: Make) -> None:
    app = Held()
    server = make(app)

    def script() -> Script:
        client = server.connect()
        client.send(GET)
        yield
        yield
        app.started()
        server.world.tell(Retire("reload"))
        yield
        yield
        assert server.worker.connections
        app.release()
        yield from finish(server, 1)
        assert b"Connection: close\r\n" in client.read()

    server.run(script())
    assert not server.worker.finished
    assert not server.worker.connections


def test_idle_threads_end_before_a_mold_is_forked(make: Make) -> None:
    server = make(hello)

    def script() -> Script:
        client = server.connect()
        client.send(GET)
        yield
        yield from finish(server, 1)

    server.run(script())
    assert isinstance(server.worker, ThreadWorker)
    assert server.worker.end_threads() == ""
    assert not any(thread.is_alive() for thread in server.worker.threads)


def test_a_thread_that_hangs_in_a_request_forbids_a_mold(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(thread_module, "END_THREADS_S", 0.0)
    held = Held()
    server = make(held)

    def script() -> Script:
        client = server.connect()
        client.send(GET)
        yield
        held.started()
        assert isinstance(server.worker, ThreadWorker)
        assert server.worker.end_threads().endswith("of its threads hang in requests")
        held.release()
        yield from finish(server, 1)

    server.run(script())


# --- utilisation --------------------------------------------------------------------------------


@pytest.mark.parametrize(("limit", "expected"), [(0, 0.5), (1, 1.0)])
def test_a_running_request_uses_its_share_of_the_threads(
    make: Make, limit: int, expected: float
) -> None:
    """One of two threads; all of the worker if no more requests are let in."""
    app = Held()
    server = make(app, limit_concurrency=limit)

    def script() -> Script:
        client = server.connect()
        client.send(GET)
        yield
        yield
        app.started()
        for _ in range(6):
            server.clock.advance(1.0)
            yield
        yield
        assert server.world.utilisation == expected
        app.release()
        yield from finish(server, 1)
        server.clock.advance(1.0)
        yield
        # The request still counts for four of the last five seconds.
        yield
        assert server.world.utilisation == pytest.approx(expected * 0.8)

    server.run(script())


# --- waits for a thread -------------------------------------------------------------------------


def test_only_requests_that_find_all_threads_busy_have_a_wait(make: Make) -> None:
    app = Held()
    server = make(app)

    def waits() -> int:
        return sum(row_layout.thread_waits_in(server.world.row.tolist()))

    def script() -> Script:
        for _ in range(2):
            server.connect().send(GET)
            yield
            yield
            app.started()
        third = server.connect()
        third.send(GET)
        yield
        yield
        server.clock.advance(0.5)
        app.release()
        app.started()
        app.release()
        app.release()
        yield from finish(server, 3)
        yield
        assert waits() == 1
        assert server.world.count(row_layout.THREAD_WAIT_SUM_NS) == 500_000_000
        assert server.worker.handed_over == 0
        third.send(GET)
        yield
        yield
        app.started()
        app.release()
        yield from finish(server, 4)
        assert waits() == 1

    server.run(script())


def test_a_request_that_waits_holds_no_thread(make: Make) -> None:
    """Three requests of two seconds each, for one thread."""
    app = Held()
    server = make(app, threads=1)

    def script() -> Script:
        for _ in range(3):
            server.connect().send(GET)
        yield
        yield
        app.started()
        for ended in (1, 2, 3):
            server.clock.advance(2)
            app.release()
            yield from finish(server, ended)
            if ended < 3:
                app.started()
            yield
            assert server.worker.held_ns(server.clock.ns) == [2_000_000_000 * ended]

    server.run(script())
