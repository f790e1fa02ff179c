"""The chaos run excuses a lost request only by proof."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest
from soak.chaos_clients import Line, Lost, Tally


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
