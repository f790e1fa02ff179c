"""The metrics process: its pages, and its end."""

from __future__ import annotations

import os
import threading

import pytest

from servo.http.events import Request
from servo.metrics import arbiter_facts as facts_module
from servo.metrics import exporter
from servo.metrics.arbiter_facts import Facts
from servo.metrics.exporter import ExporterSetup, Pages, export
from servo.metrics.families import Reader
from servo.metrics.http_server import Answer
from servo.shared_memory import row_layout
from servo.shared_memory.row_layout import count_response
from servo.shared_memory.scoreboard import Scoreboard

# Linux gives no process a higher number.
NO_PID = 1 << 22


@pytest.fixture
def table():
    table = Scoreboard(4)
    yield table
    table.close()


@pytest.fixture
def reader(table):
    facts = Facts(table.arbiter_words, ["asked"])
    facts.begin(os.getpid())
    facts.publish(facts_module.SERVING, 1, (1, 1, 1), False)
    return Reader(table, facts, [])


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def request(target: bytes, method: str = "GET", **fields: str) -> Request:
    headers = [(name.encode(), value.encode()) for name, value in fields.items()]
    path, _, query = target.partition(b"?")
    return Request(method, target, path, query, "1.1", headers, True)


# --- pages --------------------------------------------------------------------------------------


def test_probes(table, reader):
    pages = Pages(reader, None)
    assert pages.answer(request(b"/-/live")).status == 200
    assert pages.answer(request(b"/-/ready")) == Answer(
        503, "text/plain; charset=utf-8", b"no worker is ready\n"
    )
    table.row(table.allocate(1, 1, 1))[row_layout.STATE] = row_layout.STATE_READY
    assert pages.answer(request(b"/-/ready?from=kubelet")).status == 200
    reader.facts.publish(facts_module.LEAVING, 1, (1, 1, 1), False)
    answer = pages.answer(request(b"/-/ready"))
    assert (answer.status, answer.body) == (503, b"the server is leaving\n")
    assert pages.answer(request(b"/-/live")).status == 200


def test_other_targets_and_methods(reader):
    pages = Pages(reader, None)
    unknown = pages.answer(request(b"/etc/passwd"))
    assert unknown.status == 404
    assert b"/-/ready" in unknown.body
    assert pages.answer(request(b"/metrics", "POST")).status == 405
    assert pages.answer(request(b"/status.json", "HEAD")).status == 200


def test_scrapes_in_a_row_are_rendered_once(table, reader):
    clock = Clock()
    pages = Pages(reader, None, clock)
    row = table.row(table.allocate(1, 1, 1))
    first = pages.answer(request(b"/metrics"))
    count_response(row, "GET", 200)
    assert pages.answer(request(b"/metrics")) is first
    other = pages.answer(request(b"/metrics", Accept="application/openmetrics-text"))
    assert other.body.endswith(b"# EOF\n")
    clock.now += exporter.CACHE_S
    assert b'servo_requests_total{method="GET",status="2xx"} 1.0' in (
        pages.answer(request(b"/metrics")).body
    )


def test_an_error_in_a_page_does_not_stop_the_probes(reader, monkeypatch):
    pages = Pages(reader, None)
    monkeypatch.setattr(reader, "read", lambda: 1 / 0)
    assert pages.answer(request(b"/metrics")).status == 500
    assert pages.answer(request(b"/-/live")).status == 200


def test_metrics_of_live_processes_are_removed_with_a_worker(table, reader, tmp_path):
    first, second, unseen, own = NO_PID + 1, NO_PID + 2, NO_PID + 3, os.getpid()

    def begin(*pids: int) -> None:
        for pid in pids:
            for kind in ("gauge_livesum", "gauge_all", "counter"):
                (tmp_path / f"{kind}_{pid}.db").touch()

    def left() -> set[int]:
        names = [path.stem for path in tmp_path.iterdir() if "live" in path.name]
        return {int(name.rpartition("_")[2]) for name in names}

    pages = Pages(reader, str(tmp_path))
    begin(first, second, own)
    for serial, pid in ((1, first), (2, second)):
        table.row(table.allocate(serial, serial, 1))[row_layout.PID] = pid
    begin(unseen)  # it has started and ended between two ticks
    pages.tick()
    assert left() == {first, second, own}  # `own` is not a worker, but alive
    table.release(0)
    pages.tick()
    assert left() == {second, own}
    assert len([*tmp_path.iterdir()]) == 10  # counters and other files stay


# --- the process --------------------------------------------------------------------------------


def test_the_process_ends_when_it_is_told_to(reader):
    here, there = os.pipe()
    codes: list[int] = []
    setup = ExporterSetup([], reader, here, os.getpid())
    thread = threading.Thread(target=lambda: codes.append(export(setup)))
    thread.start()
    os.close(there)
    thread.join(30)
    assert codes == [0]
    os.close(here)
