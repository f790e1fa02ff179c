"""The heartbeats of an event loop, and the measured delays."""

from __future__ import annotations

import pytest
from unit.workers.fakes import SECOND, Clock, Loop, make_meter

from servo.shared_memory.row_layout import BEAT_NS, IN_FLIGHT
from servo.workers.aio.heartbeat import Heartbeat

INTERVAL_S = 0.005


class Beating:
    """A heartbeat with a row of its own."""

    def __init__(self, clock: Clock, loop: Loop) -> None:
        self.clock, self.loop = clock, loop
        self.row = make_meter().row
        self.heart = Heartbeat(self.row, loop)

    def pass_time(self, seconds: float) -> None:
        self.clock.advance(seconds)
        self.loop.turn(2)

    @property
    def beat(self) -> bool:
        """It has beaten just now."""
        return self.row[BEAT_NS] == self.clock.ns


@pytest.fixture
def beating(clock: Clock, loop: Loop) -> Beating:
    return Beating(clock, loop)


def test_it_beats_from_the_first_request_until_none_is_in_flight(beating: Beating) -> None:
    beating.row[IN_FLIGHT] = 1
    beating.heart.request_began(beating.clock.ns)
    for _ in range(5):
        beating.pass_time(INTERVAL_S + 0.001)
        assert beating.beat
    beating.row[IN_FLIGHT] = 0
    beating.pass_time(INTERVAL_S + 0.001)
    assert beating.beat  # the last one
    beating.pass_time(1)
    assert not beating.beat
    beating.row[IN_FLIGHT] = 1
    beating.heart.request_began(beating.clock.ns)
    beating.pass_time(INTERVAL_S + 0.001)
    assert beating.beat
    assert beating.heart.requests == 2


def test_a_second_request_sets_no_second_timer(beating: Beating) -> None:
    beating.row[IN_FLIGHT] = 2
    beating.heart.request_began(beating.clock.ns)
    beating.pass_time(0.003)
    beating.heart.request_began(beating.clock.ns)
    beating.pass_time(0.003)
    assert beating.beat
    beating.pass_time(0.003)
    assert not beating.beat
    assert beating.heart.requests == 2


def test_a_loop_in_time_is_not_blocked(beating: Beating) -> None:
    beating.row[IN_FLIGHT] = 1
    beating.heart.request_began(beating.clock.ns)
    for _ in range(10):
        beating.pass_time(2 * INTERVAL_S)
    assert beating.heart.blocked_ns == 0


def test_what_blocks_the_loop_is_summed(beating: Beating) -> None:
    beating.row[IN_FLIGHT] = 1
    beating.heart.request_began(beating.clock.ns)
    beating.pass_time(0.5)
    beating.pass_time(1.0)
    assert beating.heart.blocked_ns == pytest.approx((1.5 - 2 * INTERVAL_S) * SECOND)
