"""Passes the arbiter's own state and counters to the metrics process, through shared memory.

The arbiter writes them into fields of the scoreboard's header, after each turn of its loop, and the
metrics process reads them. When the metrics process is replaced, and after a reload, the counts
continue.

A faulty worker can overwrite the fields. So the arbiter counts in its own memory, and once a second
writes all fields again, with a checksum. If the checksum doesn't match, a reader uses the last
fields with a correct one.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, NamedTuple

from servo.logs.entry_counts import LOG_LEVELS
from servo.shared_memory.scoreboard import checksum

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

# --- the fields: indices into `Scoreboard.arbiter_words`, an array of 64-bit numbers -------------

_PID = 0
_BEAT_NS = 1  # the last turn of the arbiter's loop, on the monotonic clock
_STARTED_NS = 2  # nanoseconds since the epoch
_GENERATION = 3
_TARGET = 4
_STATE = 5
_RELOADING = 6
_RELOADS_STARTED = 7
_RELOADS_FINISHED = 8
_RELOADS_ROLLED_BACK = 9
_LAST_RELOAD_NS = 10  # the end of the last reload, nanoseconds since the epoch; 0 without a reload
_LAST_RELOAD_SUCCEEDED = 11  # 1 unless the last reload was rolled back
_SPAWNED = 12
_REFORKS_FINISHED = 13
_REFORKS_ROLLED_BACK = 14
_LAST_COUNT = 14
# Fields 15 and 20 to 31 are free for more; the log's entries take 16 to 19.
_LEAST = 20
_MOST = 21
LOG_0 = 16  # entries of the arbiter's error log, one field for each of LOG_LEVELS
_EXITS_0 = 32  # ended workers, one field for each exit reason
_MAX_REASONS = 96
# The checksum covers the fields that only `count_event` changes, not those of each turn.
_CHECKSUM = _EXITS_0 + _MAX_REASONS
_COUNTED = (*range(_RELOADS_STARTED, _LAST_COUNT + 1), *range(_EXITS_0, _CHECKSUM))

# The fields that an upgrade of the arbiter's program keeps. It also keeps the exits, by reason.
_KEPT = (_STARTED_NS, *range(_RELOADS_STARTED, _LAST_COUNT + 1))

# The server's state. PAUSED: all workers were drained (SIGWINCH). LEAVING: the server will stop,
# but still serves until load balancers have noticed that it isn't ready (`pre_stop_delay`).
STARTING, SERVING, PAUSED, LEAVING, STOPPING = range(5)
SERVER_STATES = ("starting", "serving", "paused", "leaving", "stopping")


class ServerFacts(NamedTuple):
    """The arbiter's state and counters, for a reader.

    pid                    the arbiter's process id
    heartbeat_age_s        seconds since the last turn of the arbiter's loop
    started_at             when the server started, seconds since the epoch
    generation             the current generation: 1, and one more with each reload
    target                 the number of workers that should serve
    least                  the least number that the load may choose; without autoscaling: `target`
    most                   the largest number that the load may choose; without autoscaling:
                           `target`
    state                  one of SERVER_STATES
    reloading              whether a reload is in progress
    reloads_started        number of reloads that began
    reloads_finished       number of reloads that succeeded
    reloads_rolled_back    number of reloads that failed
    reforks_finished       number of reforks that succeeded
    reforks_rolled_back    number of reforks that failed
    last_reload_at         when the last reload ended, seconds since the epoch; 0 without a reload
    last_reload_succeeded  whether the last reload succeeded
    spawned                number of workers ever forked
    exits                  number of ended workers, by exit reason
    log                    entries of the arbiter's error log, by level
    """

    pid: int
    heartbeat_age_s: float
    started_at: float
    generation: int
    target: int
    least: int
    most: int
    state: str
    reloading: bool
    reloads_started: int
    reloads_finished: int
    reloads_rolled_back: int
    reforks_finished: int
    reforks_rolled_back: int
    last_reload_at: float
    last_reload_succeeded: bool
    spawned: int
    exits: dict[str, int]
    log: tuple[int, ...]


class Facts:
    """The shared fields. The arbiter writes them, other processes read them.

    words    `Scoreboard.arbiter_words`
    reasons  the names of all exit reasons, always in the same order
    """

    def __init__(self, words: memoryview, reasons: Sequence[str]) -> None:
        assert len(reasons) <= _MAX_REASONS
        self.words = words
        self._own = [0] * len(words)  # in the arbiter: the true values
        self._last = [0] * len(words)  # in a reader: the last values with a correct checksum
        self._reasons = {reason: _EXITS_0 + i for i, reason in enumerate(reasons)}

    # --- for the arbiter ------------------------------------------------------------------------

    def begin(self, pid: int) -> None:
        """Record the start of the server.

        pid  the arbiter's process id
        """
        own = self._own
        own[_PID] = pid
        own[_STARTED_NS] = time.time_ns()
        own[_BEAT_NS] = time.monotonic_ns()
        self.republish()

    def to_state(self) -> dict[str, Any]:
        """Return the counters and the start as JSON values, for `restore`."""
        own = self._own
        return {
            "words": {str(word): own[word] for word in _KEPT},
            "exits": {reason: own[word] for reason, word in self._reasons.items()},
        }

    def restore(self, pid: int, state: Mapping[str, Any]) -> None:
        """Continue the counts of this process's previous program, after an upgrade.

        pid    the arbiter's process id
        state  the result of that program's `to_state`. Exit reasons that are missing start at 0

        Raises KeyError, TypeError and ValueError for an invalid state.
        """
        own = self._own
        for word in _KEPT:
            # An older program has fewer counts.
            own[word] = int(state["words"].get(str(word), 0))
        for reason, word in self._reasons.items():
            own[word] = int(state["exits"].get(reason, 0))
        own[_PID] = pid
        own[_BEAT_NS] = time.monotonic_ns()
        self.republish()

    def publish(
        self, state: int, generation: int, workers: tuple[int, int, int], reloading: bool
    ) -> None:
        """Publish the state after a turn of the arbiter's loop.

        state       one of STARTING to STOPPING
        generation  the current generation
        workers     how many workers should serve, at least and at most: `target, least, most`
        reloading   whether a reload is in progress
        """
        words, own = self.words, self._own
        words[_BEAT_NS] = own[_BEAT_NS] = time.monotonic_ns()
        words[_STATE] = own[_STATE] = state
        words[_GENERATION] = own[_GENERATION] = generation
        words[_TARGET], words[_LEAST], words[_MOST] = workers
        own[_TARGET], own[_LEAST], own[_MOST] = workers
        words[_RELOADING] = own[_RELOADING] = reloading

    def count_event(self, name: str, reason: str = "") -> None:
        """Count a lifecycle event.

        name    the event's name, as in `servoctl events`
        reason  the exit reason of an "exited" event
        """
        words = self._own
        if name == "spawned":
            words[_SPAWNED] += 1
        elif name == "exited":
            words[self._reasons[reason]] += 1
        elif name in ("refork_finished", "refork_rolled_back"):
            well = name == "refork_finished"
            words[_REFORKS_FINISHED if well else _REFORKS_ROLLED_BACK] += 1
        elif name == "reload_started":
            words[_RELOADS_STARTED] += 1
        elif name in ("reload_finished", "reload_rolled_back"):
            well = name == "reload_finished"
            words[_RELOADS_FINISHED if well else _RELOADS_ROLLED_BACK] += 1
            words[_LAST_RELOAD_NS] = time.time_ns()
            words[_LAST_RELOAD_SUCCEEDED] = well
        else:
            return
        self.republish()

    def republish(self) -> None:
        """Write all fields again, except those that the counter of log entries writes itself.

        Also called once a second, in case a faulty worker has overwritten them.
        """
        own = self._own
        own[_CHECKSUM] = checksum(own[word] for word in _COUNTED)
        for word, value in enumerate(own):
            if not LOG_0 <= word < LOG_0 + len(LOG_LEVELS):
                self.words[word] = value

    # --- for readers ----------------------------------------------------------------------------

    def read(self) -> ServerFacts:
        """Read all fields."""
        words = self.words.tolist()
        if words[_STATE] < len(SERVER_STATES) and words[_CHECKSUM] == checksum(
            words[word] for word in _COUNTED
        ):
            self._last = words
        else:
            # A worker has overwritten the fields, or the arbiter is just writing them.
            words = self._last
        return ServerFacts(
            pid=words[_PID],
            heartbeat_age_s=max(time.monotonic_ns() - words[_BEAT_NS], 0) / 1e9,
            started_at=words[_STARTED_NS] / 1e9,
            generation=words[_GENERATION],
            target=words[_TARGET],
            least=words[_LEAST],
            most=words[_MOST],
            state=SERVER_STATES[words[_STATE]],
            reloading=bool(words[_RELOADING]),
            reloads_started=words[_RELOADS_STARTED],
            reloads_finished=words[_RELOADS_FINISHED],
            reloads_rolled_back=words[_RELOADS_ROLLED_BACK],
            reforks_finished=words[_REFORKS_FINISHED],
            reforks_rolled_back=words[_REFORKS_ROLLED_BACK],
            last_reload_at=words[_LAST_RELOAD_NS] / 1e9,
            last_reload_succeeded=bool(words[_LAST_RELOAD_SUCCEEDED]),
            spawned=words[_SPAWNED],
            exits={reason: words[word] for reason, word in self._reasons.items()},
            log=tuple(words[LOG_0 : LOG_0 + len(LOG_LEVELS)]),
        )
