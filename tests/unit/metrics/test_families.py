"""Metrics and status from a scoreboard, read back by prometheus-client's own parser."""

from __future__ import annotations

import json
import os

import pytest
from prometheus_client.openmetrics.parser import (
    text_string_to_metric_families as parse_openmetrics,
)
from prometheus_client.parser import text_string_to_metric_families as parse_text

from servo.metrics import arbiter_facts as facts_module
from servo.metrics import families as families_module
from servo.metrics import procfs
from servo.metrics.arbiter_facts import Facts
from servo.metrics.families import ListenerInfo, Reader, families, status, why_not_ready
from servo.metrics.prometheus import OPENMETRICS, TEXT, Exposition
from servo.shared_memory import row_layout
from servo.shared_memory.row_layout import count_request, count_response
from servo.shared_memory.scoreboard import Scoreboard


@pytest.fixture
def table():
    table = Scoreboard(6)
    yield table
    table.close()


@pytest.fixture
def facts(table):
    facts = Facts(table.arbiter_words, ["asked", "crashed"])
    facts.begin(os.getpid())
    facts.publish(facts_module.SERVING, 1, (2, 2, 2), False)
    return facts


@pytest.fixture
def reader(table, facts):
    return Reader(table, facts, [ListenerInfo("http://x", ("127.0.0.1", 1))])


def worker(table: Scoreboard, slot: int = 1, state: int = row_layout.STATE_READY) -> memoryview:
    row = table.row(table.allocate(slot, slot, 1, row_layout.now_ns()))
    row[row_layout.STATE] = state
    row[row_layout.PID] = os.getpid()
    return row


Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]


def scrape(reader: Reader, content_type: str = TEXT) -> Samples:
    text = Exposition(reader, None).render(content_type).decode()
    parse = parse_openmetrics if content_type == OPENMETRICS else parse_text
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in parse(text)
        for sample in family.samples
    }


@pytest.mark.parametrize("content_type", [TEXT, OPENMETRICS])
def test_requests_latency_and_bytes(table, reader, content_type):
    row = worker(table)
    for method, code, ms in [("GET", 200, 1), ("GET", 200, 1), ("POST", 404, 30), ("BREW", 599, 1)]:
        count_request(row, method, code, ms * 1_000_000)
        row[row_layout.LATENCY_SUM_NS] += ms * 1_000_000
    row[row_layout.BYTES_IN], row[row_layout.BYTES_OUT], row[row_layout.IN_FLIGHT] = 5, 6, 7
    row[row_layout.CONNECTIONS], row[row_layout.ACCEPTED], row[row_layout.SHED] = 8, 9, 10
    found = scrape(reader, content_type)

    def requests(method: str, status: str) -> float:
        return found["servo_requests_total", (("method", method), ("status", status))]

    assert requests("GET", "2xx") == 2
    assert requests("POST", "4xx") == requests("other", "5xx") == 1
    assert found["servo_responses_total", (("code", "404"),)] == 1
    assert found["servo_responses_total", (("code", "other 5xx"),)] == 1
    assert found["servo_request_duration_seconds_count", ()] == 4
    assert found["servo_request_duration_seconds_sum", ()] == pytest.approx(0.033)
    buckets = [
        (float(dict(labels)["le"]), value)
        for (name, labels), value in found.items()
        if name == "servo_request_duration_seconds_bucket"
    ]
    assert [bound for bound, _ in buckets] == list(row_layout.LATENCY_BOUNDS_S)
    assert [value for _, value in buckets] == sorted(value for _, value in buckets)
    assert {value for bound, value in buckets if 0.002 < bound < 0.02} == {3}
    for name, value in {
        "servo_request_body_bytes_total": 5,
        "servo_response_body_bytes_total": 6,
        "servo_requests_in_flight": 7,
        "servo_connections": 8,
        "servo_connections_accepted_total": 9,
        "servo_requests_shed_total": 10,
    }.items():
        assert found[name, ()] == value


def test_workers_and_the_arbiters_own_facts(table, facts, reader):
    worker(table, 1)[row_layout.LAG_US] = 2000
    worker(table, 1, row_layout.STATE_DRAINING)[row_layout.LAG_US] = 5000
    worker(table, 2, row_layout.STATE_BOOTING)
    facts.publish(facts_module.SERVING, 7, (3, 2, 6), True)
    for event in [("spawned",), ("exited", "crashed"), ("reload_finished",)]:
        facts.count_event(*event)
    found = scrape(reader)
    states = {
        dict(labels)["state"]: value
        for (name, labels), value in found.items()
        if name == "servo_workers"
    }
    assert states == {"spawned": 0, "booting": 1, "ready": 1, "draining": 1}
    assert found["servo_worker_loop_lag_seconds", (("slot", "1"),)] == 0.005
    assert found["servo_worker_exits_total", (("reason", "crashed"),)] == 1
    assert found["servo_worker_exits_total", (("reason", "asked"),)] == 0
    assert found["servo_reloads_total", (("outcome", "finished"),)] == 1
    assert found["servo_last_reload_success", ()] == 1
    assert (found["servo_generation", ()], found["servo_workers_target", ()]) == (7, 3)
    assert (found["servo_workers_min", ()], found["servo_workers_max", ()]) == (2, 6)
    assert found["servo_ready", ()] == found["servo_live", ()] == 1
    assert found["servo_cpu_seconds_total", (("mode", "user"),)] > 0
    assert found["servo_resident_memory_bytes", (("process", "worker 2"),)] > 1 << 20


def test_every_metric_has_a_name_a_kind_and_a_help_text(table, reader):
    worker(table)
    seen = list(families(reader.read()))
    names = [family.name for family in seen]
    assert len(names) == len(set(names)) > 25
    for family in seen:
        assert family.name.startswith("servo_")
        assert family.help.endswith(".") or family.help.endswith(")")
        assert family.kind in ("counter", "gauge", "info", "histogram")
        for values, _ in family.samples:
            assert len(values) == len(family.labels)
        # prometheus-client adds `_total` itself.
        assert not family.name.endswith("_total")


@pytest.mark.parametrize("state", range(len(facts_module.SERVER_STATES)))
def test_only_a_serving_server_is_ready(table, facts, reader, state):
    facts.publish(state, 1, (2, 2, 2), False)
    worker(table, 1, row_layout.STATE_BOOTING)
    assert reader.read().not_ready
    worker(table, 2)
    assert bool(reader.read().not_ready) == (state != facts_module.SERVING)


def test_a_silent_arbiter_is_neither_live_nor_ready(table, facts, reader):
    worker(table)
    seen = reader.read()
    assert seen.live
    silent = seen.facts._replace(heartbeat_age_s=families_module.ARBITER_SILENT_S)
    assert "10 s" in why_not_ready(silent, seen.rows)


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("servo_request_queue_seconds", row_layout.count_queue_time),
        ("servo_thread_wait_seconds", row_layout.count_thread_wait),
    ],
)
def test_waits_are_counted_beyond_the_end_of_a_worker(table, reader, name, count):
    row = worker(table)
    for ms in (1, 1, 300):
        count(row, ms * 1_000_000)
    before = scrape(reader)
    row.release()
    table.release(table.snapshot()[0].row_index)
    for found in (before, scrape(reader)):
        assert found[f"{name}_count", ()] == 3
        assert found[f"{name}_sum", ()] == pytest.approx(0.302)
        buckets = {
            float(dict(labels)["le"]): value
            for (sample, labels), value in found.items()
            if sample == f"{name}_bucket"
        }
        assert list(buckets) == list(row_layout.LATENCY_BOUNDS_S)
        assert {value for bound, value in buckets.items() if 0.002 < bound < 0.2} == {2}
        assert buckets[float("inf")] == 3


def test_threads(table, reader):
    row = worker(table)
    assert "servo_threads" not in {name for name, _ in scrape(reader)}
    assert status(reader.read())["threads"] is None
    row[row_layout.THREADS], row[row_layout.THREAD_REQUESTS] = 4, 6
    found = scrape(reader)
    assert found["servo_threads", (("state", "busy"),)] == 4
    assert found["servo_threads", (("state", "idle"),)] == 0
    assert found["servo_requests_waiting_for_thread", ()] == 2
    expected = {"busy": 4, "idle": 0, "waiting": 2}
    shown = status(reader.read())
    assert shown["threads"] == shown["workers"][0]["threads"] == expected


def test_a_blocked_worker(table, reader):
    row = worker(table, 1)
    row[row_layout.IN_FLIGHT] = 1
    row[row_layout.BEAT_NS] = row_layout.now_ns() - 3_000_000_000
    worker(table, 2)[row_layout.BEAT_NS] = row_layout.now_ns()
    found = scrape(reader)
    assert 3 <= found["servo_worker_blocked_seconds", (("slot", "1"),)] < 100
    assert 3 <= found["servo_worker_loop_lag_seconds", (("slot", "1"),)] < 100
    assert found["servo_worker_blocked_seconds", (("slot", "2"),)] == 0
    blocked, other = status(reader.read())["workers"]
    assert blocked["blocked_s"] >= 3
    assert blocked["lag_s"] >= 3
    assert other["blocked_s"] == 0


def test_status_is_json_with_every_worker(table, facts, reader):
    row = worker(table, 3)
    row[row_layout.OLDEST_START_NS] = row_layout.now_ns() - 2_000_000_000
    count_response(row, "GET", 204)
    text = json.dumps(status(reader.read()))
    value = json.loads(text)
    assert value["state"] == "serving"
    assert value["ready"] is True
    assert value["requests"]["total"] == value["requests"]["by_class"]["2xx"] == 1
    (only,) = value["workers"]
    assert (only["slot"], only["pid"], only["state"]) == (3, os.getpid(), "ready")
    assert only["oldest_request_s"] >= 2
    assert value["reloads"]["last_ended_at"] is None


def test_cpu_time_never_goes_back(table, facts, monkeypatch):
    now = [0.0]
    reader = Reader(table, facts, [], clock=lambda: now[0])
    told = iter([procfs.CPU(5, 1), procfs.CPU(4, 2), None, procfs.CPU(6, 2)])
    monkeypatch.setattr(procfs, "cpu_with_children", lambda _pid: next(told))
    seen = []
    for _ in range(4):
        seen.append(reader.read().processes.cpu)
        now[0] += families_module.PROCESS_AGE_S / 2
        assert reader.read().processes.cpu == seen[-1]  # not read again so soon
        now[0] += families_module.PROCESS_AGE_S / 2
    assert seen == [(5, 1), (5, 2), (5, 2), (6, 2)]


def test_reading_processes_takes_at_most_a_tenth_of_the_time(table, facts, monkeypatch):
    now = [0.0]
    reader = Reader(table, facts, [], clock=lambda: now[0])
    looks: list[float] = []

    def slow(_pid: int) -> None:
        looks.append(now[0])
        now[0] += 2.0

    monkeypatch.setattr(procfs, "cpu_with_children", slow)
    monkeypatch.setattr(procfs, "children_of", lambda _pid: [])
    for _ in range(50):
        reader.read()
        reader.read(processes=False, queues=False)
        now[0] += 1.0
    assert looks == [0.0, 20.0, 40.0]


def test_drops_never_go_back_when_a_listener_is_closed():
    growing = families_module._IncreaseSum()
    for value, total in ((3, 3), (5, 5), (1, 5), (2, 6), (0, 6), (4, 10)):
        growing.update(value)
        assert growing.total == total
