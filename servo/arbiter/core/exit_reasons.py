"""The reason for a worker's exit, for the log and for operators.

The reason is never a guess. It follows from two facts: the message or signal that the arbiter had
sent to the worker, and the exit code or signal that waitpid returned. A death by SIGKILL counts as
"out of memory" only if the kernel's counters confirm it.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class ExitReason(Enum):
    """Why a worker ends. Messages carry the name in lower case; the log shows the value."""

    ASKED = "the server stops"
    RECYCLED = "recycled"
    REFORKED = "it forks the next mold"
    TERMINATED = "it was sent SIGTERM"
    RESTARTED = "an operator asked for its restart"
    SCALED_DOWN = "scaled down"
    REPLACED = "replaced by a newer one"
    NOT_NEEDED = "no longer needed"
    DRAINED = "all workers are drained"
    LEFT = "it left by itself"
    NO_HEARTBEAT = "no heartbeat"
    REQUEST_TIMEOUT = "a request took too long"
    BOOT_FAILED = "it could not boot"
    BOOT_TIMEOUT = "it did not get ready"
    ROLLED_BACK = "its release was rolled back"
    CRASHED = "crashed"
    EXITED = "exited"
    OUT_OF_MEMORY = "out of memory"
    MAX_MEMORY = "it uses too much memory"
    MAX_MEMORY_HARD = "it uses far too much memory"
    UNHEALTHY = "its health check failed"
    ROW_OVERWRITTEN = "something has written over its row of the scoreboard"


@dataclass(frozen=True, slots=True)
class StopCause:
    """Why the arbiter tells a worker to end, or kills it.

    reason  the kind of cause
    detail  the text for the log; "" for the reason's general text
    """

    reason: ExitReason
    detail: str = ""

    def __str__(self) -> str:
        return self.detail or self.reason.value


def reason_named(name: str) -> ExitReason | None:
    """Return the reason with this name (in any case), or None if there is none."""
    return ExitReason.__members__.get(name.upper())


def conclude(
    code: int, signal: str, cause: StopCause | None, signal_sent: str, out_of_memory: bool
) -> tuple[ExitReason, str]:
    """Return the reason for an exit, and the text for the log.

    code, signal   see `events.ChildExited`
    cause          why the arbiter told the worker to end, or None
    signal_sent    the strongest signal that the arbiter sent to it, or ""
    out_of_memory  whether the kernel's counters show that the worker was killed for lack of memory
    """
    if signal:
        if cause is not None and signal == signal_sent:
            return cause.reason, f"killed by the arbiter: {cause}"
        if signal == "SIGKILL" and out_of_memory:
            return ExitReason.OUT_OF_MEMORY, "killed by the kernel: out of memory"
        if signal in _SENT_BY_PEOPLE:
            return ExitReason.CRASHED, f"killed by signal {-code} ({signal}), not by the arbiter"
        return ExitReason.CRASHED, f"crashed by signal {-code} ({signal})"
    if cause is not None and (code == 0 or cause.reason is ExitReason.BOOT_FAILED):
        return cause.reason, str(cause)
    if code == 0:
        return ExitReason.LEFT, "exited by itself with code 0"
    asked = f" after it was asked to end ({cause})" if cause is not None else ""
    return ExitReason.EXITED, f"exited with code {code}{asked}"


# Signals that people or programs send. The signals of a crash (SIGSEGV, SIGABRT, …) are not here.
_SENT_BY_PEOPLE = ("SIGKILL", "SIGTERM", "SIGINT", "SIGQUIT", "SIGHUP", "SIGUSR1", "SIGUSR2")
