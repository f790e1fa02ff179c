"""The reason for an exit, from the arbiter's orders and the result of waitpid."""

from __future__ import annotations

import pytest

from servo.arbiter.core.exit_reasons import ExitReason, StopCause, conclude, reason_named

R = ExitReason
HANG = StopCause(R.NO_HEARTBEAT, "no heartbeat for 30 s")


@pytest.mark.parametrize(
    ("code", "signal", "cause", "signal_sent", "oom", "reason", "text"),
    [
        (0, "", StopCause(R.RECYCLED), "", False, R.RECYCLED, "recycled"),
        (0, "", None, "", False, R.LEFT, "exited by itself with code 0"),
        (1, "", None, "", False, R.EXITED, "exited with code 1"),
        (1, "", StopCause(R.ASKED), "", False, R.EXITED,
         "exited with code 1 after it was asked to end (the server stops)"),
        (4, "", StopCause(R.BOOT_FAILED), "", False, R.BOOT_FAILED, "it could not boot"),
        (-6, "SIGABRT", HANG, "SIGABRT", False, R.NO_HEARTBEAT,
         "killed by the arbiter: no heartbeat for 30 s"),
        (-9, "SIGKILL", HANG, "SIGKILL", True, R.NO_HEARTBEAT,
         "killed by the arbiter: no heartbeat for 30 s"),
        (-9, "SIGKILL", None, "", True, R.OUT_OF_MEMORY, "killed by the kernel: out of memory"),
        (-9, "SIGKILL", None, "", False, R.CRASHED,
         "killed by signal 9 (SIGKILL), not by the arbiter"),
        (-11, "SIGSEGV", None, "", True, R.CRASHED, "crashed by signal 11 (SIGSEGV)"),
        (-11, "SIGSEGV", StopCause(R.REPLACED), "", False, R.CRASHED,
         "crashed by signal 11 (SIGSEGV)"),
        (-6, "SIGABRT", None, "", False, R.CRASHED, "crashed by signal 6 (SIGABRT)"),
    ],
)  # fmt: skip
def test_conclude(
    code: int,
    signal: str,
    cause: StopCause | None,
    signal_sent: str,
    oom: bool,
    reason: ExitReason,
    text: str,
) -> None:
    assert conclude(code, signal, cause, signal_sent, oom) == (reason, text)


def test_reasons_by_name() -> None:
    assert reason_named("request_timeout") is R.REQUEST_TIMEOUT
    assert reason_named("nonsense") is None
