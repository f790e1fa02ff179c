"""Why a worker ended, told truthfully: from what the arbiter did and what waitpid said."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class ExitReason(Enum):
    """The name is what messages carry (in lower case); the value is what the log says."""

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
class Ending:
    """Why the arbiter ends a worker; `detail` replaces the reason's general wording."""

    reason: ExitReason
    detail: str = ""

    def __str__(self) -> str:
        return self.detail or self.reason.value


def reason_named(name: str) -> ExitReason | None:
    """The reason that a message names, or None."""
    return ExitReason.__members__.get(name.upper())


def conclude(
    code: int, signal: str, ending: Ending | None, killed_by: str, out_of_memory: bool
) -> tuple[ExitReason, str]:
    """The reason for an exit and the words for it.

    code, signal   see `events.ChildExited`
    ending         why the arbiter had asked the worker to end, or None
    killed_by      the hardest signal that the arbiter has sent it, or ""
    out_of_memory  the kernel says that it killed for memory
    """
    if signal:
        if ending is not None and signal == killed_by:
            return ending.reason, f"killed by the arbiter: {ending}"
        if signal == "SIGKILL" and out_of_memory:
            return ExitReason.OUT_OF_MEMORY, "killed by the kernel: out of memory"
        if signal in _SENT_BY_PEOPLE:
            return ExitReason.CRASHED, f"killed by signal {-code} ({signal}), not by the arbiter"
        return ExitReason.CRASHED, f"crashed by signal {-code} ({signal})"
    if ending is not None and (code == 0 or ending.reason is ExitReason.BOOT_FAILED):
        return ending.reason, str(ending)
    if code == 0:
        return ExitReason.LEFT, "exited by itself with code 0"
    asked = f" after it was asked to end ({ending})" if ending is not None else ""
    return ExitReason.EXITED, f"exited with code {code}{asked}"


# A program's own fault has other signals.
_SENT_BY_PEOPLE = ("SIGKILL", "SIGTERM", "SIGINT", "SIGQUIT", "SIGHUP", "SIGUSR1", "SIGUSR2")
