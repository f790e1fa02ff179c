"""The description of a signal's effect on a worker."""

from __future__ import annotations

import signal

import pytest

from servo.arbiter.core.worker_table import WorkerEntry, WorkerState
from servo.arbiter.operator.worker_signals import signal_effect
from servo.workers.query_signals import STACK_SIGNAL


def worker(state: WorkerState = WorkerState.READY) -> WorkerEntry:
    entry = WorkerEntry(serial=9, slot=2, generation=1, spawned_at=0.0, pid=4711)
    entry.state = state
    entry.ready_at = None if state is WorkerState.BOOTING else 1.0
    return entry


@pytest.mark.parametrize(
    ("number", "says"),
    [
        (signal.SIGKILL, "its open requests are lost; a new worker takes slot 2"),
        (
            signal.SIGSTOP,
            "until `servoctl signal 2 CONT`, or until the arbiter kills it after 30 s",
        ),
        (signal.SIGCONT, "it goes on if it was stopped"),
        (signal.SIGABRT, "it writes its stacks to the log and ends"),
        (signal.SIGTERM, "its successor in slot 2 starts; then it finishes its requests and ends"),
        (signal.SIGUSR1, "`servoctl reopen` reopens those of all processes"),
        (signal.SIGHUP, "a worker ignores SIGHUP; `servoctl reload` reloads the server"),
        (signal.SIGUSR2, "a worker ignores SIGUSR2; `servoctl upgrade` upgrades the server"),
        (signal.SIGWINCH, "a worker ignores SIGWINCH; sent to the arbiter, it drains all workers"),
        (signal.SIGPIPE, "a process ignores SIGPIPE by default"),
        (signal.SIGSEGV, "SIGSEGV ends it unless the app handles it; a new worker takes slot 2"),
        (signal.SIGRTMIN + 1, "signal 35 ends it unless the app handles it"),
        (STACK_SIGNAL, "`servoctl stack 2` shows what the worker does"),
    ],
)
def test_a_worker_that_serves(number: int, says: str) -> None:
    assert says in signal_effect(worker(), number, 30.0)


def test_a_worker_without_a_limit_may_stand_still_without_end() -> None:
    text = signal_effect(worker(), signal.SIGSTOP, 0.0)
    assert text == "it stands still until `servoctl signal 2 CONT`"


def test_a_worker_that_boots_ignores_what_it_has_no_handler_for() -> None:
    booting = worker(WorkerState.BOOTING)
    for number in (signal.SIGTERM, signal.SIGUSR1):
        assert "until it is ready" in signal_effect(booting, number, 30.0)


def test_a_worker_that_drains_gets_no_successor() -> None:
    draining = worker(WorkerState.DRAINING)
    assert signal_effect(draining, signal.SIGTERM, 30.0) == (
        "it is ending already, so nothing changes"
    )
    assert "new worker" not in signal_effect(draining, signal.SIGKILL, 30.0)
