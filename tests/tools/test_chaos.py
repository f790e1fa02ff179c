"""The chaos run excuses a lost request only by proof."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest
from soak.chaos_clients import (
    PLAIN_CLIENTS,
    SECURE_CLIENTS,
    Again,
    Failing,
    Line,
    Lost,
    Tally,
)


def failing(error: Exception) -> Callable[[], Awaitable[None]]:
    async def ask() -> None:
        raise error

    return ask


def watched(error: Exception, stops: dict[int, list[float]] | None = None) -> Tally:
    tally = Tally("async")
    tally.stops.update(stops or {})
    asyncio.run(tally.watch("kept", failing(error)))
    tally.settle()
    return tally


@pytest.mark.parametrize(
    ("line", "stops", "excused"),
    [
        (Line(1000, opened=5.0), {1000: [7.0]}, True),
        (Line(1000, opened=5.0), {1000: [3.0, 7.0]}, True),
        (Line(1000, opened=5.0), {1001: [7.0]}, False),
        # The port was another connection's, before this one.
        (Line(1000, opened=5.0), {1000: [3.0]}, False),
        # The request had failed before the worker was stopped.
        (Line(1000, opened=5.0), {1000: [float("inf")]}, False),
        (None, {1000: [7.0]}, False),
    ],
)
def test_only_connections_of_killed_workers_are_excused(
    line: Line | None, stops: dict[int, list[float]], excused: bool
) -> None:
    tally = watched(Lost(line, "ConnectionResetError(104)"), stops)
    assert tally.excused.total() == excused
    assert tally.lost == ({} if excused else {"ConnectionResetError": 1})
    assert len(tally.failed) == (not excused)


def test_wrong_answers_and_faults_of_clients_are_counted() -> None:
    tally = watched(AssertionError("b'2' for b'1'"))
    assert (tally.wrong, tally.lost.total(), len(tally.failed)) == (1, 0, 1)
    tally = watched(KeyError(3))
    assert (tally.wrong, tally.lost) == (0, {"the client failed: KeyError": 1})


def test_each_server_has_32_clients() -> None:
    assert sum(PLAIN_CLIENTS.values()) == sum(SECURE_CLIENTS.values()) == 32


def test_500_is_right_only_while_its_release_serves() -> None:
    assert watched(Failing(7)).wrong == 1
    for ended_at, wrong in ((float("inf"), 0), (0.0, 1)):
        tally = Tally("async")
        tally.failing[7] = ended_at
        asyncio.run(tally.watch("kept", failing(Failing(7))))
        assert (tally.wrong, tally.errors.total(), tally.right.total()) == (wrong, 1, 0)


def test_a_request_that_may_be_sent_again_is_not_lost() -> None:
    tally = watched(Again())
    assert (tally.again.total(), tally.lost.total(), tally.failed) == (1, 0, [])
