"""Writes the arbiter's own numbers into shared memory for the metrics process.

These are the server's state, its current generation, the number of forked workers, the reasons for
their exits, and the number of entries in the arbiter's log. The metrics process reads the numbers
from shared memory at each scrape, so the arbiter never waits for that process.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from servo.arbiter.core.exit_reasons import ExitReason
from servo.logs.entry_counts import count_log
from servo.metrics import arbiter_facts as facts_module
from servo.metrics.arbiter_facts import Facts

if TYPE_CHECKING:
    from collections.abc import Mapping

    from servo.arbiter.core.actions import RecordLifecycleEvent
    from servo.arbiter.core.supervisor import Supervisor
    from servo.shared_memory.scoreboard import Scoreboard

REASONS = tuple(reason.name.lower() for reason in ExitReason)


class FactsWriter:
    """Writes the arbiter's numbers, and counts the entries of its log.

    scoreboard   the shared memory
    state        after an upgrade, the counters of the previous program (`Facts.to_state`);
                 otherwise None
    """

    def __init__(self, scoreboard: Scoreboard, state: Mapping[str, Any] | None = None) -> None:
        self.facts = Facts(scoreboard.arbiter_words, REASONS)
        if state is None:
            self.facts.begin(os.getpid())
        else:
            self.facts.restore(os.getpid(), state)
        count_log(self.facts.words, facts_module.LOG_0)

    def publish(self, supervisor: Supervisor) -> None:
        """Write the server's state. Called after each turn of the loop."""
        reload, count = supervisor.reload is not None, supervisor.count
        workers = (count.target, *count.bounds)
        self.facts.publish(_state(supervisor), supervisor.generation, workers, reload)

    def renew(self) -> None:
        """Write all numbers again, because a faulty worker may have overwritten them.

        Called once a second.
        """
        self.facts.republish()

    def count(self, event: RecordLifecycleEvent) -> None:
        """Count a lifecycle event."""
        self.facts.count_event(event.name, event.reason)

    def close_in_child(self) -> None:
        """Stop counting log entries: only the arbiter's entries count."""
        count_log(None)


def _state(supervisor: Supervisor) -> int:
    if supervisor.stopping is not None:
        return facts_module.STOPPING
    if supervisor.pending_stop is not None:
        return facts_module.LEAVING
    if supervisor.paused:
        return facts_module.PAUSED
    return facts_module.SERVING if supervisor.served else facts_module.STARTING
