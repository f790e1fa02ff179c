"""Signals as data: no stop signal is lost, and none is reported twice."""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING

import pytest

from servo.arbiter.signals import SignalInbox

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def inbox() -> Iterator[SignalInbox]:
    before = signal.getsignal(signal.SIGTTIN)
    inbox = SignalInbox(lambda: None)
    inbox.install()
    yield inbox
    inbox.close()
    assert signal.getsignal(signal.SIGTTIN) is before


def test_signals_come_in_their_order(inbox: SignalInbox) -> None:
    sent = [signal.SIGTTIN, signal.SIGTTIN, signal.SIGHUP, signal.SIGTERM, signal.SIGTTOU]
    for signum in sent:
        os.kill(os.getpid(), signum)
    assert inbox.read() == [signum.name for signum in sent]
    assert inbox.read() == []


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT, signal.SIGQUIT])
def test_a_stop_gets_past_a_crowd(inbox: SignalInbox, signum: signal.Signals) -> None:
    for _ in range(1000):
        os.kill(os.getpid(), signal.SIGTTIN)
    os.kill(os.getpid(), signum)
    names = inbox.read()
    assert 100 < names.count("SIGTTIN") < 1000  # the socket was full
    assert names[-1] == signum.name
    assert inbox.read() == []
    os.kill(os.getpid(), signum)
    assert inbox.read() == [signum.name]
