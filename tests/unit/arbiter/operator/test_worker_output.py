"""The log lines of the arbiter and of workers, for operators."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

import pytest

from servo.arbiter.operator.feed import Feed
from servo.arbiter.operator.worker_output import (
    MAX_LAST_RECORDS,
    POLL_S,
    Source,
    WorkerOutput,
    fair_share,
)
from servo.control.server import Caller
from servo.shared_memory.output_rings import APP, STDOUT, OutputRings, RingWriter


class FakeCaller:
    """Keeps what it is sent."""

    def __init__(self) -> None:
        self.received: list[dict[str, Any]] = []
        self.result: dict[str, Any] | None = None
        self.gone = self.following = False

    def notes(self, notes: list[dict[str, Any]]) -> None:
        self.received += notes

    def done(self, result: dict[str, Any]) -> None:
        self.result = result

    @property
    def texts(self) -> list[str]:
        return [note["text"] for note in self.received]


class World:
    """Workers with their rings, and a clock."""

    def __init__(self) -> None:
        self.now = 100.0
        self.rings = OutputRings(4)
        self.workers: list[Source] = []
        self.own = Feed(100, 10_000)
        self.output = WorkerOutput(
            self.rings, APP, lambda: self.workers, self.own, lambda: self.now
        )

    def worker(self, slot: int) -> RingWriter:
        self.workers.append(Source(slot, slot, {"slot": slot, "pid": slot}))
        return self.rings.writer(slot, APP)

    def ask(self, follow: bool = False) -> FakeCaller:
        caller = FakeCaller()
        self.output.show(cast("Caller", caller), follow)
        return caller

    def later(self) -> None:
        self.now += POLL_S
        self.output.tick(self.now)


@pytest.fixture
def world() -> Iterator[World]:
    found = World()
    yield found
    found.rings.close()


def say(ring: RingWriter, *lines: str) -> None:
    for line in lines:
        ring.append(STDOUT, 9, b"", f"{line}\n".encode())


def test_the_past(world: World) -> None:
    one, two = world.worker(1), world.worker(2)
    say(one, "a")
    say(two, "b")
    say(one, "c")
    world.own.append({"time": 1.0, "level": "info", "pid": 1, "text": "of the arbiter"})
    caller = world.ask()
    assert caller.texts == ["of the arbiter", "a", "b", "c"]
    assert caller.result == {}
    assert world.output.wake_at() == float("inf")


def test_followers_get_each_line_once(world: World) -> None:
    ring = world.worker(1)
    say(ring, "past")
    first = world.ask(follow=True)
    say(ring, "1")
    second = world.ask(follow=True)
    assert (first.texts, second.texts) == (["past", "1"], ["past", "1"])
    say(ring, "2")
    world.own.append({"time": 1.0, "level": "info", "pid": 1, "text": "of the arbiter"})
    say(world.worker(2), "of a new worker")
    world.later()
    new = ["of the arbiter", "2", "of a new worker"]
    assert first.texts[2:] == second.texts[2:] == new
    world.later()
    assert len(first.texts) == 5


def test_nothing_is_read_when_nobody_follows(world: World) -> None:
    ring = world.worker(1)
    caller = world.ask(follow=True)
    assert world.output.wake_at() == world.now + POLL_S
    caller.gone = True
    world.later()
    assert world.output.wake_at() == float("inf")
    say(ring, "unseen")
    world.own.append({"time": 1.0, "level": "info", "pid": 1, "text": "of the arbiter"})
    again = world.ask(follow=True)
    assert again.texts == ["of the arbiter", "unseen"]
    world.later()
    assert len(again.texts) == 2


def test_a_flood_is_looked_at_less_often(world: World) -> None:
    world.worker(1)
    world.ask(follow=True)
    world.now += POLL_S
    start = world.now
    look = world.output._look

    def slow_look(flush: bool = False) -> None:
        look(flush)
        world.now += 1.0

    world.output._look = slow_look  # type: ignore[method-assign]
    world.output.tick(start)
    assert world.output.wake_at() - world.now >= 9.0


def test_lost_lines_are_counted(world: World) -> None:
    ring = world.worker(1)
    say(ring, "past")
    caller = world.ask(follow=True)
    say(ring, *(f"line {number}" for number in range(5000)))
    world.later()
    _, gap, *lines = caller.received
    assert gap["level"] == "warning"
    assert gap["text"].startswith(f"{5000 - len(lines)} lines of this worker are missing here")
    assert lines[-1]["text"] == "line 4999"


def test_the_last_words_of_a_worker(world: World) -> None:
    ring = world.worker(1)
    caller = world.ask(follow=True)
    say(ring, *(f"line {number}" for number in range(MAX_LAST_RECORDS)))
    ring.append(STDOUT, 9, b"", b"no newline")
    world.output.end(world.workers[0])
    assert caller.texts == []
    assert len(world.ask().texts) == MAX_LAST_RECORDS
    world.workers.clear()
    world.rings.reset(1)
    world.later()
    assert caller.texts[-1] == "no newline"
    assert len(caller.texts) == MAX_LAST_RECORDS + 1
    say(world.worker(1), "of the next worker with this row")
    assert world.ask().texts[-2:] == ["no newline", "of the next worker with this row"]


def test_what_is_held_back_is_sent_at_the_end(world: World) -> None:
    ring = world.worker(1)
    caller = world.ask(follow=True)
    ring.append(STDOUT, 9, b"", b"no newline")
    world.later()
    assert caller.texts == []
    world.output.flush()
    assert caller.texts == ["no newline"]


def test_without_rings() -> None:
    output = WorkerOutput(None, APP, lambda: [Source(1, 0, {"slot": 1, "pid": 1})])
    caller = FakeCaller()
    output.show(cast("Caller", caller), follow=False)
    assert caller.received == []


def records(count: int, start: float, text: str = "x") -> list[dict[str, Any]]:
    return [{"time": start + number, "text": text} for number in range(count)]


def test_each_source_gets_its_share() -> None:
    loud, quiet = records(1000, 1000.0), records(10, 0.0)
    found = fair_share([loud, quiet, []], 100, 10_000)
    assert found == quiet + loud[-90:]
    assert fair_share([], 100, 100) == []
    assert fair_share([quiet], 100, 3) == quiet[-3:]
    long = records(50, 0.0, "y" * 100)
    assert len(fair_share([long, quiet], 100, 1000)) == 10 + 9
