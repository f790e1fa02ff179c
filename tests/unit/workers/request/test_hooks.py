"""The objects for hooks of a configuration file, with gunicorn's names."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from unit.workers.fakes import GET, Clock, World, make_hook_worker, make_request

from servo.errors import AppImportError
from servo.net.address import AbstractAddress, TCPAddress, UnixAddress
from servo.shared_memory import row_layout
from servo.shared_memory.row_layout import count_response
from servo.workers.request.hooks import (
    HookApp,
    HookObject,
    HookRequest,
    HookResponse,
    HookSocket,
    RequestHooks,
    address_of,
)


def hello(environ: dict[str, Any], start_response: Any) -> list[bytes]:
    start_response("200 OK", [])
    return [b"hello"]


@pytest.fixture
def world() -> Iterator[World]:
    world = World(timeout=33)
    yield world
    world.close()


# --- names ----------------------------------------------------------------------------------------


def test_an_unknown_name_says_which_ones_there_are() -> None:
    request = HookRequest(make_request(), "192.0.2.1")
    with pytest.raises(AttributeError, match=r"request has no 'nothing' in Servo; it has .*method"):
        _ = request.nothing
    with pytest.raises(AttributeError):
        _ = request.__nothing__


def test_a_hook_may_keep_attributes_of_its_own() -> None:
    request = HookRequest(make_request(), "192.0.2.1")
    request.started = 7
    assert request.started == 7
    assert isinstance(request, HookObject)


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        (TCPAddress("::1", 80), ("::1", 80)),
        (UnixAddress("/run/app.sock"), "/run/app.sock"),
    ],
)
def test_addresses_are_as_gunicorn_has_them(address: Any, expected: Any) -> None:
    listener: Any = SimpleNamespace(address=address)
    assert address_of(listener) == expected


def test_an_abstract_address_is_text() -> None:
    listener: Any = SimpleNamespace(address=AbstractAddress("name"))
    assert isinstance(address_of(listener), str)


def test_a_socket_passes_on_what_it_is_asked(world: World) -> None:
    sock = HookSocket(world.listener)
    assert str(sock) == "http://127.0.0.1:8000"
    assert sock.cfg_addr == ("127.0.0.1", 8000)
    assert sock.fileno() == world.listener.fileno()


# --- requests -------------------------------------------------------------------------------------


def test_a_request_is_text() -> None:
    data = b"POST /a%20b?c=d HTTP/1.0\r\nX-Aa: 1\r\nContent-Length: 0\r\n\r\n"
    request = HookRequest(make_request(data), "192.0.2.1")
    assert (request.method, request.uri, request.path) == ("POST", "/a%20b?c=d", "/a%20b")
    assert (request.query, request.fragment, request.version) == ("c=d", "", (1, 0))
    assert ("X-AA", "1") in request.headers
    assert request.remote_addr == "192.0.2.1"


@pytest.mark.parametrize(
    ("status", "text", "code"),
    [
        (200, "200 OK", 200),
        ("404 Gone fishing", "404 Gone fishing", 404),
        (799, "799", 799),
        (0, "0", 0),
    ],
)
def test_a_response_has_its_status_in_both_ways(status: Any, text: str, code: int) -> None:
    response = HookResponse(status, [(b"A", b"1"), ("B", "2")], 5)
    assert (response.status, response.status_code) == (text, code)
    assert response.headers == [("A", "1"), ("B", "2")]
    assert response.sent == 5


@pytest.mark.parametrize(
    ("headers", "length"),
    [([(b"Content-Length", b"5")], 5), ([], None), ([("content-length", "x")], None)],
)
def test_the_length_of_a_response(headers: Any, length: int | None) -> None:
    assert HookResponse(200, headers, 0).response_length == length
    assert HookResponse(200, headers, 0).headers_sent
    assert not HookResponse(0, [], 0).headers_sent


def test_the_scheme_is_that_of_the_proxy_or_the_workers() -> None:
    named: Any = SimpleNamespace(pre_request=lambda *_: None, post_request=None)
    hooks = RequestHooks(named, "the worker", "https")
    assert hooks.before(make_request(), "").scheme == "https"
    assert hooks.before(make_request(), "", "http").scheme == "http"
    assert HookRequest(make_request(), "").scheme == "http"


def hooks(before: Any = None, after: Any = None) -> RequestHooks:
    named: Any = SimpleNamespace(pre_request=before, post_request=after)
    return RequestHooks(named, "the worker")


def test_without_hooks_there_is_nothing_to_call() -> None:
    assert not hooks()
    assert hooks(before=lambda *_: None)
    assert hooks(after=lambda *_: None)


def test_the_same_request_object_goes_to_both_hooks() -> None:
    calls: list[tuple[Any, ...]] = []
    both = hooks(lambda *given: calls.append(given), lambda *given: calls.append(given))
    request = both.before(make_request(), "192.0.2.1")
    response = HookResponse(200, [], 0)
    both.after(request, {"a": 1}, response)
    assert calls == [("the worker", request), ("the worker", request, {"a": 1}, response)]


@pytest.mark.parametrize("error", [ValueError("broken"), SystemExit(1)])
def test_what_a_hook_raises_is_logged_and_not_the_clients_fault(
    error: BaseException, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: object) -> None:
        raise error

    both = hooks(broken, broken)
    both.after(both.before(make_request(GET), ""), {}, HookResponse(200, [], 0))
    assert "Error in the pre_request hook" in caplog.text
    assert "Error in the post_request hook" in caplog.text


# --- workers --------------------------------------------------------------------------------------


def test_a_worker_has_gunicorns_names(world: World) -> None:
    worker = make_hook_worker(world)
    assert (worker.pid, worker.ppid) == (os.getpid(), world.context.arbiter_pid)
    assert (worker.slot, worker.age, worker.timeout) == (1, 1, 33)
    assert str(worker) == f"<Worker {os.getpid()}>"
    assert worker.cfg is world.context.settings
    assert [str(sock) for sock in worker.sockets] == ["http://127.0.0.1:8000"]
    assert (worker.booted, worker.aborted, worker.alive) == (False, False, True)


def test_what_pre_fork_has_kept_is_there(world: World) -> None:
    world.context.kept = {"token": "secret"}
    assert make_hook_worker(world).token == "secret"


def test_the_application_is_there_once_it_is_loaded(world: World) -> None:
    worker = make_hook_worker(world)
    with pytest.raises(AttributeError, match="before the post_worker_init hook"):
        _ = worker.wsgi
    worker.app.callable = hello
    assert worker.wsgi is hello


def test_an_attached_worker_lends_its_own_attributes(world: World) -> None:
    worker = make_hook_worker(world)
    own: Any = SimpleNamespace(draining=False, on_terminate=lambda: None, special=5, _secret=6)
    worker.attach(own)
    assert worker.booted
    assert worker.special == 5
    with pytest.raises(AttributeError, match="a hook's worker has no 'other'"):
        _ = worker.other
    with pytest.raises(AttributeError):
        _ = worker._secret


def test_a_hook_that_sets_alive_to_false_has_the_worker_replaced_once(world: World) -> None:
    asked: list[int] = []
    worker = make_hook_worker(world)
    worker.attach(SimpleNamespace(draining=False, on_terminate=lambda: asked.append(1)))
    worker.alive = True
    assert worker.alive
    worker.alive = False
    worker.alive = False
    assert not worker.alive
    assert asked == [1]


def test_a_draining_worker_is_not_alive(world: World) -> None:
    worker = make_hook_worker(world)
    worker.attach(SimpleNamespace(draining=True))
    assert not worker.alive


def test_notify_is_a_heartbeat_and_nr_counts(clock: Clock, world: World) -> None:
    worker = make_hook_worker(world)
    worker.notify()
    assert world.count(row_layout.BEAT_NS) == clock.ns
    assert worker.nr == 0
    count_response(world.row, "GET", 404)
    assert worker.nr == 1


# --- applications ---------------------------------------------------------------------------------


def test_the_arbiters_app_loads_none(world: World) -> None:
    app = HookApp(world.context.settings, in_worker=False)
    with pytest.raises(RuntimeError, match="the arbiter imports no application"):
        app.wsgi()


def test_an_application_is_loaded_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "hooked_app.py").write_text("def app(environ, start_response):\n    return []\n")
    # Loading goes to the directory, and puts it first on the path.
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setitem(sys.modules, "hooked_app", None)
    monkeypatch.delitem(sys.modules, "hooked_app")
    world = World(app="hooked_app:app", chdir=str(tmp_path))
    try:
        app = HookApp(world.context.settings, in_worker=True)
        loaded = app.wsgi()
        assert app.wsgi() is loaded
        assert app.take().app is loaded
        assert app.take().interface == "wsgi"
    finally:
        world.close()


def test_an_application_that_a_hook_has_put_there_is_taken(world: World) -> None:
    app = HookApp(world.context.settings, in_worker=True)
    app.callable = hello
    assert app.take().app is hello
    assert app.take().interface == "wsgi"


def test_something_else_that_a_hook_has_put_there_is_an_error(world: World) -> None:
    app = HookApp(world.context.settings, in_worker=True)
    app.callable = 7
    with pytest.raises(AppImportError, match=r"worker\.app\.callable"):
        app.take()
