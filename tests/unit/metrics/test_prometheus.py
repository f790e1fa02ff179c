"""Metrics in Prometheus' formats, Servo's own and the application's."""

from __future__ import annotations

import os

import pytest
from prometheus_client.parser import text_string_to_metric_families as parse_text

from servo.metrics import arbiter_facts as facts_module
from servo.metrics.arbiter_facts import Facts
from servo.metrics.families import Reader
from servo.metrics.prometheus import OPENMETRICS, TEXT, Exposition, negotiate
from servo.shared_memory.scoreboard import Scoreboard

# A file of prometheus-client's multiprocess mode whose first entry has an impossible length.
BROKEN = b"\x00\x04\x00\x00\x00\x00\x00\x00" + b"\x20\x00\x00\x00" + b"\xff" * 4096


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


@pytest.mark.parametrize(
    ("accept", "content_type"),
    [
        ("", TEXT),
        ("*/*", TEXT),
        ("text/plain;version=0.0.4;q=0.5", TEXT),
        ("application/openmetrics-text;version=1.0.0,text/plain;q=0.3", OPENMETRICS),
        ("application/openmetrics-text; version=99999\xff", OPENMETRICS),
    ],
)
def test_the_client_chooses_the_format(accept, content_type):
    assert negotiate(accept) == content_type


@pytest.mark.parametrize(("content_type", "end"), [(TEXT, b"\n"), (OPENMETRICS, b"# EOF\n")])
def test_each_format_has_servos_metrics(reader, content_type, end):
    text = Exposition(reader, None).render(content_type)
    assert text.endswith(end)
    assert b"\nservo_workers_target 1.0\n" in text
    assert b"servo_app_metrics_readable" not in text


def write_app_metrics(directory, monkeypatch, *names):
    """Write counters as a process of an application does."""
    from prometheus_client import CollectorRegistry, Counter, values

    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(directory))
    # prometheus-client chooses the class of values when it is imported, by the environment.
    monkeypatch.setattr(
        "prometheus_client.metrics.values.ValueClass", values.MultiProcessValue(lambda: 77)
    )
    for name in names:
        Counter(name, "of the application", registry=CollectorRegistry()).inc(3)


def test_an_applications_metrics_stand_beside_servos(reader, tmp_path, monkeypatch):
    write_app_metrics(tmp_path, monkeypatch, "orders", "servo_workers")
    found = {
        sample.name: sample.value
        for family in parse_text(Exposition(reader, str(tmp_path)).render(TEXT).decode())
        for sample in family.samples
    }
    assert found["orders_total"] == 3
    assert found["servo_app_metrics_readable"] == 1
    # The application can't pass its numbers off as Servo's.
    assert "servo_workers_total" not in found


def test_a_broken_file_costs_only_the_applications_metrics(reader, tmp_path, caplog):
    path = tmp_path / "counter_1.db"
    exposition = Exposition(reader, str(tmp_path))
    for _ in range(2):
        path.write_bytes(BROKEN)
        for _ in range(2):
            body = exposition.render(TEXT)
            assert b"servo_app_metrics_readable 0.0" in body
            assert b"servo_ready" in body
        path.unlink()
        assert b"servo_app_metrics_readable 1.0" in exposition.render(TEXT)
    # Once each time that it begins to fail, not with each scrape.
    assert len(caplog.records) == 2
    assert "Can't read the application's metrics" in caplog.text


def test_only_metrics_of_live_processes_are_forgotten(reader, tmp_path, caplog):
    for name in ("gauge_livesum_7.db", "gauge_livesum_8.db", "gauge_all_7.db", "counter_7.db"):
        (tmp_path / name).touch()
    Exposition(reader, str(tmp_path)).forget(7)
    left = sorted(path.name for path in tmp_path.iterdir())
    assert left == ["counter_7.db", "gauge_all_7.db", "gauge_livesum_8.db"]
    Exposition(reader, str(tmp_path / "missing")).forget(8)
    Exposition(reader, None).forget(8)
    assert caplog.records == []


def test_a_file_that_can_not_be_removed_is_logged(reader, tmp_path, monkeypatch, caplog):
    (tmp_path / "gauge_livesum_7.db").touch()

    def refuse(path):
        raise PermissionError(13, "Permission denied", path)

    monkeypatch.setattr(os, "remove", refuse)
    Exposition(reader, str(tmp_path)).forget(7)
    assert "Can't remove the metrics of the ended process 7: " in caplog.text
