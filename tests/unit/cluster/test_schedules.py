"""The times of `cluster.every` and `cluster.cron`."""

from __future__ import annotations

import builtins
import sys
from collections.abc import Iterator
from datetime import datetime, timezone
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from servo import cluster
from servo.cluster import schedules
from servo.cluster.schedules import CronJob, IntervalJob, forget_jobs, jobs

NS = 1_000_000_000
BERLIN = ZoneInfo("Europe/Berlin")


@pytest.fixture(autouse=True)
def no_jobs() -> Iterator[None]:
    forget_jobs()
    yield
    forget_jobs()


def work() -> None:
    """The function of the jobs here."""


# --- every ----------------------------------------------------------------------------------------


def test_every_registers_a_job_and_returns_the_function() -> None:
    assert cluster.every(60)(work) is work
    (job,) = jobs()
    assert isinstance(job, IntervalJob)
    assert job.name.endswith("test_schedules.work")
    assert job.function is work
    assert job.after(100) == 100 + 60 * NS


def test_missed_intervals_count_as_one_and_the_rhythm_stays() -> None:
    job = IntervalJob("x", work, 10)
    assert job.covered(5 * NS, 15 * NS) == 15 * NS
    assert job.covered(5 * NS, 47 * NS) == 45 * NS
    assert job.now() > 0


@pytest.mark.parametrize("seconds", [0, -1, 0.05, float("nan"), float("inf")])
def test_wrong_intervals(seconds: float) -> None:
    with pytest.raises(ValueError, match=r"must be 0\.1 s or more"):
        cluster.every(seconds)


@pytest.mark.parametrize("seconds", ["10", True, None, work])
def test_intervals_that_are_no_numbers(seconds: Any) -> None:
    with pytest.raises(TypeError, match="must be a number of seconds"):
        cluster.every(seconds)


# --- names ----------------------------------------------------------------------------------------


def test_two_functions_of_one_name() -> None:
    cluster.every(1, name="x")(work)
    cluster.every(2, name="x")(work)  # the same function: its module was imported again
    assert len(jobs()) == 1
    with pytest.raises(ValueError, match="two jobs have the name 'x'"):
        cluster.every(1, name="x")(lambda: None)


def test_wrong_names() -> None:
    with pytest.raises(ValueError, match="1 to 150 bytes: 'ä"):
        cluster.every(1, name="ä" * 76)(work)
    with pytest.raises(TypeError, match="must be text, not 3"):
        cluster.every(1, name=3)(work)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="must be a function, not 5"):
        cluster.every(1)(5)  # type: ignore[type-var]


def test_each_job_has_locks_of_its_own() -> None:
    places = set()
    for number in range(1000):
        job = IntervalJob(f"job {number}", work, 1)
        places |= {job.claim_place, job.run_place}
    assert len(places) == 2000
    assert min(places) >= 1 << 61
    assert max(places) < 1 << 62


# --- cron -----------------------------------------------------------------------------------------


def test_without_cronsim_the_error_names_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cronsim", None)
    with pytest.raises(
        cluster.ClusterError, match=r"needs cronsim: pip install 'servo-server\[cron\]'"
    ):
        cluster.cron("0 3 * * *")(work)
    assert not jobs()


def ns(*at: int, zone: Any = BERLIN, fold: int = 0) -> int:
    return int(datetime(*at, tzinfo=zone, fold=fold).timestamp()) * NS  # type: ignore[misc,arg-type]


def times(expression: str, start: int, count: int) -> list[str]:
    """When a job is due after a moment, in local time."""
    job = CronJob("x", work, expression, BERLIN)
    start_at = [start]
    job.now = lambda: start_at[0]  # type: ignore[method-assign]
    found = []
    last = start
    for _ in range(count):
        due = job.after(last)
        assert due is not None
        found.append(f"{datetime.fromtimestamp(due // NS, BERLIN):%m-%d %H:%M%z}")
        last = start_at[0] = job.covered(last, due)
    return found


class TestCron:
    @pytest.fixture(autouse=True)
    def cronsim(self) -> None:
        pytest.importorskip("cronsim", reason="the extra [cron] is not installed")

    def test_a_day_of_23_hours(self) -> None:
        """On 2026-03-29 in Berlin, 02:00 to 03:00 does not exist."""
        assert times("0 3 * * *", ns(2026, 3, 28, 3), 2) == ["03-29 03:00+0200", "03-30 03:00+0200"]
        assert times("30 2 * * *", ns(2026, 3, 28, 3), 2) == [
            "03-29 03:00+0200",
            "03-30 02:30+0200",
        ]
        assert times("0 * * * *", ns(2026, 3, 29, 0), 3) == [
            "03-29 01:00+0100",
            "03-29 03:00+0200",
            "03-29 04:00+0200",
        ]

    def test_a_day_of_25_hours(self) -> None:
        """On 2026-10-25 in Berlin, 02:00 to 03:00 comes twice: a job at 02:30 runs once."""
        assert times("30 2 * * *", ns(2026, 10, 24, 3), 2) == [
            "10-25 02:30+0200",
            "10-26 02:30+0100",
        ]
        assert times("0 * * * *", ns(2026, 10, 25, 1), 3) == [
            "10-25 02:00+0200",
            "10-25 02:00+0100",
            "10-25 03:00+0100",
        ]

    def test_shortcuts(self) -> None:
        cluster.cron("@Daily", tz="UTC")(work)
        (job,) = jobs()
        assert job.after(ns(2026, 5, 1, 12, zone=timezone.utc)) == ns(2026, 5, 2, zone=timezone.utc)

    @pytest.mark.parametrize("expression", ["", "* * * *", "61 * * * *", "x", "0 0 30 2 *"])
    def test_wrong_expressions(self, expression: str) -> None:
        with pytest.raises(ValueError, match=r"no cron expression|never due"):
            cluster.cron(expression)(work)

    def test_missed_times_count_as_one(self) -> None:
        job = CronJob("x", work, "0 3 * * *", BERLIN)
        assert job.covered(1, 50) == 50

    def test_a_clock_that_was_set_back_by_days(self, monkeypatch: pytest.MonkeyPatch) -> None:
        job = CronJob("x", work, "0 3 * * *", BERLIN)
        now = ns(2026, 5, 1, 12)
        monkeypatch.setattr(job, "now", lambda: now)
        assert job.after(ns(2026, 5, 9, 3)) == ns(2026, 5, 2, 3)
        assert job.after(ns(2026, 5, 1, 13)) == ns(2026, 5, 2, 3)

    def test_zones(self, monkeypatch: pytest.MonkeyPatch) -> None:
        noon = ns(2026, 1, 1, 12, zone=timezone.utc)
        for tz in ("Asia/Tokyo", ZoneInfo("Asia/Tokyo")):
            forget_jobs()
            cluster.cron("0 0 * * *", tz=tz)(work)
            assert jobs()[0].after(noon) == ns(2026, 1, 1, 15, zone=timezone.utc)
        forget_jobs()
        monkeypatch.setenv("TZ", ":Asia/Tokyo")
        cluster.cron("0 0 * * *")(work)
        assert jobs()[0].after(noon) == ns(2026, 1, 1, 15, zone=timezone.utc)


def test_an_expression_that_is_no_text() -> None:
    with pytest.raises(TypeError, match="must be text, not 5"):
        cluster.cron(5)  # type: ignore[arg-type]


def test_an_unknown_zone() -> None:
    with pytest.raises(ValueError, match="'Europe/Nowhere' is not known"):
        cluster.cron("0 0 * * *", tz="Europe/Nowhere")


def test_a_system_without_a_zone_has_utc(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_args: object) -> None:
        raise FileNotFoundError

    monkeypatch.delenv("TZ", raising=False)
    monkeypatch.setattr(builtins, "open", missing)
    assert schedules._zone(None) is timezone.utc
