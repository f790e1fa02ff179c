"""The use of CPU and memory between two looks."""

from __future__ import annotations

import os
from typing import Any

import pytest

from servo.metrics import usage as usage_module
from servo.metrics.procfs import CPU
from servo.metrics.usage import Usage, next_reading_at


def test_the_usage_is_that_since_the_last_look(monkeypatch: pytest.MonkeyPatch) -> None:
    used = {11: CPU(1.0, 2.0), 12: None}
    server = [CPU(9.0, 0.0)]
    monkeypatch.setattr(usage_module, "cpu_of", lambda pid: used[pid])
    monkeypatch.setattr(usage_module, "cpu_without_children", lambda pid: server[-1])
    monkeypatch.setattr(usage_module, "resident_of", lambda pid: pid * 1000)
    usage = Usage()

    shares: list[Any] = []

    def look(now: float) -> list[tuple[float | None, int | None]]:
        rows: list[dict[str, Any]] = [{"pid": 11}, {"pid": 12}, {"pid": None}]
        result = {"server_pid": 7, "workers": rows}
        usage.add(result, 7, now)
        assert result["rss_bytes"] == 7000
        shares.append(result["cpu_percent"])
        return [(row["cpu_percent"], row["rss_bytes"]) for row in rows]

    assert look(1.0) == [(None, 11_000), (None, None), (None, None)]
    used[11] = CPU(1.5, 2.5)
    server.append(CPU(9.0, 0.2))
    assert look(3.0)[0] == (pytest.approx(50.0), 11_000)
    used[11] = CPU(0.0, 0.0)  # another process with this pid
    assert look(4.0)[0] == (0.0, 11_000)
    assert shares == [None, pytest.approx(10.0), 0.0]


def test_no_usage_in_another_pid_namespace() -> None:
    rows: list[dict[str, Any]] = [{"pid": os.getpid()}]
    result = {"server_pid": 1, "workers": rows}
    Usage().add(result, 4711, 1.0)
    assert result["cpu_percent"] is result["rss_bytes"] is None
    assert rows == [{"pid": os.getpid(), "cpu_percent": None, "rss_bytes": None}]


@pytest.mark.parametrize(
    ("now", "expected"),
    [
        (10.0, 11.0),
        (10.4, 11.0),  # the pace stays one a second
        (10.9, 11.4),  # not after 0.1 s
        (13.0, 13.5),
    ],
)
def test_readings_keep_their_pace_but_are_never_close(now: float, expected: float) -> None:
    assert next_reading_at(10.0, now, 1.0) == pytest.approx(expected)
