"""What only the arbiter knows, in shared memory for whoever reports it.

The arbiter writes a few words of the scoreboard's header after each turn of its loop; the process
that serves metrics reads them. They outlive both that process and a reload.

A worker could write over them, so the arbiter counts in memory of its own and writes the words
anew; a checksum tells readers whether they are the arbiter's.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, NamedTuple

from servo.logs.entry_counts import LOG_LEVELS
from servo.shared_memory.scoreboard import checksum

if TYPE_CHECKING:
    from collections.abc import Sequence

# --- the words (of `Scoreboard.arbiter_words`) --------------------------------------------------

_PID = 0
_BEAT_NS = 1  # the arbiter's last turn, monotonic
_STARTED_NS = 2  # since the epoch
_GENERATION = 3
_TARGET = 4
_STATE = 5
_RELOADING = 6
_RELOADS_STARTED = 7
_RELOADS_FINISHED = 8
_RELOADS_ROLLED_BACK = 9
_RELOADED_NS = 10  # when the last reload ended, since the epoch; 0: there was none
_RELOADED_WELL = 11
_SPAWNED = 12
LOG_0 = 16  # entries of the arbiter's error log, one word for each of LOG_LEVELS
_EXITS_0 = 32  # workers that ended, a word for each reason
_MOST_REASONS = 96
# Of all words that only the arbiter's events change.
_CHECKSUM = _EXITS_0 + _MOST_REASONS
_COUNTED = (*range(_RELOADS_STARTED, _SPAWNED + 1), *range(_EXITS_0, _CHECKSUM))

# What the server is doing. PAUSED: drained by SIGWINCH. LEAVING: told to stop, but it waits
# (`pre_stop_delay`) until balancers have noticed that it isn't ready any more.
STARTING, SERVING, PAUSED, LEAVING, STOPPING = range(5)
SERVER_STATES = ("starting", "serving", "paused", "leaving", "stopping")


class ServerFacts(NamedTuple):
    """The words as they were read. Times are seconds, `beat_age_s` from then to now.

    exits  reason -> how many workers ended for it
    log    entries of the arbiter's own log, by level
    """

    pid: int
    beat_age_s: float
    started_at: float
    generation: int
    target: int
    state: str
    reloading: bool
    reloads_started: int
    reloads_finished: int
    reloads_rolled_back: int
    reloaded_at: float
    reloaded_well: bool
    spawned: int
    exits: dict[str, int]
    log: tuple[int, ...]


class Facts:
    """The words, for the one who writes and those who read.

    words    `Scoreboard.arbiter_words`
    reasons  the names of all exit reasons, in an order that stays
    """

    def __init__(self, words: memoryview, reasons: Sequence[str]) -> None:
        assert len(reasons) <= _MOST_REASONS
        self.words = words
        self._own = [0] * len(words)  # the writer's
        self._last = [0] * len(words)  # the reader's: what made sense last
        self._reasons = {reason: _EXITS_0 + i for i, reason in enumerate(reasons)}

    # --- the arbiter's --------------------------------------------------------------------------

    def begin(self, pid: int) -> None:
        """The server starts."""
        own = self._own
        own[_PID] = pid
        own[_STARTED_NS] = time.time_ns()
        own[_BEAT_NS] = time.monotonic_ns()
        self.renew()

    def publish(self, state: int, generation: int, target: int, reloading: bool) -> None:
        """How things are after a turn of the arbiter's loop."""
        words, own = self.words, self._own
        words[_BEAT_NS] = own[_BEAT_NS] = time.monotonic_ns()
        words[_STATE] = own[_STATE] = state
        words[_GENERATION] = own[_GENERATION] = generation
        words[_TARGET] = own[_TARGET] = target
        words[_RELOADING] = own[_RELOADING] = reloading

    def happened(self, name: str, reason: str = "") -> None:
        """Count a lifecycle event, by the name that all the world knows it by."""
        words = self._own
        if name == "spawned":
            words[_SPAWNED] += 1
        elif name == "exited":
            words[self._reasons[reason]] += 1
        elif name == "reload_started":
            words[_RELOADS_STARTED] += 1
        elif name in ("reload_finished", "reload_rolled_back"):
            well = name == "reload_finished"
            words[_RELOADS_FINISHED if well else _RELOADS_ROLLED_BACK] += 1
            words[_RELOADED_NS] = time.time_ns()
            words[_RELOADED_WELL] = well
        else:
            return
        self.renew()

    def renew(self) -> None:
        """Write all words anew, but those that the log's counter writes; once a second, too."""
        own = self._own
        own[_CHECKSUM] = checksum(own[word] for word in _COUNTED)
        for word, value in enumerate(own):
            if not LOG_0 <= word < LOG_0 + len(LOG_LEVELS):
                self.words[word] = value

    # --- the readers' ---------------------------------------------------------------------------

    def read(self) -> ServerFacts:
        """All of it."""
        words = self.words.tolist()
        if words[_STATE] < len(SERVER_STATES) and words[_CHECKSUM] == checksum(
            words[word] for word in _COUNTED
        ):
            self._last = words
        else:
            # Written over by somebody, or just being written by the arbiter.
            words = self._last
        return ServerFacts(
            pid=words[_PID],
            beat_age_s=max(time.monotonic_ns() - words[_BEAT_NS], 0) / 1e9,
            started_at=words[_STARTED_NS] / 1e9,
            generation=words[_GENERATION],
            target=words[_TARGET],
            state=SERVER_STATES[words[_STATE]],
            reloading=bool(words[_RELOADING]),
            reloads_started=words[_RELOADS_STARTED],
            reloads_finished=words[_RELOADS_FINISHED],
            reloads_rolled_back=words[_RELOADS_ROLLED_BACK],
            reloaded_at=words[_RELOADED_NS] / 1e9,
            reloaded_well=bool(words[_RELOADED_WELL]),
            spawned=words[_SPAWNED],
            exits={reason: words[word] for reason, word in self._reasons.items()},
            log=tuple(words[LOG_0 : LOG_0 + len(LOG_LEVELS)]),
        )
