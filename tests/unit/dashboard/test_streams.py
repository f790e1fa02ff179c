"""Server-sent events."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from servo.dashboard import streams as module
from servo.dashboard.history import History
from servo.dashboard.streams import MOST_STREAMS, Streams, TooManyStreams


class Reader:
    """A client of a stream: keeps what it gets, and may stop reading."""

    def __init__(self, streams: Streams) -> None:
        self.data = b""
        self.reads = asyncio.Event()
        self.reads.set()
        self.gone = asyncio.Event()
        self._streams = streams

    async def send(self, message: dict[str, Any]) -> None:
        await self.reads.wait()
        self.data += message["body"]

    async def receive(self) -> dict[str, Any]:
        await self.gone.wait()
        return {"type": "http.disconnect"}

    async def run(self, last: int | None = None) -> None:
        with self._streams.opened() as stream:
            await stream.run(self.receive, self.send, last)

    @property
    def frames(self) -> list[bytes]:
        return self.data.split(b"\n\n")[:-1]


async def turn() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


def test_new_entries_follow_the_description() -> None:
    async def play() -> None:
        history = History()
        history.set_server({"a": 1})
        history.add_sample({"n": 1})
        streams = Streams(history)
        reader = Reader(streams)
        task = asyncio.ensure_future(reader.run())
        await turn()
        assert reader.frames == [b"retry: 2000", b'event: server\ndata: {"a":1}']
        history.add_sample({"n": 2})
        history.add_event({"name": "ready", "text": ""})
        history.set_server({"a": 2})
        streams.wake()
        await turn()
        assert reader.frames[2:] == [
            b'id: 2\nevent: sample\ndata: {"n":2}',
            b'event: event\ndata: {"name":"ready","text":""}',
            b'event: server\ndata: {"a":2}',
        ]
        assert len(streams) == 1
        reader.gone.set()
        await task
        assert len(streams) == 0

    asyncio.run(play())


def test_a_client_that_comes_back_gets_what_it_has_missed() -> None:
    async def play() -> None:
        history = History()
        for number in (1, 2, 3):
            history.add_sample({"n": number})
        history.set_server({"a": 1})
        reader = Reader(Streams(history))
        task = asyncio.ensure_future(reader.run(last=1))
        await turn()
        assert [frame.partition(b"\n")[0] for frame in reader.frames] == [
            *(b"retry: 2000", b"event: server", b"id: 2", b"id: 3")
        ]
        reader.gone.set()
        await task

    asyncio.run(play())


def test_a_client_that_does_not_read_costs_no_memory() -> None:
    async def play() -> None:
        history = History()
        streams = Streams(history)
        reader = Reader(streams)
        task = asyncio.ensure_future(reader.run())
        await turn()
        reader.reads.clear()
        for number in range(1, 2001):
            history.add_sample({"n": number})
            streams.wake()
        await turn()
        reader.reads.set()
        await turn()
        numbers = [frame for frame in reader.frames if frame.startswith(b"id: ")]
        assert len(numbers) <= 601
        assert numbers[-1].startswith(b"id: 2000\n")
        reader.gone.set()
        await task

    asyncio.run(play())


def test_a_silent_stream_sends_comments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "COMMENT_S", 0.0)

    async def play() -> None:
        reader = Reader(Streams(History()))
        task = asyncio.ensure_future(reader.run())
        while b": nothing new\n\n" not in reader.data:
            await asyncio.sleep(0)
        reader.gone.set()
        await task

    asyncio.run(play())


def test_only_so_many_streams_are_open() -> None:
    async def play() -> None:
        streams = Streams(History())
        opened = [streams.opened() for _ in range(MOST_STREAMS)]
        for each in opened:
            each.__enter__()
        with pytest.raises(TooManyStreams), streams.opened():
            pass
        opened[0].__exit__(None, None, None)
        with streams.opened():
            assert len(streams) == MOST_STREAMS

    asyncio.run(play())
