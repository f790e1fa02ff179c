"""The counts in the scoreboard's row, and the line of the access log, for a finished request."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from unit.workers.fakes import GET, SECOND, Clock, make_meter, make_request

from servo.shared_memory import row_layout
from servo.shared_memory.row_layout import BYTES_IN, BYTES_OUT, IN_FLIGHT, LATENCY_SUM_NS


class Lines:
    """An access log that keeps what it is given."""

    def __init__(self) -> None:
        self.lines: list[dict[str, Any]] = []

    def record(self, **values: Any) -> None:
        self.lines.append(values)


def statuses(meter: Any) -> dict[int, int]:
    row = meter.row.tolist()
    counts = row_layout.codes_in(row, row_layout.methods_in(row))
    return {
        code: count for code, count in zip(row_layout.STATUS_CODES, counts, strict=False) if count
    }


def test_requests_in_flight_are_counted(clock: Clock) -> None:
    meter = make_meter()
    first, second = meter.begin(), meter.begin()
    assert meter.row[IN_FLIGHT] == 2
    meter.end(first, make_request(), 200, 0, "")
    assert meter.row[IN_FLIGHT] == 1
    meter.cancel()
    assert meter.row[IN_FLIGHT] == 0
    assert second == clock.ns


def test_only_the_first_of_several_requests_is_a_heartbeat(clock: Clock) -> None:
    meter = make_meter()
    meter.begin()
    first = meter.row[row_layout.BEAT_NS]
    assert first == clock.ns
    clock.advance(1)
    meter.begin()
    assert meter.row[row_layout.BEAT_NS] == first


@pytest.mark.parametrize("status", [200, 404])
def test_time_and_bytes_are_summed(clock: Clock, status: int) -> None:
    meter = make_meter()
    for number in range(1, 4):
        started = meter.begin()
        clock.advance(number)
        assert meter.end(started, make_request(), status, 100 * number, "") == clock.ns
    assert meter.row[LATENCY_SUM_NS] == 6 * SECOND
    assert meter.row[BYTES_OUT] == 600
    assert statuses(meter) == {status: 3}
    assert sum(row_layout.latency_in(meter.row.tolist())) == 3


def test_a_method_without_words_of_its_own_is_counted_too(clock: Clock) -> None:
    meter = make_meter()
    meter.end(meter.begin(), make_request(GET.replace(b"GET", b"PROPFIND")), 200, 0, "")
    assert row_layout.requests_in(meter.row.tolist()) == 1
    assert statuses(meter) == {200: 1}


def test_a_body_counts_whether_it_comes_with_its_head_or_later() -> None:
    meter = make_meter()
    request = make_request(b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 9\r\n\r\nabc")
    started = meter.begin()
    meter.received(6)
    meter.end(started, request, 200, 0, "")
    assert meter.row[BYTES_IN] == 9


def test_the_access_log_gets_what_the_request_was(clock: Clock) -> None:
    log = Lines()
    meter = make_meter(log)
    request = make_request(b"GET /a?b HTTP/1.0\r\nX-A: 1\r\n\r\n")
    started = meter.begin()
    clock.advance(2)
    environ: dict[str, Any] = {}
    meter.end(started, request, 201, 5, "192.0.2.1", [("A", "b")], environ)
    (line,) = log.lines
    assert line == {
        "remote": "192.0.2.1",
        "method": "GET",
        "target": b"/a?b",
        "version": "1.0",
        "status": 201,
        "sent": 5,
        "duration_ns": 2 * SECOND,
        "headers": [(b"x-a", b"1")],
        "response_headers": [("A", "b")],
        "environ": environ,
    }


def test_a_request_that_no_application_has_seen_is_counted_and_logged() -> None:
    log = Lines()
    meter = make_meter(log)
    meter.refused(400, "", b"", "192.0.2.1")
    meter.shed(make_request(), "192.0.2.2")
    assert [(line["status"], line["method"], line["target"]) for line in log.lines] == [
        (400, "-", b"-"),
        (503, "GET", b"/"),
    ]
    assert [line["remote"] for line in log.lines] == ["192.0.2.1", "192.0.2.2"]
    assert statuses(meter) == {400: 1, 503: 1}
    assert meter.row[row_layout.SHED] == 1
    assert meter.row[IN_FLIGHT] == 0


def test_the_worker_is_recycled_once_after_so_many_requests() -> None:
    recycled: list[int] = []
    meter = make_meter(most=2, recycle=lambda: recycled.append(1))
    counts = []
    for _ in range(4):
        meter.end(meter.begin(), make_request(), 200, 0, "")
        counts.append(len(recycled))
    assert counts == [0, 1, 1, 1]
    assert meter.max_requests == 2


def test_refused_requests_do_not_recycle_a_worker() -> None:
    recycled: list[int] = []
    meter = make_meter(most=1, recycle=lambda: recycled.append(1))
    meter.refused(400, "", b"", "")
    assert not recycled


def test_without_a_limit_no_worker_is_recycled() -> None:
    access: Any = SimpleNamespace(record=lambda **_: None)
    meter = make_meter(access, recycle=lambda: pytest.fail("recycled"))
    for _ in range(10):
        meter.end(meter.begin(), make_request(), 500, 0, "")
