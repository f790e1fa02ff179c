"""The time limits of a client that sends its request body too slowly."""

from __future__ import annotations

from unit.workers.fakes import SECOND

from servo.workers.request.body_rate import BodyRate


def due_s(body_rate: BodyRate, now_s: float, received: int) -> float:
    """When to give up, in seconds."""
    return body_rate.deadline_ns(int(now_s * SECOND), received) / SECOND


def test_without_a_limit_a_client_may_take_its_time() -> None:
    body_rate = BodyRate(0, 100, 0)
    assert due_s(body_rate, 1000, 0) == 0


def test_each_part_allows_another_pause_where_no_rate_is_asked_for() -> None:
    body_rate = BodyRate(20, 0, 0)
    assert due_s(body_rate, 0, 1) == 20
    assert due_s(body_rate, 19, 1) == 39
    assert due_s(body_rate, 38, 1) == 58


def test_the_rate_is_asked_for_on_the_whole_after_the_first_pause() -> None:
    body_rate = BodyRate(20, 100, 0)
    assert due_s(body_rate, 0, 0) == 20
    assert due_s(body_rate, 10, 100) == 21  # 100 bytes have bought a second
    assert due_s(body_rate, 15, 2000) == 35  # a pause is never longer than the gap
    assert due_s(body_rate, 30, 100) == 42


def test_one_byte_now_and_then_is_not_enough() -> None:
    body_rate = BodyRate(20, 100, 0)
    now = 0
    while due_s(body_rate, now, 1) > now:
        now += 1
    assert now == 21


def test_a_pause_of_ours_is_not_the_clients_fault() -> None:
    body_rate = BodyRate(20, 100, 0)
    assert due_s(body_rate, 10, 100) == 21
    body_rate.pause(30 * SECOND)
    assert due_s(body_rate, 40, 100) == 52


def test_the_clock_begins_with_the_body() -> None:
    body_rate = BodyRate(20, 100, 1000 * SECOND)
    assert due_s(body_rate, 1000, 0) == 1020
