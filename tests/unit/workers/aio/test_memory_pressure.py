"""The unsent bytes of one worker, and the clients to cut."""

from __future__ import annotations

import logging

import pytest

from servo.workers.aio.memory_pressure import STALLED_S, WORKER_MOST, Pressure

SECOND = 1_000_000_000


class Waiting:
    """A client with so many bytes to take."""

    peer_name = "192.0.2.1"

    def __init__(self, size: int) -> None:
        self.size = size
        self.aborted = False

    def held_bytes(self) -> int:
        return 0 if self.aborted else self.size

    def progress(self) -> object:
        return self.size

    def abort(self) -> None:
        self.aborted = True


def look(pressure: Pressure, clients: list[Waiting], seconds: float) -> list[bool]:
    pressure.look(clients, int(seconds * SECOND))
    return [client.aborted for client in clients]


def test_ordinary_times_cut_nobody() -> None:
    pressure = Pressure()
    clients = [Waiting(WORKER_MOST // 4) for _ in range(4)]
    for second in range(100):
        assert look(pressure, clients, second) == [False] * 4
    assert not pressure.is_high


def test_the_biggest_of_those_that_take_nothing_are_cut(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING, "servo.error")
    pressure = Pressure()
    clients = [Waiting(WORKER_MOST // 4), Waiting(WORKER_MOST // 2), Waiting(WORKER_MOST // 2)]
    idle = Waiting(0)
    assert look(pressure, [*clients, idle], 10.0) == [False] * 4
    assert pressure.is_high
    assert look(pressure, [*clients, idle], 10.9 + STALLED_S - 1) == [False] * 4
    # One is enough.
    cut = look(pressure, [*clients, idle], 10.0 + STALLED_S)
    assert cut in ([False, True, False, False], [False, False, True, False])
    assert "cut 192.0.2.1" in caplog.text
    look(pressure, [*clients, idle], 11.0 + STALLED_S)
    assert not pressure.is_high


def test_who_takes_something_is_left_alone() -> None:
    pressure = Pressure()
    slow, stuck = Waiting(WORKER_MOST + 1000), Waiting(1 << 20)
    for second in range(10):
        slow.size -= 1
        look(pressure, [slow, stuck], second)
    assert (slow.aborted, stuck.aborted) == (False, True)
    assert pressure.is_high


def test_a_pause_counts_from_when_too_much_waits() -> None:
    """Before, `send_timeout` is its only limit."""
    pressure = Pressure()
    stuck, other = Waiting(WORKER_MOST // 2), Waiting(WORKER_MOST)
    for second in range(20):
        look(pressure, [stuck], second)
    assert look(pressure, [stuck, other], 20) == [False, False]
    assert look(pressure, [stuck, other], 20 + STALLED_S) == [False, True]


def test_http2_counts_as_it_comes() -> None:
    pressure = Pressure()
    pressure.http2.bytes = WORKER_MOST + 1
    assert pressure.is_high
