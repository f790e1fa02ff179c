"""The arbiter's numbers in shared memory."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator

import pytest

from servo.arbiter.core import actions, events
from servo.arbiter.core.policy import Policy
from servo.arbiter.core.supervisor import Supervisor
from servo.arbiter.facts_writer import REASONS, FactsWriter
from servo.metrics.arbiter_facts import Facts
from servo.shared_memory.scoreboard import Scoreboard


@pytest.fixture
def board() -> Iterator[Scoreboard]:
    found = Scoreboard(2)
    yield found
    found.close()


@pytest.fixture
def writer(board: Scoreboard) -> Iterator[FactsWriter]:
    found = FactsWriter(board)
    yield found
    found.close_in_child()


def reader(board: Scoreboard) -> Facts:
    return Facts(board.arbiter_words, REASONS)


def test_the_state_follows_the_supervisor(board: Scoreboard, writer: FactsWriter) -> None:
    supervisor = Supervisor(Policy(workers=3))
    writer.publish(supervisor)
    facts = reader(board).read()
    assert (facts.pid, facts.state, facts.target) == (os.getpid(), "starting", 3)
    assert (facts.least, facts.most) == (3, 3)
    for event in (events.Started(), events.SignalReceived("SIGTERM")):
        supervisor.handle(event, 1.0)
    writer.publish(supervisor)
    assert reader(board).read().state == "stopping"


def test_the_bounds_of_autoscaling(board: Scoreboard, writer: FactsWriter) -> None:
    writer.publish(Supervisor(Policy(workers=2, max_workers=8)))
    facts = reader(board).read()
    assert (facts.target, facts.least, facts.most) == (2, 2, 8)


def test_lifecycle_events_are_counted(board: Scoreboard, writer: FactsWriter) -> None:
    for name, reason in (("spawned", ""), ("exited", "crashed"), ("reload_started", "SIGHUP")):
        writer.count(actions.RecordLifecycleEvent("info", "text", name=name, reason=reason))
    facts = reader(board).read()
    assert (facts.spawned, facts.exits["crashed"], facts.reloads_started) == (1, 1, 1)


def test_words_that_were_written_over_are_renewed(board: Scoreboard, writer: FactsWriter) -> None:
    before = reader(board).read()
    for word in range(len(board.arbiter_words)):
        board.arbiter_words[word] = 0
    writer.renew()
    assert reader(board).read().started_at == before.started_at


def test_log_entries_are_counted_until_a_child_stops_that(
    board: Scoreboard, writer: FactsWriter
) -> None:
    log = logging.getLogger("servo.error")
    log.error("one")
    counted = sum(reader(board).read().log)
    assert counted == 1
    writer.close_in_child()
    log.error("two")
    assert sum(reader(board).read().log) == counted
