"""A server in the event loop of a test."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import socket
import threading
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import servo
from servo.errors import BindError, BootError, ConfigError
from servo.serving.server import Server

DEADLINE_S = 20.0


class App:
    """An ASGI application that notes what happens to it."""

    def __init__(self) -> None:
        self.events: list[str] = []
        self.arrived = asyncio.Event()
        self.go_on = asyncio.Event()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            for kind in ("startup", "shutdown"):
                assert (await receive())["type"] == f"lifespan.{kind}"
                self.events.append(kind)
                await send({"type": f"lifespan.{kind}.complete"})
            return
        if scope["path"] == "/slow":
            self.arrived.set()
            try:
                await self.go_on.wait()
            except asyncio.CancelledError:
                self.events.append("cancelled")
                raise
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": scope["path"].encode()})


@pytest.fixture(autouse=True)
def _logging_unchanged() -> Iterator[None]:
    names = ("servo.error", "servo.access", "uvicorn", "asyncio")
    before = [[*logging.getLogger(name).handlers] for name in names]
    yield
    assert [logging.getLogger(name).handlers for name in names] == before


def quiet(app: Any, **options: Any) -> Server:
    return Server(app, **{"port": 0, "log_config": None, **options})


async def until(condition: Callable[[], object]) -> None:
    async def wait() -> None:
        while not condition():
            await asyncio.sleep(0.001)

    await asyncio.wait_for(wait(), DEADLINE_S)


async def get(server: Server, path: str = "/") -> bytes:
    host, port = server.sockets[0].getsockname()[:2]
    reader, writer = await asyncio.open_connection(host, port)
    writer.write(f"GET {path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n".encode())
    answer = await asyncio.wait_for(reader.read(), DEADLINE_S)
    writer.close()
    await writer.wait_closed()
    return answer


def play(server: Server, scene: Callable[[], Awaitable[None]]) -> None:
    """Serve, and meanwhile play a scene, which must end the server."""

    async def both() -> None:
        task = asyncio.ensure_future(server.serve())
        await until(lambda: server.started or task.done())
        await scene()
        await asyncio.wait_for(task, DEADLINE_S)

    asyncio.run(both())


def test_it_serves_until_should_exit_is_set() -> None:
    app = App()
    server = quiet(app)
    assert not server.started

    async def scene() -> None:
        assert app.events == ["startup"]
        assert (await get(server, "/here")).endswith(b"\r\n\r\n/here")
        assert server.servers[0].sockets[0] is server.sockets[0]
        server.should_exit = True

    play(server, scene)
    assert app.events == ["startup", "shutdown"]
    assert not server.started
    assert server.sockets[0].fileno() == -1


def test_it_leaves_the_tasks_and_the_loop_of_its_caller_alone() -> None:
    async def main() -> None:
        other = asyncio.ensure_future(asyncio.sleep(DEADLINE_S))
        server = quiet(App())
        server.should_exit = True  # set before the start, it is not forgotten
        await server.serve()
        assert not other.done()
        other.cancel()
        assert asyncio.all_tasks() - {other, asyncio.current_task()} == set()

    asyncio.run(main())


def test_an_open_request_is_finished() -> None:
    app = App()
    server = quiet(app)

    async def scene() -> None:
        answer = asyncio.ensure_future(get(server, "/slow"))
        await app.arrived.wait()
        server.should_exit = True
        await until(lambda: not server.sockets[0].fileno() >= 0)
        app.go_on.set()
        assert (await answer).endswith(b"/slow")

    play(server, scene)
    assert app.events == ["startup", "shutdown"]


@pytest.mark.parametrize("forced", [True, False], ids=["force_exit", "graceful_timeout"])
def test_an_open_request_is_cut(forced: bool) -> None:
    app = App()
    server = quiet(app, timeout_graceful_shutdown=None if forced else 0)

    async def scene() -> None:
        answer = asyncio.ensure_future(get(server, "/slow"))
        await app.arrived.wait()
        server.should_exit = True
        if forced:
            await until(lambda: not server.sockets[0].fileno() >= 0)
            server.force_exit = True
        # The connection is aborted: the client may see its end or a reset.
        with contextlib.suppress(ConnectionResetError):
            assert await answer == b""

    play(server, scene)
    assert app.events == ["startup", "shutdown", "cancelled"]


def test_another_thread_stops_it() -> None:
    server = quiet(App())
    failed: list[BaseException] = []

    def serve() -> None:
        try:
            server.run()
        except BaseException as error:
            failed.append(error)
            raise

    thread = threading.Thread(target=serve)
    thread.start()
    asyncio.run(until(lambda: server.started or failed))
    host, port = server.sockets[0].getsockname()
    with socket.create_connection((host, port), DEADLINE_S) as client:
        client.sendall(b"GET /x HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
        answer = b"".join(iter(lambda: client.recv(1 << 16), b""))
    assert answer.endswith(b"/x")
    server.should_exit = True
    thread.join(DEADLINE_S)
    assert not thread.is_alive()
    assert failed == []


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_a_signal_ends_it_and_is_raised_again(loop: str) -> None:
    app = App()
    caught: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda signum, _frame: caught.append(signum))
    server = quiet(app, loop=loop)

    async def main() -> None:
        asyncio.get_running_loop().call_later(0, signal.raise_signal, signal.SIGTERM)
        await server.serve()

    try:
        if loop == "uvloop":
            import uvloop

            uvloop.run(main())
        else:
            asyncio.run(main())
        assert caught == [signal.SIGTERM]
        assert signal.getsignal(signal.SIGTERM) != server._on_signal
    finally:
        signal.signal(signal.SIGTERM, before)


def test_interrupting_it_twice_cuts_requests() -> None:
    app = App()
    server = quiet(app)

    async def scene() -> None:
        answer = asyncio.ensure_future(get(server, "/slow"))
        await app.arrived.wait()
        signal.raise_signal(signal.SIGINT)
        await until(lambda: not server.sockets[0].fileno() >= 0)
        signal.raise_signal(signal.SIGINT)
        await asyncio.wait({answer})
        answer.exception()

    async def main() -> None:
        other = asyncio.ensure_future(begin())
        await server.serve()
        await other

    async def begin() -> None:
        await until(lambda: server.started)
        await scene()

    with pytest.raises(KeyboardInterrupt):
        asyncio.run(main())
    assert app.events == ["startup", "shutdown", "cancelled"]


def test_cancellation_ends_it() -> None:
    app = App()

    async def main() -> None:
        task = asyncio.ensure_future(servo.serve(app, port=0, log_config=None))
        await until(lambda: app.events)
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())
    assert app.events[0] == "startup"


def test_it_ends_after_max_requests() -> None:
    server = quiet(App(), limit_max_requests=2, limit_max_requests_jitter=0)

    async def scene() -> None:
        await get(server)
        await get(server)

    play(server, scene)


def test_a_wsgi_application() -> None:
    def app(environ: Any, start_response: Any) -> list[bytes]:
        start_response("200 OK", [("Content-Length", "4")])
        return [b"wsgi"]

    server = quiet(app)

    async def scene() -> None:
        assert (await get(server)).endswith(b"wsgi")
        server.should_exit = True

    play(server, scene)


def test_sockets_of_the_caller() -> None:
    server = quiet(App())
    with socket.create_server(("127.0.0.1", 0)) as given:

        async def main() -> None:
            task = asyncio.ensure_future(server.serve(sockets=[given]))
            await until(lambda: server.started or task.done())
            assert server.sockets[0].getsockname() == given.getsockname()
            assert (await get(server, "/s")).endswith(b"/s")
            server.should_exit = True
            await task

        asyncio.run(main())
        assert given.fileno() >= 0


def test_a_unix_socket_is_removed(tmp_path: Path) -> None:
    path = tmp_path / "app.sock"
    server = quiet(App(), port=None, uds=path)

    async def scene() -> None:
        assert path.is_socket()
        server.should_exit = True

    play(server, scene)
    assert not path.exists()


def test_a_start_that_fails() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "lifespan.startup.failed", "message": "no database"})

    server = quiet(app)
    with pytest.raises(BootError, match="no database"):
        asyncio.run(server.serve())
    assert server.sockets[0].fileno() == -1
    with socket.create_server(("127.0.0.1", 0)) as taken:
        server = quiet(App(), port=taken.getsockname()[1])
        with pytest.raises(BindError):
            asyncio.run(server.serve())


def test_what_needs_processes_is_refused() -> None:
    with pytest.raises(ConfigError, match="workers: 4 needs a server with processes"):
        Server(App(), workers=4)
    with pytest.raises(ConfigError, match="reload: True needs"):
        Server(App(), reload=True)
    with pytest.raises(TypeError, match="there is no option prt"):
        Server(App(), prt=1)


def test_nothing_but_the_arguments_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SERVO_BACKLOG", "7")
    monkeypatch.setenv("PORT", "1")
    (tmp_path / "gunicorn.conf.py").write_text("raise RuntimeError('it was executed')")
    server = Server(App())
    assert server.settings.bind == ["127.0.0.1:8000"]
    assert server.settings.backlog == 2048
