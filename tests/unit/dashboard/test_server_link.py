"""The link to the arbiter, which a test plays over real sockets."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from unit.dashboard.answers import status, worker, workers

from servo.control.client import ConnectionEnded, NoAnswer, RequestFailed
from servo.control.protocol import failure_line, lost_line, note_line, parse_request, result_line
from servo.dashboard import server_link as module
from servo.dashboard.history import History
from servo.dashboard.server_link import ServerLink

DEADLINE_S = 30.0
FIGURES, EVENTS, COMMANDS = range(3)


class Arbiter:
    """The arbiter's ends, and a link."""

    def __init__(self) -> None:
        pairs = [socket.socketpair() for _ in range(3)]
        self._ours = [ours for ours, _ in pairs]
        self.history = History()
        self.changes = self.ends = 0
        self.link = ServerLink(
            [theirs for _, theirs in pairs],
            self.history,
            {"control": True},
            self._changed,
            self._ended,
        )
        self.streams: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []

    def _changed(self) -> None:
        self.changes += 1

    def _ended(self) -> None:
        self.ends += 1

    async def start(self) -> None:
        for sock in self._ours:
            self.streams.append(await asyncio.open_unix_connection(sock=sock))
        await self.link.start()

    async def asked(self, which: int) -> tuple[str, dict[str, Any]]:
        line = await asyncio.wait_for(self.streams[which][0].readline(), DEADLINE_S)
        request = parse_request(line)
        return request.command, request.args

    def answer(self, which: int, *lines: bytes) -> None:
        self.streams[which][1].write(b"".join(lines))

    async def answer_figures(self, requests: int = 0, *rows: dict[str, Any]) -> None:
        assert (await self.asked(FIGURES))[0] == "status"
        self.answer(FIGURES, result_line(status(requests)))
        assert (await self.asked(FIGURES))[0] == "workers"
        self.answer(FIGURES, result_line(workers(*rows)))
        assert (await self.asked(FIGURES))[0] == "pools"
        self.answer(FIGURES, result_line({"server_pid": 7, "pools": []}))

    async def close(self) -> None:
        self.link.close()
        for _, writer in self.streams:
            writer.close()
        await asyncio.sleep(0)


async def until(condition: Callable[[], object]) -> None:
    end = asyncio.get_running_loop().time() + DEADLINE_S
    while not condition():
        assert asyncio.get_running_loop().time() < end
        await asyncio.sleep(0.001)


def play(script: Callable[[Arbiter], Awaitable[None]]) -> Arbiter:
    async def run() -> Arbiter:
        arbiter = Arbiter()
        await arbiter.start()
        try:
            await script(arbiter)
        finally:
            await arbiter.close()
        return arbiter

    return asyncio.run(run())


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SAMPLE_S", 0.01)


def test_figures_become_samples() -> None:
    async def script(arbiter: Arbiter) -> None:
        await arbiter.answer_figures(5, worker())
        await until(lambda: arbiter.history.samples)
        await arbiter.answer_figures(7, worker())
        await until(lambda: len(arbiter.history.samples) == 2)

    arbiter = play(script)
    samples = [json.loads(line) for line in arbiter.history.samples]
    assert [sample["total"]["requests"] for sample in samples] == [5, 7]
    assert samples[1]["n"] == samples[0]["n"] + 1
    server = json.loads(arbiter.history.server.data)
    assert (server["name"], server["pid"], server["control"]) == ("shop", 7, True)
    assert arbiter.changes >= 1


def test_the_first_answer_is_awaited() -> None:
    async def script(arbiter: Arbiter) -> None:
        waiting = asyncio.ensure_future(arbiter.link.first_answer())
        await arbiter.answer_figures(5)
        await waiting
        assert arbiter.history.samples

    play(script)


def test_a_silent_server_is_not_awaited_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LOST_S", 0.01)

    async def script(arbiter: Arbiter) -> None:
        await arbiter.link.first_answer()

    play(script)


def test_a_silent_server_is_lost_until_it_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LOST_S", 0.01)

    def states(arbiter: Arbiter) -> list[str]:
        return [json.loads(line)["state"] for line in arbiter.history.samples]

    async def script(arbiter: Arbiter) -> None:
        await until(lambda: states(arbiter).count("lost") >= 2)
        await arbiter.answer_figures(5)
        await until(lambda: "serving" in states(arbiter))

    arbiter = play(script)
    assert states(arbiter)[0] == "lost"
    assert not arbiter.ends


def test_each_event_is_kept_once() -> None:
    old = [{"name": "ready", "time": number, "text": ""} for number in range(3)]
    new = {"name": "exited", "time": 3, "text": ""}

    async def script(arbiter: Arbiter) -> None:
        assert await arbiter.asked(EVENTS) == ("events", {"follow": False})
        arbiter.answer(EVENTS, *map(note_line, old[:2]), b"\n", result_line({}))
        assert await arbiter.asked(EVENTS) == ("events", {"follow": True})
        arbiter.answer(EVENTS, *map(note_line, [*old, new]), lost_line(2), note_line(new))
        await until(lambda: len(arbiter.history.events) == 5)

    arbiter = play(script)
    assert [json.loads(line)["time"] for line in arbiter.history.events] == [0, 1, 2, 3, 3]


def test_a_command_is_answered() -> None:
    async def script(arbiter: Arbiter) -> None:
        async def answer() -> None:
            assert await arbiter.asked(COMMANDS) == ("scale", {"to": "3"})
            arbiter.answer(COMMANDS, note_line({"step": "accepted"}), result_line({"workers": 3}))

        task = asyncio.ensure_future(answer())
        assert await arbiter.link.command("scale", {"to": "3"}) == {"workers": 3}
        await task

    play(script)


def test_a_refused_command_ends_nothing() -> None:
    async def script(arbiter: Arbiter) -> None:
        task = asyncio.ensure_future(arbiter.link.command("reload", {"wait": False}))
        await arbiter.asked(COMMANDS)
        arbiter.answer(COMMANDS, failure_line("refused", "it is stopping"))
        with pytest.raises(RequestFailed, match="it is stopping"):
            await task

    assert not play(script).ends


def test_a_late_answer_belongs_to_its_own_command(monkeypatch: pytest.MonkeyPatch) -> None:
    async def script(arbiter: Arbiter) -> None:
        monkeypatch.setattr(module, "COMMAND_S", 0.01)
        with pytest.raises(NoAnswer):
            await arbiter.link.command("scale", {"to": "3"})
        monkeypatch.setattr(module, "COMMAND_S", DEADLINE_S)
        second = asyncio.ensure_future(arbiter.link.command("scale", {"to": "4"}))
        assert await arbiter.asked(COMMANDS) == ("scale", {"to": "3"})
        arbiter.answer(COMMANDS, result_line({"workers": 3}))
        assert await arbiter.asked(COMMANDS) == ("scale", {"to": "4"})
        arbiter.answer(COMMANDS, result_line({"workers": 4}))
        assert await second == {"workers": 4}

    play(script)


@pytest.mark.parametrize("which", [FIGURES, EVENTS])
def test_the_end_of_a_connection_is_the_end(which: int) -> None:
    async def script(arbiter: Arbiter) -> None:
        arbiter.streams[which][1].close()
        await until(lambda: arbiter.ends)

    play(script)


def test_a_command_without_an_arbiter() -> None:
    async def script(arbiter: Arbiter) -> None:
        arbiter.streams[COMMANDS][1].close()
        with pytest.raises(ConnectionEnded):
            await arbiter.link.command("reload", {})

    play(script)


def test_a_wrong_answer_ends_the_link(caplog: pytest.LogCaptureFixture) -> None:
    async def script(arbiter: Arbiter) -> None:
        await arbiter.asked(FIGURES)
        for _ in range(2):
            arbiter.answer(FIGURES, result_line({}))
            await arbiter.asked(FIGURES)
        arbiter.answer(FIGURES, result_line({}))
        await until(lambda: arbiter.ends)

    play(script)
    assert "The dashboard's link to the arbiter has failed" in caplog.text
