"""The time limit for code of the configuration. The code itself sends the timer's signal, so no
test sleeps or depends on the timer.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator

import pytest

from servo.arbiter.limit import STOP_S, CodeError, CodeLimit

# pytest-timeout's own way is SIGALRM, too.
pytestmark = pytest.mark.timeout(method="thread")

LONG_S = 3600.0


@pytest.fixture
def limit() -> Iterator[CodeLimit]:
    before = signal.getsignal(signal.SIGALRM)
    yield CodeLimit()
    assert signal.getsignal(signal.SIGALRM) is before
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)


def fire() -> None:
    """As the timer does."""
    os.kill(os.getpid(), signal.SIGALRM)


def test_what_it_returns_and_raises(limit: CodeLimit) -> None:
    assert limit.call(LONG_S, divmod, 7, 2) == (3, 1)
    with pytest.raises(ZeroDivisionError):
        limit.call(LONG_S, divmod, 7, 0)


def test_the_timer_runs_while_the_code_does(limit: CodeLimit) -> None:
    left, again = limit.call(LONG_S, signal.getitimer, signal.ITIMER_REAL)
    assert 0 < left <= LONG_S
    assert 0 < again < 60


def test_without_a_limit_there_is_no_timer(limit: CodeLimit) -> None:
    assert limit.call(0.0, signal.getitimer, signal.ITIMER_REAL) == (0.0, 0.0)


def wait() -> None:
    fire()
    signal.pause()


def compute() -> None:
    fire()
    while True:
        pass


def catch_errors() -> None:
    while True:
        try:
            fire()
        except Exception:  # noqa: BLE001  as such code does
            continue


def catch_everything_twice() -> None:
    for _ in range(2):
        try:
            fire()
            signal.pause()
        except BaseException:  # noqa: BLE001  as no code should
            continue
    fire()


@pytest.mark.parametrize("code", [wait, compute, catch_errors, catch_everything_twice])
def test_it_is_interrupted(limit: CodeLimit, code: Callable[[], None]) -> None:
    with pytest.raises(CodeError, match=r"it took over 3600 s \(hook_timeout\)"):
        limit.call(LONG_S, code)


def leave() -> None:
    raise SystemExit(3)


def interrupt() -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize(("code", "text"), [(leave, "SystemExit"), (interrupt, "KeyboardInterr")])
def test_what_would_end_the_arbiter_is_an_error(
    limit: CodeLimit, code: Callable[[], None], text: str
) -> None:
    with pytest.raises(CodeError, match=text):
        limit.call(LONG_S, code)


def test_a_stop_leaves_a_moment_to_what_keeps_it_from_being_obeyed(limit: CodeLimit) -> None:
    def stopped() -> float:
        limit.stop()
        return signal.getitimer(signal.ITIMER_REAL)[0]

    assert 0 < limit.call(LONG_S, stopped) <= STOP_S
    assert 0 < limit.call(0.0, stopped) <= STOP_S
    assert 0 < limit.call(LONG_S, signal.getitimer, signal.ITIMER_REAL)[0] <= STOP_S

    with pytest.raises(CodeError, match="the server is stopping"):
        limit.call(LONG_S, wait)
    limit.signals_read()
    assert limit.call(LONG_S, signal.getitimer, signal.ITIMER_REAL)[0] > STOP_S


def test_a_call_within_a_call_has_no_limit_of_its_own(limit: CodeLimit) -> None:
    def outer() -> float:
        limit.call(1.0, fire_not)
        return signal.getitimer(signal.ITIMER_REAL)[0]

    def fire_not() -> None:
        """Returns at once."""

    assert limit.call(LONG_S, outer) > 1.0


def test_a_timer_that_fires_late_interrupts_nobody(limit: CodeLimit) -> None:
    limit.call(LONG_S, leave_not)
    limit._interrupt(signal.SIGALRM, None)


def leave_not() -> None:
    """Returns at once."""
