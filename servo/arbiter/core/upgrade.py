"""An upgrade: the arbiter's process executes a newer Servo or another Python interpreter.

An upgrade has two phases:

PREFLIGHT  A child process runs the new interpreter with its Servo. It reads the configuration and
           imports the application, as at a start. If this fails, the server is unchanged.
EXECUTING  The arbiter writes its state to a file in memory and calls execve(2). The process, its
           pid, its children and its sockets stay; only the program changes. If the call fails, the
           server is unchanged.

The new program restores the state (see `supervisor_state`), and then replaces the workers by an
ordinary reload.

Like `reload`, this module only decides.
"""

from __future__ import annotations

import math
from enum import Enum

from servo.arbiter.core.actions import RecordLifecycleEvent


class UpgradePhase(Enum):
    """The phases of an upgrade, in their order."""

    PREFLIGHT = "the new program is tried in a child process"
    EXECUTING = "the new program takes the arbiter's place"


class Upgrade:
    """An upgrade in progress.

    cause       who or what requested it, for the log
    python      the path of the new interpreter, or "" for the current one
    phase       the current phase
    next_cause  the cause of a reload that was requested meanwhile, or "". It follows a failed
                upgrade. A successful upgrade ends with a reload anyway
    """

    def __init__(self, cause: str, python: str, *, limit_s: float, now: float) -> None:
        """Start in the phase PREFLIGHT.

        limit_s  how long the preflight may take, in seconds; 0: no limit
        now      the current time, in seconds
        """
        self.cause = cause
        self.python = python
        self.phase = UpgradePhase.PREFLIGHT
        self.next_cause = ""
        self._limit_s = limit_s
        self._due = now + (limit_s or math.inf)

    @property
    def due_at(self) -> float:
        """The time, in seconds, at which the preflight has taken too long; infinity for never."""
        return self._due if self.phase is UpgradePhase.PREFLIGHT else math.inf

    def shift(self, gap_s: float) -> None:
        """Extend the limit by `gap_s` seconds, because the machine stood still for that long."""
        self._due += gap_s

    # --- lifecycle events -----------------------------------------------------------------------

    def started(self, generation: int) -> RecordLifecycleEvent:
        """Return the lifecycle event of the start.

        generation  the number of the generation that the reload at the end of the upgrade makes
        """
        by = f" by {self.python}" if self.python else ""
        return RecordLifecycleEvent(
            "info",
            f"upgrade ({self.cause}): the new program is tried in a child process{by}",
            name="upgrade_started",
            reason=self.cause,
            generation=generation,
        )

    def failed(self, text: str, details: str) -> RecordLifecycleEvent:
        """Return the lifecycle event of a failure.

        text     the reason for the log, in one line
        details  a traceback, or ""
        """
        return RecordLifecycleEvent(
            "error",
            f"upgrade ({self.cause}) failed: {text}; the server goes on as it was",
            name="upgrade_failed",
            reason=text,
            details=details,
        )

    def took_too_long(self) -> str:
        """Return the text for a preflight that took too long."""
        return f"the preflight takes over {self._limit_s:g} s (boot_timeout)"


def given_back(text: str) -> RecordLifecycleEvent:
    """Return the lifecycle event of an upgrade whose new program executed the old one again.

    text  the reason for the log, in one line
    """
    return RecordLifecycleEvent(
        "error",
        f"upgrade failed: {text}; the server goes on as it was",
        name="upgrade_failed",
        reason=text,
    )
