"""Suggestions for misspelt names."""

from __future__ import annotations

from servo.settings.schema import SETTINGS
from servo.settings.suggestions import did_you_mean, nearest


def test_nearest_names() -> None:
    assert nearest("wrokers", list(SETTINGS)) == "workers"
    assert nearest("SERVO_WROKERS", ["SERVO_WORKERS"]) == "SERVO_WORKERS"
    assert did_you_mean("log_level", list(SETTINGS)) == "; did you mean loglevel?"
    assert did_you_mean("zzzzzz", list(SETTINGS)) == ""
