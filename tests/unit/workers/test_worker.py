"""The common part of all worker classes: the arbiter's messages, the log, hooks, and the end.

The tests use a `sync` worker.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from unit.workers.fakes import GET, SECOND, BlockingServer, responses

from servo import cluster
from servo.cluster.messages import forget_handlers
from servo.ipc.messages import (
    PLAIN,
    AppMessage,
    Ready,
    ReopenLogs,
    ReplaceMe,
    Report,
    Retire,
    Stop,
    WorkerQuery,
)
from servo.shared_memory import row_layout

Make = Callable[..., BlockingServer]
Script = Iterator[None]


def hello(environ: dict[str, Any], start_response: Any) -> list[bytes]:
    start_response("200 OK", [])
    return [b"hello"]


@pytest.fixture
def make(make_blocking: Make) -> Make:
    return lambda app=hello, **values: make_blocking(app, **values)


def reports(server: BlockingServer) -> dict[int, Any]:
    return {each.number: each.values for each in server.world.told() if isinstance(each, Report)}


def test_a_worker_that_is_ready_says_so(make: Make) -> None:
    server = make()

    def script() -> Script:
        assert server.world.count(row_layout.STATE) == row_layout.STATE_READY
        assert server.world.count(row_layout.BEAT_NS) == server.clock.ns
        yield

    server.run(script())
    assert Ready("sync") in server.world.told()


def test_operators_ask_for_requests_and_stacks(make: Make) -> None:
    server = make()

    def script() -> Script:
        server.world.tell(WorkerQuery(1, "requests"))
        server.world.tell(WorkerQuery(2, "stack"))
        yield
        yield

    server.run(script())
    found = reports(server)
    assert found[1] == {"requests": [], "total": 0}
    assert any(each["name"] == "MainThread" for each in found[2]["threads"])


def test_the_report_of_requests_is_json(make: Make) -> None:
    shown: list[Any] = []

    def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        server.clock.advance(3)
        shown.append(json.loads(json.dumps(server.worker.requests_report())))
        return hello(environ, start_response)

    server = make(app)

    def script() -> Script:
        client = server.connect()
        client.send(GET)
        yield
        yield
        assert responses(client.read()) == [(200, b"hello")]

    server.run(script())
    (row,) = shown[0]["requests"]
    assert row == {"method": "GET", "target": "/", "client": "192.0.2.1", "seconds": 3.0}


def test_the_arbiter_has_logs_reopened(make: Make, tmp_path: Any) -> None:
    path = tmp_path / "access.log"
    server = make(accesslog=str(path))

    def script() -> Script:
        path.unlink()
        server.world.tell(ReopenLogs())
        yield
        yield
        assert path.exists()

    server.run(script())
    server.worker.access.close()


def test_messages_of_applications_reach_their_handlers(make: Make) -> None:
    forget_handlers()
    heard: list[Any] = []
    cluster.on_message("t")(heard.append)
    server = make()

    def script() -> Script:
        server.world.arbiter.send(AppMessage.make(PLAIN, (2, 2), 1, b"t", b"[1]", 0))
        yield
        yield
        yield
        assert heard == [[1]]

    try:
        server.run(script())
    finally:
        forget_handlers()


def test_what_a_stop_waits_for_is_logged_shortly_before_its_end(
    make_blocking: Make, caplog: pytest.LogCaptureFixture
) -> None:
    begun, go_on = threading.Event(), threading.Event()

    def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        begun.set()
        assert go_on.wait(20)
        return hello(environ, start_response)

    server = make_blocking(app, "thread", graceful_timeout=30)

    def script() -> Script:
        server.connect().send(GET.replace(b"/", b"/slow", 1))
        yield
        assert begun.wait(20)
        server.world.tell(Retire("reload"))
        yield
        yield from server.after(27)
        assert "/slow" not in caplog.text
        yield from server.after(2)
        yield
        assert "'/slow'" in caplog.text
        go_on.set()

    server.run(script())


def test_the_time_to_end_follows_from_when_it_was_asked(make: Make) -> None:
    server = make(graceful_timeout=30)
    worker = server.worker
    assert worker.end_ns == server.clock.ns + SECOND

    def script() -> Script:
        server.connect().send(GET[:5])
        yield
        yield
        server.world.tell(Retire("reload"))
        yield
        yield
        asked = server.clock.ns
        server.clock.advance(10)
        assert worker.end_ns == asked + 29.5 * SECOND
        server.world.tell(Stop(quick=True))
        yield

    server.run(script())
    assert worker.end_ns == server.clock.ns + SECOND


def test_worker_int_is_called_on_a_quick_stop_and_may_fail(
    make: Make, caplog: pytest.LogCaptureFixture
) -> None:
    seen: list[Any] = []

    def broken(worker: Any) -> None:
        seen.append(worker)
        raise SystemExit(1)

    server = make(hooks={"worker_int": broken})

    def script() -> Script:
        server.world.tell(Stop(quick=True))
        yield
        yield

    server.run(script())
    assert seen == [server.world.context.hook_worker]
    assert "Error in the worker_int hook" in caplog.text


def test_request_hooks_are_called_around_the_application(make: Make) -> None:
    calls: list[Any] = []
    hooks = {
        "pre_request": lambda worker, req: calls.append(("pre", req.path)),
        "post_request": lambda worker, req, environ, resp: calls.append(
            ("post", environ["PATH_INFO"], resp.status, resp.sent)
        ),
    }

    def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        calls.append("app")
        return hello(environ, start_response)

    server = make(app, hooks=hooks)

    def script() -> Script:
        client = server.connect()
        client.send(GET)
        yield
        yield
        assert responses(client.read()) == [(200, b"hello")]

    server.run(script())
    assert calls == [("pre", "/"), "app", ("post", "/", "200 OK", 5)]


def test_a_draining_worker_asks_for_no_successor(make: Make) -> None:
    server = make(max_requests=1, max_requests_jitter=0)

    def script() -> Script:
        client = server.connect()
        client.send(GET[:5])
        yield
        yield
        server.world.tell(Retire("reload"))
        yield
        yield
        client.send(GET[5:])
        server.worker.on_terminate()
        yield

    server.run(script())
    assert not any(isinstance(each, ReplaceMe) for each in server.world.told())


@pytest.mark.parametrize(("timeout", "doze_s"), [(0, 5.0), (30, 3.0), (5, 1.0), (600, 5.0)])
def test_how_long_an_idle_worker_dozes(make: Make, timeout: int, doze_s: float) -> None:
    server = make(timeout=timeout)

    def script() -> Script:
        yield
        assert server.wait_s == doze_s
        server.connect()
        yield
        yield
        assert server.wait_s == 1.0

    server.run(script())


def test_the_jitter_of_max_requests_is_a_tenth_where_nobody_has_said(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[int, int]] = []

    def most(low: int, high: int) -> int:
        asked.append((low, high))
        return high

    monkeypatch.setattr("random.randint", most)
    assert make(max_requests=1000).worker.meter.max_requests == 1100
    assert make(max_requests=1000, max_requests_jitter=7).worker.meter.max_requests == 1007
    assert make().worker.meter.max_requests == 0
    assert asked[:2] == [(0, 100), (0, 7)]
