"""An ASGI application behind a real HTTP connection and a real event loop, without a socket."""

from __future__ import annotations

import asyncio
import logging
import os
from array import array

import pytest

from servo.apps.asgi import ASGICall
from servo.apps.asgi_scope import ASGIAdapter
from servo.http.errors import ClientDisconnected
from servo.http.events import Data, Request
from servo.http.h1.connection import H1Connection
from servo.http.limits import Limits

log = logging.getLogger("test")
GET = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"


class Wire:
    """A transport that keeps the bytes and files that it is given."""

    def __init__(self):
        self.loop = asyncio.get_running_loop()
        self.writable = True
        self.writes = []
        self.complete = 0
        self.done = 0
        self.resumed = 0
        self.released = asyncio.Event()

    @property
    def data(self):
        return b"".join(self.writes)

    def write(self, data):
        self.writes.append(data)

    async def drained(self):
        await self.released.wait()

    def resume_reading(self):
        self.resumed += 1

    async def send_file(self, fd, offset, count):
        self.writes.append(self.http.send_data(os.pread(fd, count, offset)))

    def response_complete(self):
        self.complete += 1

    def call_done(self, call):
        self.done += 1


class Exchange:
    """One request on its way through an application."""

    def __init__(self, app, raw=GET, **options):
        self.wire = Wire()
        self.http = self.wire.http = H1Connection(Limits())
        request = self.http.receive_data(raw)
        assert isinstance(request, Request)
        adapter = ASGIAdapter(app, log=log, **options)
        template = adapter.template(("127.0.0.1", 80), ("127.0.0.2", 5000), "http")
        self.call = ASGICall(adapter, template, request, self.http, self.wire, 0)

    async def run(self):
        await asyncio.wait_for(self.call.run(), 5)
        return self

    @property
    def body(self):
        return self.wire.data.partition(b"\r\n\r\n")[2]


def exchange(app, raw=GET, **options):
    async def main():
        return await Exchange(app, raw, **options).run()

    return asyncio.run(main())


def start(status=200, headers=(), **more):
    return {"type": "http.response.start", "status": status, "headers": list(headers), **more}


def body(data=b"", more=False):
    return {"type": "http.response.body", "body": data, "more_body": more}


async def hello(scope, receive, send):
    await send(start(headers=[(b"content-type", b"text/plain")]))
    await send(body(b"hello"))


def test_an_ordinary_response_is_one_write():
    result = exchange(hello)
    assert len(result.wire.writes) == 1
    assert result.wire.data.startswith(b"HTTP/1.1 200 OK\r\n")
    assert b"content-length: 5" in result.wire.data.lower()
    assert result.body == b"hello"
    assert (result.wire.complete, result.wire.done) == (1, 1)


def test_a_streamed_response_is_chunked():
    async def app(scope, receive, send):
        await send(start())
        await send(body(b"one", True))
        await send(body(b"two", True))
        await send(body())

    result = exchange(app)
    assert result.body == b"3\r\none\r\n3\r\ntwo\r\n0\r\n\r\n"
    assert len(result.wire.writes) == 3


@pytest.mark.parametrize("view", [memoryview(array("H", b"wide")), memoryview(b"w-i-d-e-")[::2]])
def test_a_body_that_is_a_view_is_measured_in_bytes(view):
    async def whole(scope, receive, send):
        await send(start())
        await send(body(view))

    async def streamed(scope, receive, send):
        await send(start())
        await send(body(view, True))
        await send(body(b"!"))

    async def declared(scope, receive, send):
        await send(start(headers=[(b"content-length", b"5")]))
        await send(body(view, True))
        await send(body(b"!"))

    assert exchange(whole).body == b"wide"
    assert b"Content-Length: 4\r\n" in exchange(whole).wire.data
    assert exchange(streamed).body == b"4\r\nwide\r\n1\r\n!\r\n0\r\n\r\n"
    assert exchange(declared).body == b"wide!"


def test_send_gives_a_coroutine_that_tasks_can_run():
    async def app(scope, receive, send):
        await asyncio.create_task(send(start()))
        async with asyncio.TaskGroup() if hasattr(asyncio, "TaskGroup") else _Nothing():
            await asyncio.wait_for(send(body(b"x")), 1)

    assert exchange(app).body == b"x"


class _Nothing:
    async def __aenter__(self):
        return self

    async def __aexit__(self, *exc):
        return None


def test_the_body_comes_in_parts():
    async def app(scope, receive, send):
        parts = []
        while True:
            message = await receive()
            parts.append(message["body"])
            if not message["more_body"]:
                break
        await send(start())
        await send(body(b"|".join(parts)))

    async def main():
        raw = b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 6\r\n\r\nab"
        result = Exchange(app, raw)
        task = asyncio.ensure_future(result.run())
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        for data in (b"cd", b"ef"):
            event = result.http.receive_data(data)
            assert isinstance(event, Data)
            result.call.feed(event)
            await asyncio.sleep(0)
            await asyncio.sleep(0)
        return await task

    assert asyncio.run(main()).body == b"ab|cd|ef"


def test_100_continue_is_sent_when_the_application_first_reads():
    async def app(scope, receive, send):
        await receive()
        await send(start())
        await send(body())

    async def main():
        raw = b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 2\r\nExpect: 100-continue\r\n\r\n"
        result = Exchange(app, raw)
        task = asyncio.ensure_future(result.run())
        for _ in range(3):
            await asyncio.sleep(0)
        assert result.wire.data.startswith(b"HTTP/1.1 100 ")
        event = result.http.receive_data(b"hi")
        assert isinstance(event, Data)
        result.call.feed(event)
        return await task

    assert b"HTTP/1.1 200 OK" in asyncio.run(main()).wire.data


def test_back_pressure_holds_the_application():
    async def app(scope, receive, send):
        await send(start())
        await send(body(b"x", True))
        await send(body(b"y"))

    async def main():
        result = Exchange(app)
        result.wire.writable = False
        task = asyncio.ensure_future(result.run())
        for _ in range(3):
            await asyncio.sleep(0)
        assert len(result.wire.writes) == 1
        result.wire.released.set()
        return await task

    assert asyncio.run(main()).wire.complete == 1


def test_an_application_that_keeps_sending_yields_to_the_loop():
    """The client is gone, and the loop calls `connection_lost` only if it gets a turn."""

    async def app(scope, receive, send):
        await send(start())
        asyncio.get_running_loop().call_soon(result.call.disconnect)
        for _ in range(10_000):
            await send(body(b"x", True))

    async def main():
        nonlocal result
        result = Exchange(app)
        await result.run()

    result = None
    asyncio.run(main())
    assert 0 < len(result.wire.writes) < 100


def test_a_disconnect_ends_receive_and_send(caplog):
    seen = []

    async def app(scope, receive, send):
        await receive()
        seen.append(await receive())
        try:
            await send(start())
        except OSError as error:
            seen.append(error)
            raise RuntimeError("wrapped, as frameworks do") from error

    async def main():
        result = Exchange(app)
        task = asyncio.ensure_future(result.run())
        for _ in range(3):
            await asyncio.sleep(0)
        result.call.disconnect()
        return await task

    asyncio.run(main())
    assert seen[0] == {"type": "http.disconnect"}
    assert isinstance(seen[1], ClientDisconnected)
    assert caplog.text == ""


def test_receive_after_the_response_says_disconnect():
    seen = []

    async def app(scope, receive, send):
        await receive()
        await hello(scope, receive, send)
        seen.append(await receive())

    exchange(app)
    assert seen == [{"type": "http.disconnect"}]


LONG = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\nhalf"
POST = LONG.replace(b"9", b"4")


@pytest.mark.parametrize("raw", [GET, POST, LONG], ids=["no body", "whole body", "half a body"])
def test_receive_after_the_response_says_disconnect_whatever_was_read(raw):
    seen = []

    async def app(scope, receive, send):
        await hello(scope, receive, send)
        seen.extend([await receive(), await receive()])

    exchange(app, raw)
    assert seen == [{"type": "http.disconnect"}] * 2


async def trailers(scope, receive, send):
    await send(start(trailers=True))
    await send(body(b"hello"))
    await send({"type": "http.response.trailers", "headers": []})


async def streams(scope, receive, send):
    await send(start())
    await send(body(b"hello", True))
    await send(body())


async def fails(scope, receive, send):
    raise RuntimeError


@pytest.mark.parametrize("answer", [hello, streams, trailers, fails])
def test_a_task_that_waits_in_receive_gets_a_disconnect_at_the_end(answer):
    async def main():
        waiting = []

        async def app(scope, receive, send):
            await receive()
            waiting.append(asyncio.ensure_future(receive()))
            await asyncio.sleep(0)
            await answer(scope, receive, send)

        await Exchange(app).run()
        return await asyncio.wait_for(waiting[0], 5)

    assert asyncio.run(main()) == {"type": "http.disconnect"}


@pytest.mark.parametrize(
    "error",
    [
        ValueError("secret"),
        SystemExit(3),
        asyncio.CancelledError(),
        GeneratorExit(),
        KeyboardInterrupt(),
    ],
)
def test_an_error_before_the_head_is_a_500_without_details(caplog, error):
    async def app(scope, receive, send):
        raise error

    result = exchange(app)
    assert result.wire.data.startswith(b"HTTP/1.1 500 ")
    assert b"secret" not in result.wire.data
    assert "Traceback" in caplog.text
    # The connection goes on: more may be pipelined.
    assert not result.http.close_after
    assert b"connection:" not in result.wire.data.lower()


def test_an_error_in_the_middle_cuts_the_response(caplog):
    async def app(scope, receive, send):
        await send(start())
        await send(body(b"x", True))
        raise ValueError("in the middle")

    result = exchange(app)
    assert not result.body.endswith(b"0\r\n\r\n")
    assert result.http.close_after
    assert result.wire.complete == 1
    assert "in the middle" in caplog.text


@pytest.mark.parametrize(
    ("messages", "word"),
    [
        ([body(b"x")], "before http.response.start"),
        ([start(), start()], "twice"),
        ([start()], "before its response was complete"),
        ([{"type": "http.response.nonsense"}], "nonsense"),
        ([start(headers=[(b"a", b"b\r\nc: d")]), body()], ""),
    ],
)
def test_violations_of_the_specification_are_logged(caplog, messages, word):
    async def app(scope, receive, send):
        for message in messages:
            await send(message)

    result = exchange(app)
    assert result.wire.data.startswith(b"HTTP/1.1 500 ")
    assert word in caplog.text
    assert b"c: d" not in result.wire.data


def test_trailers():
    async def app(scope, receive, send):
        await send(start(trailers=True))
        await send(body(b"x"))
        await send({"type": "http.response.trailers", "headers": [(b"x-sum", b"1")]})

    result = exchange(app)
    assert result.body == b"1\r\nx\r\n0\r\nx-sum: 1\r\n\r\n"


def test_early_hints():
    async def app(scope, receive, send):
        await send({"type": "http.response.early_hint", "links": [b"</a.css>; rel=preload"]})
        await hello(scope, receive, send)

    data = exchange(app).wire.data
    assert data.startswith(b"HTTP/1.1 103 Early Hints\r\nlink: </a.css>; rel=preload\r\n\r\n")
    assert b"HTTP/1.1 200 OK" in data


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"0123456789")
    return path


def pathsend(path):
    return {"type": "http.response.pathsend", "path": str(path)}


def zerocopysend(file, more=False, **place):
    return {"type": "http.response.zerocopysend", "file": file, "more_body": more, **place}


@pytest.mark.parametrize("headers", [[(b"content-length", b"10")], []])
def test_pathsend(file, headers):
    async def app(scope, receive, send):
        assert "http.response.pathsend" in scope["extensions"]
        await send(start(headers=headers))
        await send(pathsend(file))

    result = exchange(app)
    assert b"0123456789" in result.body
    assert result.body.endswith(b"0\r\n\r\n") == (not headers)
    assert result.wire.complete == 1


def test_pathsend_to_head_and_of_nothing(file):
    async def app(scope, receive, send):
        await send(start(headers=[(b"content-length", b"%d" % file.stat().st_size)]))
        await send(pathsend(file))

    result = exchange(app, b"HEAD / HTTP/1.1\r\nHost: x\r\n\r\n")
    assert b"Content-Length: 10" in result.wire.data
    assert result.body == b""
    file.write_bytes(b"")
    assert exchange(app).body == b""


def test_pathsend_of_a_missing_file_is_a_500(tmp_path):
    async def app(scope, receive, send):
        await send(start())
        await send(pathsend(tmp_path / "none"))

    assert exchange(app).wire.data.startswith(b"HTTP/1.1 500 ")


def test_zerocopysend(file):
    """Without an offset, the file's position is used and advanced. Other parts may surround it."""

    async def app(scope, receive, send):
        assert "http.response.zerocopysend" in scope["extensions"]
        await send(start(headers=[(b"content-length", b"17")]))
        await send(body(b"a", True))
        with file.open("rb") as opened:
            await send(zerocopysend(opened, True, offset=7))
            await send(zerocopysend(opened, True, count=4))
            await send(zerocopysend(opened.fileno(), True, count=2))
            await send(body(b"b", True))
            assert os.lseek(opened.fileno(), 0, os.SEEK_CUR) == 6
            await send(zerocopysend(opened, True, offset=9, count=5))
            await send(zerocopysend(opened, offset=1, count=5))

    assert exchange(app).body == b"a789012345b912345"


def test_zerocopysend_before_trailers(file):
    async def app(scope, receive, send):
        await send(start(trailers=True))
        with file.open("rb") as opened:
            await send(zerocopysend(opened))
        await send({"type": "http.response.trailers", "headers": [(b"a", b"b")]})

    assert exchange(app).body == b"a\r\n0123456789\r\n0\r\na: b\r\n\r\n"


def test_debug_information_goes_to_the_log(caplog):
    async def app(scope, receive, send):
        assert "http.response.debug" in scope["extensions"]
        await send({"type": "http.response.debug", "info": {"template": "a.html"}})
        await hello(scope, receive, send)

    with caplog.at_level(logging.DEBUG, logger="test"):
        assert exchange(app).body == b"hello"
    assert "GET '/': {'template': 'a.html'}" in caplog.text


# --- event streams ------------------------------------------------------------------------------

EVENTS = (b"Content-Type", b"Text/Event-Stream; charset=utf-8")


@pytest.mark.parametrize(
    ("headers", "long_lived"),
    [
        ([EVENTS], True),
        ([(b"content-length", b"3"), EVENTS], True),
        ([(b"content-type", b"text/html")], False),
        ([], False),
        ([("content-type", "text/event-stream")], False),
    ],
)
def test_an_event_stream_is_long_lived_until_it_ends(headers, long_lived):
    seen = []

    async def app(scope, receive, send):
        seen.append(subject.call.is_long_lived)
        await send(start(headers=headers))
        seen.append(subject.call.is_long_lived)
        raise ClientDisconnected("that is all")

    async def main():
        nonlocal subject
        subject = Exchange(app)
        await subject.run()

    subject = None
    asyncio.run(main())
    assert seen == [False, long_lived]


@pytest.mark.parametrize("pieces", [0, 2])
def test_an_event_stream_is_ended_like_a_complete_response(pieces):
    told = []

    async def app(scope, receive, send):
        await receive()
        await send(start(headers=[EVENTS]))
        for _ in range(pieces):
            await send(body(b"data: x\n\n", more=True))
        waiting.set_result(None)
        told.append(await receive())
        await send(body(b"data: late\n\n", more=True))

    async def main():
        nonlocal waiting
        waiting = asyncio.get_running_loop().create_future()
        exchange = Exchange(app)
        task = asyncio.ensure_future(exchange.run())
        await waiting
        exchange.call.end_stream()
        assert not exchange.call.is_long_lived
        return await task

    waiting = None
    ended = asyncio.run(main())
    assert ended.body == b"9\r\ndata: x\n\n\r\n" * pieces + b"0\r\n\r\n"
    assert ended.wire.complete == ended.wire.done == 1
    assert told == [{"type": "http.disconnect"}]
