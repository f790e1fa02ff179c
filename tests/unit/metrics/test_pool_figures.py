"""The figures of pools from their boards."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from servo.metrics import arbiter_facts as facts_module
from servo.metrics.arbiter_facts import Facts
from servo.metrics.families import Reader
from servo.metrics.pool_figures import PoolReader
from servo.metrics.prometheus import TEXT, Exposition
from servo.pools.board import BUCKETS_S, DONE, FAILED, Board
from servo.pools.listening import listen
from servo.shared_memory.scoreboard import Scoreboard


@pytest.fixture
def board() -> Iterator[Board]:
    board = Board()
    yield board
    board.close()


def run(board: Board, index: int, outcome: int) -> None:
    row = board.row(index)
    row.begin("m.f", 1)
    row.end(outcome)


def test_figures_of_live_and_ended_processes(board: Board, tmp_path: Path) -> None:
    listener = listen(str(tmp_path / "s"), 9)
    reader = PoolReader({"ml": board}, {"ml": str(tmp_path / "s")})
    first, second = board.allocate(1), board.allocate(2)
    board.row(second).ready()
    run(board, first, DONE)
    run(board, first, FAILED)
    board.release(first)
    run(board, second, DONE)
    board.row(second).begin("m.g", 2)
    board.allocate(3)
    (figures,) = reader.read()
    assert figures.tasks == {"done": 2, "failed": 1, "abandoned": 0, "lost": 0}
    assert figures.processes == {"booting": 1, "idle": 0, "busy": 1}
    assert (figures.waiting, figures.limit) == (0, 9)
    assert [bound for bound, _ in figures.durations] == [*BUCKETS_S, float("inf")]
    assert figures.durations[-1][1] == 3
    assert figures.busy_s > 0
    listener.close()
    (figures,) = reader.read()
    assert (figures.waiting, figures.limit) == (None, None)


def test_counters_never_decrease(board: Board) -> None:
    reader = PoolReader({"ml": board}, {"ml": "/nowhere"})
    index = board.allocate(1)
    run(board, index, DONE)
    assert reader.read()[0].tasks["done"] == 1
    board._row(index)[0] = 0  # as in the middle of `release`
    assert reader.read()[0].tasks["done"] == 1


def test_without_pools_there_is_nothing() -> None:
    assert PoolReader({}, {}).read() == []


def test_they_are_on_the_page(board: Board, tmp_path: Path) -> None:
    table = Scoreboard(1)
    facts = Facts(table.arbiter_words, ["asked"])
    facts.begin(os.getpid())
    facts.publish(facts_module.SERVING, 1, (1, 1, 1), False)
    listener = listen(str(tmp_path / "s"), 9)
    pools = PoolReader({"a": board, "b": board}, dict.fromkeys("ab", str(tmp_path / "s")))
    run(board, board.allocate(1), DONE)
    text = Exposition(Reader(table, facts, [], pools=pools), None).render(TEXT).decode()
    found = {
        (sample.name, *sorted(sample.labels.values())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name.startswith("servo_pool_")
    }
    assert found["servo_pool_tasks_total", "a", "done"] == 1
    assert found["servo_pool_tasks_total", "b", "failed"] == 0
    assert found["servo_pool_task_duration_seconds_count", "a"] == 1
    assert found["servo_pool_processes", "b", "idle"] == 1
    assert found["servo_pool_queue_length", "a"] == 0
    assert found["servo_pool_queue_limit", "a"] == 9
    listener.close()
    table.close()
