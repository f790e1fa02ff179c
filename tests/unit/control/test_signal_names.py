"""Names and numbers of signals, as operators type them."""

from __future__ import annotations

import signal

import pytest

from servo.control.signal_names import signal_names, signal_number


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("TERM", signal.SIGTERM),
        ("SIGTERM", signal.SIGTERM),
        ("sigterm", signal.SIGTERM),
        ("15", signal.SIGTERM),
        ("-9", signal.SIGKILL),
        ("-KILL", signal.SIGKILL),
        (" usr1 ", signal.SIGUSR1),
        ("RTMIN", signal.SIGRTMIN),
        ("SIGRTMIN+6", signal.SIGRTMIN + 6),
    ],
)
def test_names_and_numbers(text: str, number: int) -> None:
    assert signal_number(text) == number


@pytest.mark.parametrize(
    ("text", "advice"),
    [
        ("TREM", "did you mean TERM?"),
        ("SIGKIL", "did you mean KILL?"),
        ("ABORT", "did you mean ABRT?"),
        ("RTMAX+1", "did you mean RTMAX?"),
        ("RTMIN+99", "`kill -l` lists all"),
        ("0", "`kill -l` lists all"),
        ("32", "`kill -l` lists all"),  # the C library's own
        ("65", "`kill -l` lists all"),
        ("99999", "`kill -l` lists all"),
        ("\u00b2", "`kill -l` lists all"),
        ("xyzzy", "`kill -l` lists all"),
        ("", "`kill -l` lists all"),
    ],
)
def test_others_are_refused_with_advice(text: str, advice: str) -> None:
    with pytest.raises(ValueError, match="is not a signal; ") as caught:
        signal_number(text)
    assert str(caught.value) == f"{text!r} is not a signal; {advice}"


def test_every_name_is_accepted() -> None:
    names = signal_names()
    assert names[:2] == ["HUP", "INT"]
    assert {signal_number(name) for name in names} == set(signal.Signals)
