"""The numbers that the supervisor decides by: time limits, worker counts, retries.

Constants are the limits that no setting changes, each with its reason. `Policy` is the part of the
settings that concerns supervision. It knows nothing about how settings are read: see
`servo.arbiter.generations.policy_of`. Every generation of workers has a policy of its own, since a
reload may change any setting.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

# The arbiter looks at its workers at least this often. If a tick comes much later, the arbiter
# itself was not running, and its workers may not have been running either.
TICK_S = 1.0
# A busy scheduler delays a tick by tens of milliseconds; a paused container delays it by seconds.
TICK_SLACK_S = 0.5
# Shorter standstills move the limits silently; from this length on, the log mentions them.
STANDSTILL_S = 3.0

# SIGABRT makes a worker print its stacks; SIGKILL follows after this time.
ABORT_S = 2.0
# A worker that is still booting has no request to finish, so a stop waits no longer than this.
BOOT_STOP_S = 2.0
# A worker that has reported a failed boot has nothing left to do but exit.
BOOT_EXIT_S = 5.0
# A quick stop cuts open requests; this time is for the lifespan shutdown and atexit handlers.
QUICK_STOP_S = 5.0

# A worker that dies sooner than this after it got ready counts as failing: see `backoff`.
YOUNG_S = 5.0

# Until the first worker gets ready, the server gives up after this many rounds of crashes. A worker
# that reports why it can't boot ends the server at once: another attempt would not help.
FIRST_BOOT_ATTEMPTS = 3
# Once the canary is ready, a reload is rolled back after this many rounds of failed workers.
ROLLING_ATTEMPTS = 3


@dataclass(frozen=True, slots=True)
class Policy:
    """The settings that concern supervision. A limit of 0 is no limit, unless it says otherwise.

    workers             how many workers the configuration asks for
    timeout_s           a worker with no heartbeat for this long is killed (gunicorn: 30)
    boot_timeout_s      limit from the fork until the worker is ready
    graceful_timeout_s  limit from Retire or Stop until SIGKILL; 0 kills at once
    pre_stop_delay_s    how long the server goes on serving after it was asked to stop
    max_lifetime_s      a worker asks for a replacement this long after it got ready
    request_timeout_s   limit for one request; the arbiter enforces it only if the worker can't,
                        because its only thread, or its event loop, is blocked
    reload_batch        how many more workers than asked for may live during a reload
    capacity            rows of the scoreboard: at most this many worker processes at a time
    wait_for_change     (--reload) if the first generation is broken, wait until a file changes
    own_queues          (reuse_port) each slot has listeners of its own
    workers_of          worker class -> number of workers, if the number depends on the class
                        (workers = "auto"), which is known once a worker has imported the app
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
        """The largest number of workers that leaves rows free for their replacements."""
        return max(1, self.capacity - self.reload_batch)
