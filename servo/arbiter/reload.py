"""What a reload knows about itself. The supervisor moves it from phase to phase."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class Phase(Enum):
    """The phases of a reload, in their order."""

    CHECKING = "a throw-away child reads the configuration"
    LOADING = "the arbiter reads it"
    CANARY = "one worker of the new generation boots"
    ROLLING = "the others are replaced"


_NEXT = {
    Phase.CHECKING: Phase.LOADING,
    Phase.LOADING: Phase.CANARY,
    Phase.CANARY: Phase.ROLLING,
}


@dataclass(slots=True, eq=False)
class Reload:
    """One reload that is under way.

    cause        who asked, for the log
    generation   of the workers that it brings
    deadline     of the configuration check
    canary       the serial of the first new worker, once it is forked
    failures     failed boots after the canary
    again        another reload was asked for meanwhile: it follows this one
    old_*        what a roll-back returns to
    """

    cause: str
    generation: int
    started_at: float
    deadline: float
    old_generation: int
    old_target: int
    phase: Phase = Phase.CHECKING
    canary: int | None = None
    failures: int = 0
    failed_at: float = 0.0
    again: str = ""

    def advance(self, phase: Phase) -> None:
        """Enter the next phase; any other is a bug and raises."""
        if _NEXT.get(self.phase) is not phase:
            raise RuntimeError(f"reload: {self.phase.name} > {phase.name}")
        self.phase = phase

    def failed(self, spawned_at: float, now: float) -> bool:
        """A new worker forked at `spawned_at` failed. True when it opened a new round of them."""
        if self.failures and spawned_at < self.failed_at:
            return False
        self.failures += 1
        self.failed_at = now
        return True

    def shift(self, gap: float) -> None:
        """The machine stood still for `gap` seconds."""
        self.deadline += gap
        self.failed_at += gap
