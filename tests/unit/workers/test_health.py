"""The times of health checks, and the number of failures that counts."""

from __future__ import annotations

import pytest

from servo.errors import BootError
from servo.settings.sources import Settings
from servo.workers.health import HealthCheck, Outcome

SECOND = 10**9


class Checked:
    """A worker with a health check, and a clock."""

    def __init__(self, **values: object) -> None:
        self.replaced: list[str] = []
        self.started = 0
        settings = {
            "health_check": "/healthz",
            "health_check_interval": 10.0,
            "health_check_timeout": 5.0,
            "health_check_failures": 2,
        }
        self.health = HealthCheck(Settings({**settings, **values}, {}), self.replaced.append)
        self.health.start = self.start
        self.now = 1000
        self.outcome: Outcome | None = Outcome()

    def start(self) -> None:
        self.started += 1
        if self.outcome is not None:
            self.health.done(self.outcome)

    def run(self, seconds: int) -> None:
        for _ in range(seconds + 1):
            self.health.sweep(self.now * SECOND)
            self.now += 1


def test_a_check_runs_at_each_interval() -> None:
    checked = Checked()
    checked.run(35)
    assert checked.started == 3
    assert checked.replaced == []


def test_a_worker_is_replaced_after_failures_in_a_row(caplog: pytest.LogCaptureFixture) -> None:
    checked = Checked()
    checked.outcome = Outcome("answered 503")
    checked.run(15)
    assert checked.replaced == []
    checked.run(60)
    assert checked.replaced == ["/healthz: answered 503, 2 times in a row"]
    assert caplog.messages[0] == "Health check /healthz: answered 503 (failure 1 of 2)"


def test_a_success_ends_the_count(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "servo.error")
    checked = Checked()
    for problem in ("answered 503", "", "answered 503", ""):
        checked.outcome = Outcome(problem)
        checked.run(10)
    assert checked.replaced == []
    assert caplog.messages.count("Health check /healthz: passed again") == 2


def test_a_check_without_an_answer_fails_once(caplog: pytest.LogCaptureFixture) -> None:
    checked = Checked()
    checked.outcome = None
    checked.run(16)
    assert checked.started == 1
    assert checked.health.is_running
    assert caplog.messages == ["Health check /healthz: no answer within 5 s (failure 1 of 2)"]
    # The answer comes late: it counts no more, and the next check can start.
    checked.health.done(Outcome("answered 500"))
    checked.outcome = Outcome()
    checked.run(10)
    assert checked.started == 2
    assert checked.replaced == []
    assert not checked.health.is_running


def test_a_check_that_hangs_fails_at_each_interval() -> None:
    checked = Checked()
    checked.outcome = None
    checked.run(25)
    assert checked.started == 1
    assert checked.replaced == ["/healthz: the check before has not ended, 2 times in a row"]


def test_the_first_check_refuses_a_path_that_is_not_served() -> None:
    with pytest.raises(BootError, match=r"health_check: GET /healthz answered 404; name a path"):
        Checked().health.first(Outcome("answered 404", not_served=True))


def test_another_failure_of_the_first_check_counts(caplog: pytest.LogCaptureFixture) -> None:
    checked = Checked(health_check_failures=1)
    checked.health.first(Outcome())
    assert checked.replaced == []
    checked.health.first(Outcome("answered 503"))
    assert checked.replaced == ["/healthz: answered 503"]
