"""How workers are to be treated: the numbers that the supervisor decides by."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

# The arbiter looks at its workers at least this often. Later than this means that the arbiter
# itself was not running, so whatever the workers did not do meanwhile is not their fault.
TICK_S = 1.0
# A scheduler under load delays a tick by tens of milliseconds; a paused container by seconds.
TICK_SLACK_S = 0.5
# From here on the log tells of it.
STANDSTILL_S = 3.0

# SIGABRT makes the worker print its stacks; this is how long it may take for that.
ABORT_S = 2.0
# A worker that is still booting has no request to finish, so a stop waits only this long for it.
BOOT_STOP_S = 2.0
# A worker that has reported a failed boot only has to exit.
BOOT_EXIT_S = 5.0
# A quick stop cuts requests; the rest is the lifespan shutdown and atexit handlers.
QUICK_STOP_S = 5.0

# A worker that dies sooner than this after it got ready counts as failing.
YOUNG_S = 5.0
BACKOFF_FIRST_S = 0.1
BACKOFF_CAP_S = 30.0

# Before any worker has served: how many rounds of crashes (a reported boot failure needs only one).
FIRST_BOOT_ATTEMPTS = 3
# After the canary: how many rounds of failed boots until a reload is rolled back.
ROLLING_ATTEMPTS = 3


@dataclass(frozen=True, slots=True)
class Policy:
    """The settings that supervision depends on. A time of 0 means no limit (but for the drain).

    workers             how many are asked for
    workers_of          worker class -> how many, where that hangs on the class (workers = "auto"),
                        which only a worker that has loaded the app can tell
    timeout_s           the oldest heartbeat that passes for life (gunicorn: 30)
    boot_timeout_s      from fork to Ready
    graceful_timeout_s  from Retire or Stop to SIGKILL
    pre_stop_delay_s    from the wish for a stop to the stop: readiness has failed meanwhile
    max_lifetime_s      from Ready to the wish for a successor
    request_timeout_s   for one request; enforced here only for a worker that can't do it itself,
                        as its one thread, or its loop, is busy
    reload_batch        how many more workers than asked for may live during a reload
    capacity            rows of the scoreboard: more processes than this can't be told apart
    wait_for_change     (--reload) a broken first generation waits for the next change of a file
    own_queues          (reuse_port) each slot has listeners of its own
    """

    workers: int
    timeout_s: float = 30.0
    boot_timeout_s: float = 60.0
    graceful_timeout_s: float = 30.0
    pre_stop_delay_s: float = 0.0
    max_lifetime_s: float = 0.0
    request_timeout_s: float = 0.0
    reload_batch: int = 1
    capacity: int = 256
    wait_for_change: bool = False
    own_queues: bool = False
    workers_of: Mapping[str, int] = field(default_factory=dict)

    @property
    def most_workers(self) -> int:
        """The largest number of workers that leaves room for successors."""
        return max(1, self.capacity - self.reload_batch)


class Backoff:
    """When the next worker may be forked after some have died young.

    Workers forked before the last failure belong to its round and don't count again: if the
    kernel kills 64 workers at once, that is one failure and not a wait of 30 s.
    """

    def __init__(self) -> None:
        self.rounds = 0
        self.not_before = 0.0
        self._failed_at = 0.0

    def failed(self, spawned_at: float, now: float) -> bool:
        """A worker forked at `spawned_at` has failed. True when that begins a new round."""
        if self.rounds and spawned_at < self._failed_at:
            return False
        self.rounds += 1
        delay = min(BACKOFF_CAP_S, BACKOFF_FIRST_S * 2.0 ** min(self.rounds - 1, 20))
        self._failed_at = now
        self.not_before = now + delay
        return True

    def proved(self, spawned_at: float) -> None:
        """A worker forked at `spawned_at` has served for a while."""
        if self.rounds and spawned_at >= self._failed_at:
            self.reset()

    def reset(self) -> None:
        """Start afresh: a new release, or one that works again."""
        self.rounds = 0
        self.not_before = 0.0
        self._failed_at = 0.0

    def shift(self, gap: float) -> None:
        """The machine stood still for `gap` seconds."""
        self._failed_at += gap
        self.not_before += gap
