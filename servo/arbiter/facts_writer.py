"""The numbers that only the arbiter knows, written into shared memory for the metrics process.

They are the server's state, its current generation, how many workers were forked, why workers
ended, and how many entries the arbiter's log got. The metrics process reads them whenever it is
scraped, so the arbiter never waits for it.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from servo.arbiter.core.exit_reasons import ExitReason
from servo.logs.entry_counts import count_log
from servo.metrics import arbiter_facts as facts_module
from servo.metrics.arbiter_facts import Facts

if TYPE_CHECKING:
    from servo.arbiter.core.actions import RecordLifecycleEvent
    from servo.arbiter.core.supervisor import Supervisor
    from servo.shared_memory.scoreboard import Scoreboard

REASONS = tuple(reason.name.lower() for reason in ExitReason)


class FactsWriter:
    """Writes the arbiter's numbers, and counts the entries of its log among them.

    scoreboard   has the words that are the arbiter's
    """

    def __init__(self, scoreboard: Scoreboard) -> None:
        self.facts = Facts(scoreboard.arbiter_words, REASONS)
        self.facts.begin(os.getpid())
        count_log(self.facts.words, facts_module.LOG_0)

    def publish(self, supervisor: Supervisor) -> None:
        """Write the server's state, after each turn of the loop."""
        reload = supervisor.reload is not None
        self.facts.publish(_state(supervisor), supervisor.generation, supervisor.target, reload)

    def renew(self) -> None:
        """Write everything anew, once a second: a worker may have written over it."""
        self.facts.republish()

    def count(self, event: RecordLifecycleEvent) -> None:
        """Count a lifecycle event."""
        self.facts.count_event(event.name, event.reason)

    def close_in_child(self) -> None:
        """Stop counting the log's entries: a child's are not the arbiter's."""
        count_log(None)


def _state(supervisor: Supervisor) -> int:
    if supervisor.stopping is not None:
        return facts_module.STOPPING
    if supervisor.pending_stop is not None:
        return facts_module.LEAVING
    if supervisor.paused:
        return facts_module.PAUSED
    return facts_module.SERVING if supervisor.served else facts_module.STARTING
