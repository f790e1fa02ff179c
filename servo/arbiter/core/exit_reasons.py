"""The reason for a worker's exit, as the log and operators see it.

The arbiter never guesses. A reason follows from two facts: what the arbiter did to the worker
before (it told it to end, it sent it a signal), and what waitpid returned (an exit code or a
signal). A death by SIGKILL counts as "out of memory" only if the kernel's counters confirm it.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class ExitReason(Enum):
    """Why a worker ends. Messages carry the name in lower case; the log shows the value."""

    ASKED = "the server stops"
    RECYCLED = "recycled"
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
    ROW_OVERWRITTEN = "something has written over its row of the scoreboard"


@dataclass(frozen=True, slots=True)
class StopCause:
    """Why the arbiter ends a worker.

    reason  the kind of cause
    detail  the text for the log, in place of the reason's general one; "" for the general one
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
    cause          why the arbiter had told the worker to end, or None
    signal_sent    the strongest signal that the arbiter has sent to it, or ""
    out_of_memory  the kernel's counters say that it killed a process for memory
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


# A program that crashes by a fault of its own gets other signals (SIGSEGV, SIGABRT, SIGBUS, …).
_SENT_BY_PEOPLE = ("SIGKILL", "SIGTERM", "SIGINT", "SIGQUIT", "SIGHUP", "SIGUSR1", "SIGUSR2")
