"""gunicorn's statsd metrics, from the differences between two snapshots."""

from __future__ import annotations

import re
import socket

import pytest
from hypothesis import given
from hypothesis import strategies as st

from servo.metrics import statsd
from servo.metrics.arbiter_facts import Facts
from servo.metrics.families import ListenerInfo, Reader
from servo.metrics.statsd import StatsdClient, datagrams, durations
from servo.shared_memory.row_layout import (
    LATENCY_BOUNDS_S,
    LATENCY_BUCKETS,
    LATENCY_SUM_NS,
    LOG_ERROR,
    count_request,
)
from servo.shared_memory.scoreboard import Scoreboard


@pytest.fixture
def table():
    table = Scoreboard(4)
    yield table
    table.close()


@pytest.fixture
def reader(table):
    return Reader(table, Facts(table.arbiter_words, ["asked"]), [ListenerInfo("l", ("::1", 1))])


@pytest.fixture
def server():
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        sock.settimeout(10)
        yield sock


def serve(row: memoryview, status: int, microseconds: int) -> None:
    count_request(row, "GET", status, microseconds * 1000)
    row[LATENCY_SUM_NS] += microseconds * 1000


def test_names_and_forms_are_gunicorns(table, reader, server):
    client = StatsdClient(
        f"127.0.0.1:{server.getsockname()[1]}", "my.app..", "env:test,a", backlog=True
    )
    row = table.row(table.allocate(1, 1, 1))
    client.send_changes(reader)
    assert server.recv(2000).decode().split("\n") == [
        "my.app.gunicorn.workers:1|g|#env:test,a",
        "my.app.gunicorn.backlog:0|g|#env:test,a",
    ]
    for status in (200, 200, 404, 599):
        serve(row, status, 5000)
    row[LOG_ERROR] += 2
    client.send_changes(reader)
    assert server.recv(2000).decode().replace("|#env:test,a", "").split("\n") == [
        "my.app.gunicorn.workers:1|g",
        "my.app.gunicorn.backlog:0|g",
        "my.app.gunicorn.requests:4|c",
        "my.app.gunicorn.request.status.200:2|c",
        "my.app.gunicorn.request.status.404:1|c",
        "my.app.gunicorn.request.status.5xx:1|c",
        "my.app.gunicorn.request.duration:5|ms|@0.25",
        "my.app.gunicorn.log.error:2|c",
    ]
    client.close()


def test_a_dead_workers_requests_are_sent_once(table, reader, server):
    client = StatsdClient(f"127.0.0.1:{server.getsockname()[1]}", "", "")
    client.send_changes(reader)
    server.recv(2000)
    index = table.allocate(1, 1, 1)
    serve(table.row(index), 200, 1)
    table.release(index)
    for expected in ("gunicorn.requests:1|c", None):
        client.send_changes(reader)
        lines = server.recv(2000).decode().split("\n")
        assert lines[0] == "gunicorn.workers:0|g"
        assert (expected in lines) == (len(lines) > 1) == (expected is not None)
    client.close()


@given(st.lists(st.integers(0, 1000), min_size=LATENCY_BUCKETS, max_size=LATENCY_BUCKETS))
def test_durations_have_the_right_weight_and_lie_in_their_buckets(grown):
    bounds = [0.0, *LATENCY_BOUNDS_S]
    # Each request took four fifths of its bucket's upper bound.
    typical = [bound * 0.8 for bound in LATENCY_BOUNDS_S[:-1]] + [bounds[-2] * 1.2]
    sum_us = int(sum(n * t for n, t in zip(grown, typical, strict=True)) * 1e6)
    lines = list(durations(grown, sum_us))
    assert len(lines) == sum(n > 0 for n in grown)
    weights, total = [], 0.0
    for line in lines:
        match = re.fullmatch(r"gunicorn\.request\.duration:([\d.e+-]+)\|ms(?:\|@(.+))?", line)
        assert match
        seconds, weight = float(match[1]) / 1000, 1 / float(match[2] or 1)
        place = [n for n, _ in enumerate(grown) if grown[n] > 0][len(weights)]
        assert bounds[place] * 0.9999 <= seconds <= bounds[place + 1] * 1.0001
        weights.append(round(weight))
        total += seconds * weight
    assert weights == [n for n in grown if n > 0]
    if sum_us > 1000:
        assert total == pytest.approx(sum_us / 1e6, rel=0.25)


def test_one_bucket_has_the_exact_mean():
    grown = [0] * LATENCY_BUCKETS
    grown[3] = 4
    assert list(durations(grown, 4 * 300)) == ["gunicorn.request.duration:0.3|ms|@0.25"]
    assert list(durations([0] * LATENCY_BUCKETS, 0)) == []


def test_datagrams_hold_whole_lines_and_fit():
    lines = [f"gunicorn.request.status.{code}:1|c" for code in range(100, 600)]
    packets = list(datagrams(lines, "p", "tag"))
    assert len(packets) > 2
    assert max(map(len, packets)) <= statsd.DATAGRAM_BYTES
    got = b"\n".join(packets).decode().split("\n")
    assert got == [f"p.{line}|#tag" for line in lines]
    assert list(datagrams([], "p", "")) == []


def test_a_missing_server_is_logged_once_and_found_later(tmp_path, reader, monkeypatch):
    said = []
    monkeypatch.setattr(statsd.log, "warning", lambda text, *args: said.append(text % args))
    path = tmp_path / "statsd.sock"
    client = StatsdClient(f"unix://{path}", "", "")
    for _ in range(3):
        client.send_changes(reader)
    assert len(said) == 1
    assert str(path) in said[0]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as server:
        server.bind(str(path))
        client.send_changes(reader)
        assert server.recv(2000) == b"gunicorn.workers:0|g"
    client.close()


def test_an_unknown_host_is_not_looked_up_each_second(reader, monkeypatch):
    asked = []

    def unknown(host, *_, **__):
        asked.append(host)
        raise socket.gaierror("unknown")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    now = [0.0]
    client = StatsdClient("nowhere.invalid:1", "", "", clock=lambda: now[0])
    for _ in range(5):
        client.send_changes(reader)
    assert len(asked) == 1
    now[0] = statsd.RETRY_S
    client.send_changes(reader)
    assert len(asked) == 2
