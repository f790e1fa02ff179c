"""The arbiter's own fields in shared memory, for other processes."""

from __future__ import annotations

import json
import os

import pytest

from servo.metrics import arbiter_facts
from servo.metrics.arbiter_facts import Facts
from servo.shared_memory.row_layout import count_response
from servo.shared_memory.scoreboard import Scoreboard

REASONS = ("asked", "replaced", "crashed")


@pytest.fixture
def table():
    table = Scoreboard(2)
    yield table
    table.close()


def test_another_process_reads_what_was_written(table):
    mine = Facts(table.arbiter_words, REASONS)
    mine.begin(4711)
    mine.publish(arbiter_facts.SERVING, generation=3, workers=(8, 4, 16), reloading=True)
    other = Scoreboard.attach(os.dup(table.fd))
    seen = Facts(other.arbiter_words, REASONS).read()
    assert (seen.pid, seen.state, seen.generation, seen.target) == (4711, "serving", 3, 8)
    assert (seen.least, seen.most) == (4, 16)
    assert seen.reloading
    assert 0 <= seen.heartbeat_age_s < 60
    assert seen.started_at > 1.7e9
    other.close()


def test_lifecycle_events_are_counted(table):
    mine = Facts(table.arbiter_words, REASONS)
    mine.begin(1)
    assert mine.read().last_reload_at == 0
    for name, reason in [
        ("spawned", ""),
        ("spawned", ""),
        ("ready", ""),
        ("draining", "replaced"),
        ("exited", "replaced"),
        ("exited", "crashed"),
        ("exited", "crashed"),
        ("reload_started", "SIGHUP"),
        ("reload_finished", "SIGHUP"),
        ("reload_started", "SIGHUP"),
        ("reload_rolled_back", "SIGHUP"),
        ("refork_started", "worker 1 has served 10 requests"),
        ("refork_rolled_back", "its threads hang"),
        ("refork_finished", "worker 1 has served 10 requests"),
        ("refork_finished", "worker 1 has served 10 requests"),
        ("scaled", "SIGTTIN"),
        ("stopping", "SIGTERM"),
    ]:
        mine.count_event(name, reason)
    seen = mine.read()
    assert seen.spawned == 2
    assert seen.exits == {"asked": 0, "replaced": 1, "crashed": 2}
    assert (seen.reloads_started, seen.reloads_finished, seen.reloads_rolled_back) == (2, 1, 1)
    assert (seen.reforks_finished, seen.reforks_rolled_back) == (2, 1)
    assert seen.last_reload_at > 1.7e9
    assert not seen.last_reload_succeeded


def test_the_arbiters_words_do_not_overlap_the_base(table):
    mine = Facts(table.arbiter_words, REASONS)
    mine.begin(1)
    mine.publish(arbiter_facts.STOPPING, 1, (2, 2, 2), False)
    mine.count_event("exited", "crashed")
    before = mine.read()
    index = table.allocate(1, 1, 1)
    row = table.row(index)
    for word in range(len(row)):
        row[word] = 7
    table.release(index)
    for status in (200, 599):
        count_response(table.row(table.allocate(2, 1, 1)), "GET", status)
    assert mine.read()._replace(heartbeat_age_s=0) == before._replace(heartbeat_age_s=0)


def test_there_is_room_for_every_reason_and_log_level():
    last = arbiter_facts._EXITS_0 + arbiter_facts._MAX_REASONS
    assert arbiter_facts.LOG_0 + 4 <= arbiter_facts._EXITS_0
    assert last <= len(Scoreboard(1).arbiter_words)


def test_the_next_program_goes_on_counting(table):
    mine = Facts(table.arbiter_words, REASONS)
    mine.begin(1)
    mine.count_event("spawned")
    mine.count_event("reload_started")
    mine.count_event("exited", "crashed")
    before = mine.read()
    # Another version knows other reasons, in another order.
    after = Facts(table.arbiter_words, ("new", *reversed(REASONS)))
    after.restore(1, json.loads(json.dumps(mine.to_state())))
    after.count_event("exited", "crashed")
    after.count_event("reload_finished")
    seen = after.read()
    assert (seen.started_at, seen.spawned) == (before.started_at, before.spawned)
    assert (seen.reloads_started, seen.reloads_finished) == (1, 1)
    assert seen.exits == {"new": 0, "crashed": 2, "replaced": 0, "asked": 0}
