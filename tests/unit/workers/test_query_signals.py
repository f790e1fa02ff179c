"""The signals that query a worker while it does not read its channel."""

from __future__ import annotations

import signal

from servo.workers.query_signals import REQUESTS_SIGNAL, STACK_SIGNAL


def test_they_are_two_real_time_signals() -> None:
    assert STACK_SIGNAL != REQUESTS_SIGNAL
    for signum in (STACK_SIGNAL, REQUESTS_SIGNAL):
        assert signal.SIGRTMIN < signum <= signal.SIGRTMAX
