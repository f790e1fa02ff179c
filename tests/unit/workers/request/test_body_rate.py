"""When a client that sends its body too slowly is given up."""

from __future__ import annotations

from unit.workers.fakes import SECOND

from servo.workers.request.body_rate import BodyPace


def due_s(pace: BodyPace, now_s: float, received: int) -> float:
    """When to give up, in seconds."""
    return pace.deadline_ns(int(now_s * SECOND), received) / SECOND


def test_without_a_limit_a_client_may_take_its_time() -> None:
    pace = BodyPace(0, 100, 0)
    assert due_s(pace, 1000, 0) == 0


def test_each_part_allows_another_pause_where_no_rate_is_asked_for() -> None:
    pace = BodyPace(20, 0, 0)
    assert due_s(pace, 0, 1) == 20
    assert due_s(pace, 19, 1) == 39
    assert due_s(pace, 38, 1) == 58


def test_the_rate_is_asked_for_on_the_whole_after_the_first_pause() -> None:
    pace = BodyPace(20, 100, 0)
    assert due_s(pace, 0, 0) == 20
    assert due_s(pace, 10, 100) == 21  # 100 bytes have bought a second
    assert due_s(pace, 15, 2000) == 35  # a pause is never longer than the gap
    assert due_s(pace, 30, 100) == 42


def test_one_byte_now_and_then_is_not_enough() -> None:
    pace = BodyPace(20, 100, 0)
    now = 0
    while due_s(pace, now, 1) > now:
        now += 1
    assert now == 21


def test_a_pause_of_ours_is_not_the_clients_fault() -> None:
    pace = BodyPace(20, 100, 0)
    assert due_s(pace, 10, 100) == 21
    pace.pause(30 * SECOND)
    assert due_s(pace, 40, 100) == 52


def test_the_clock_begins_with_the_body() -> None:
    pace = BodyPace(20, 100, 1000 * SECOND)
    assert due_s(pace, 1000, 0) == 1020
