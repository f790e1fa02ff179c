"""Suggestions for misspelt names."""

from __future__ import annotations

import pytest

from servo.settings.schema import SETTINGS
from servo.settings.suggestions import ALIKE, did_you_mean, nearest


def test_nearest_names() -> None:
    assert nearest("wrokers", list(SETTINGS)) == "workers"
    assert nearest("SERVO_WROKERS", ["SERVO_WORKERS"]) == "SERVO_WORKERS"
    assert did_you_mean("log_level", list(SETTINGS)) == "; did you mean loglevel?"
    assert did_you_mean("zzzzzz", list(SETTINGS)) == ""


def test_case_and_dashes_do_not_count() -> None:
    assert nearest("--WROKERS", ["--bind", "--workers"]) == "--workers"
    assert nearest("Workers", ["workers"], 1.0) == "workers"


def test_the_most_similar_name_is_chosen() -> None:
    assert nearest("threads_", ["thread", "threads", "reads"]) == "threads"


def test_no_name_is_near() -> None:
    assert nearest("workers", []) is None
    assert nearest("workers", ["bind"]) is None


@pytest.mark.parametrize(
    ("name", "known", "is_alike"), [("prot", "port", True), ("servo", "user", False)]
)
def test_how_alike_names_must_be(name: str, known: str, is_alike: bool) -> None:
    assert (nearest(name, [known], ALIKE) == known) is is_alike
    assert (did_you_mean(name, [known]) != "") is is_alike
