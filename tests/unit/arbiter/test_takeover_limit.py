"""The time limit of a program that takes over. The test itself sends the timer's signal."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest

from servo.arbiter.limit import CodeLimit, LimitExceeded
from servo.arbiter.takeover_limit import TakeoverLimit

# pytest-timeout's own way is SIGALRM, too.
pytestmark = pytest.mark.timeout(method="thread")

LONG_S = 3600.0


@pytest.fixture(autouse=True)
def _handler() -> Iterator[None]:
    before = signal.getsignal(signal.SIGALRM)
    yield
    signal.signal(signal.SIGALRM, before)
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)


def fire() -> None:
    os.kill(os.getpid(), signal.SIGALRM)


def test_code_is_interrupted_again_and_again() -> None:
    limit = TakeoverLimit(LONG_S)
    limit.begin()
    left, again = signal.getitimer(signal.ITIMER_REAL)
    assert 0 < left <= LONG_S
    assert 0 < again < 60
    for _ in range(2):
        with pytest.raises(LimitExceeded, match=r"it took over 3600 s \(boot_timeout\)"):
            fire()
    limit.end()
    limit.end()


def test_a_timer_that_expires_at_the_end_interrupts_nothing() -> None:
    limit = TakeoverLimit(LONG_S)
    limit.begin()
    handler = signal.getsignal(signal.SIGALRM)
    limit.end()
    assert callable(handler)
    handler(signal.SIGALRM, None)


def test_without_a_limit() -> None:
    limit = TakeoverLimit(0.0)
    limit.begin()
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)
    limit.end()


def test_a_hook_with_its_own_limit_does_not_end_it() -> None:
    limit = TakeoverLimit(LONG_S)
    limit.begin()
    assert CodeLimit().call(60.0, signal.getitimer, signal.ITIMER_REAL)[0] <= 60
    assert 60 < signal.getitimer(signal.ITIMER_REAL)[0] <= LONG_S
    with pytest.raises(LimitExceeded):
        fire()
    limit.end()
