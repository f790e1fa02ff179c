"""Why a worker ended, in words that are true."""

from __future__ import annotations

import pytest

from servo.arbiter.core.exit_reasons import Ending, ExitReason, conclude, reason_named
from servo.arbiter.core.policy import BACKOFF_CAP_S, Backoff

R = ExitReason
HANG = Ending(R.NO_HEARTBEAT, "no heartbeat for 30 s")


@pytest.mark.parametrize(
    ("code", "signal", "ending", "killed_by", "oom", "reason", "text"),
    [
        (0, "", Ending(R.RECYCLED), "", False, R.RECYCLED, "recycled"),
        (0, "", None, "", False, R.LEFT, "exited by itself with code 0"),
        (1, "", None, "", False, R.EXITED, "exited with code 1"),
        (1, "", Ending(R.ASKED), "", False, R.EXITED,
         "exited with code 1 after it was asked to end (the server stops)"),
        (4, "", Ending(R.BOOT_FAILED), "", False, R.BOOT_FAILED, "it could not boot"),
        (-6, "SIGABRT", HANG, "SIGABRT", False, R.NO_HEARTBEAT,
         "killed by the arbiter: no heartbeat for 30 s"),
        (-9, "SIGKILL", HANG, "SIGKILL", True, R.NO_HEARTBEAT,
         "killed by the arbiter: no heartbeat for 30 s"),
        (-9, "SIGKILL", None, "", True, R.OUT_OF_MEMORY, "killed by the kernel: out of memory"),
        (-9, "SIGKILL", None, "", False, R.CRASHED,
         "killed by signal 9 (SIGKILL), not by the arbiter"),
        (-11, "SIGSEGV", None, "", True, R.CRASHED, "crashed by signal 11 (SIGSEGV)"),
        (-11, "SIGSEGV", Ending(R.REPLACED), "", False, R.CRASHED,
         "crashed by signal 11 (SIGSEGV)"),
        (-6, "SIGABRT", None, "", False, R.CRASHED, "crashed by signal 6 (SIGABRT)"),
    ],
)  # fmt: skip
def test_conclude(
    code: int,
    signal: str,
    ending: Ending | None,
    killed_by: str,
    oom: bool,
    reason: ExitReason,
    text: str,
) -> None:
    assert conclude(code, signal, ending, killed_by, oom) == (reason, text)


def test_reasons_by_name() -> None:
    assert reason_named("request_timeout") is R.REQUEST_TIMEOUT
    assert reason_named("nonsense") is None


def test_backoff_doubles_up_to_its_cap() -> None:
    backoff, now, delays = Backoff(), 100.0, []
    for _ in range(12):
        assert backoff.failed(spawned_at=now, now=now)
        delays.append(backoff.not_before - now)
        now = backoff.not_before
    assert delays[:4] == pytest.approx([0.1, 0.2, 0.4, 0.8])
    assert delays[-1] == BACKOFF_CAP_S


def test_backoff_counts_rounds() -> None:
    backoff = Backoff()
    assert backoff.failed(spawned_at=1.0, now=5.0)
    assert not backoff.failed(spawned_at=2.0, now=6.0)
    backoff.proved(spawned_at=3.0)  # older than the failure: proves nothing
    assert backoff.rounds == 1
    backoff.proved(spawned_at=5.2)
    assert (backoff.rounds, backoff.not_before) == (0, 0.0)
