"""The limits of the supervisor: times, worker counts, retries.

The constants are limits without a setting. `Policy` holds the settings that concern supervision;
`servo.arbiter.generations.policy_of` makes it. Every generation of workers has its own policy,
since a reload may change any setting.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

# The longest time between two ticks, the regular checks of the workers. If a tick comes much later,
# the machine or container stood still, and the workers with it.
TICK_S = 1.0
# A busy scheduler delays a tick by tens of milliseconds; a paused container delays it by seconds.
TICK_SLACK_S = 0.5
# Each standstill extends all limits. The log mentions only standstills of at least this length.
STANDSTILL_S = 3.0

# SIGABRT makes a worker print its stacks; SIGKILL follows after this time.
ABORT_S = 2.0
# A stop kills a booting worker after this time: it has no requests to finish.
BOOT_STOP_S = 2.0
# A worker that has reported a failed boot is killed after this time, if it has not exited.
BOOT_EXIT_S = 5.0
# A quick stop cuts off open requests at once. The lifespan shutdown and atexit handlers then have
# this many seconds to run.
QUICK_STOP_S = 5.0

# A worker that dies within this time after readiness counts as a failure, which delays the next
# fork (see `backoff`).
YOUNG_S = 5.0

# The workers of a generation get ready at about the same time and grow at the same rate, so
# `max_lifetime` and `max_worker_memory` would also replace them at the same time. To spread the
# replacements, each worker's lifetime is reduced by up to this share, and so is the memory by which
# the worker may grow.
LIFETIME_SPREAD = 0.1
MEMORY_SPREAD = 0.1
# The fractional parts of the multiples of this number spread evenly between 0 and 1, for any number
# of workers.
_GOLDEN_RATIO = 0.6180339887498949

# A mold must fork a worker within this many seconds. Even with gigabytes of memory a fork takes
# less than 0.1 s, so a mold that takes longer than this is stopped or stuck.
FORK_ORDER_S = 10.0
# A mold that has lived for this many seconds counts as good: if it ends, its successor is forked
# without a wait.
PROVED_MOLD_S = 30.0

# During a bake, the generation is rolled back after this many rounds of unexpected exits, if these
# are more than twice as many as before. Good releases, too, have one or two crashes.
BAKE_RESTARTS = 3
# During a bake, the generation is also rolled back if its share of 5xx responses is this much
# higher than the old generation's, and it has given at least BAKE_RESPONSES responses: with fewer,
# a difference of 5 % may be chance.
BAKE_ERRORS = 0.05
BAKE_RESPONSES = 50

# If no worker has ever been ready, the server ends after this many rounds of crashes. If a worker
# reports why it can't boot, the server ends at once: another attempt would fail in the same way.
FIRST_BOOT_ATTEMPTS = 3
# Rounds of failed workers after which a reload is rolled back, even though its canary got ready.
ROLLING_ATTEMPTS = 3


@dataclass(frozen=True, slots=True)
class Policy:
    """The settings that concern supervision. A time of 0 means no limit, unless stated otherwise.

    workers                the configured number of workers; with autoscaling, the least
    max_workers            (`-w MIN:MAX`) the most workers; 0: the number is fixed
    scale_down_delay_s     seconds for which fewer workers must be enough before one ends
    timeout_s              seconds without a heartbeat after which a worker is killed (gunicorn: 30)
    boot_timeout_s         seconds from the fork until the worker must be ready
    graceful_timeout_s     seconds from Retire or Stop until SIGKILL; 0 kills at once
    drain_websockets_s     seconds for which a retired worker keeps WebSockets and event streams
    pre_stop_delay_s       seconds for which the server still serves after a request to stop
    max_lifetime_s         seconds from readiness until the worker is replaced
    request_timeout_s      seconds for one request. The arbiter enforces this only if the worker
                           can't, because its only thread, or its event loop, is blocked
    reload_batch           the number of extra workers that may live during a reload
    capacity               rows of the scoreboard: the most worker processes at a time
    max_boot_failures      rounds of failed boots after which a server without a ready worker ends;
                           0: never
    max_memory_bytes       the memory above which a worker is replaced
    max_memory_hard_bytes  the memory above which a worker is killed
    wait_for_change        (--reload) whether to wait for a changed file if no worker can boot
    bake_time_s            seconds for which the old generation is kept after a reload, and the new
                           one is watched; 0: not at all
    preload                (preload_app) whether a mold imports the app and forks the workers
    refork_after           requests after which a worker forks the next mold; 0: never
    own_queues             (reuse_port) whether each slot has its own listeners
    app_may_control        (cluster_control) whether the application may reload and scale
    workers_of             worker class -> number of workers, for workers = "auto": the class is
                           known only when a worker has imported the app
    """

    workers: int
    max_workers: int = 0
    scale_down_delay_s: float = 60.0
    timeout_s: float = 30.0
    boot_timeout_s: float = 60.0
    graceful_timeout_s: float = 30.0
    drain_websockets_s: float = 0.0
    pre_stop_delay_s: float = 0.0
    max_lifetime_s: float = 0.0
    request_timeout_s: float = 0.0
    reload_batch: int = 1
    capacity: int = 256
    max_boot_failures: int = 0
    max_memory_bytes: int = 0
    max_memory_hard_bytes: int = 0
    wait_for_change: bool = False
    bake_time_s: float = 0.0
    preload: bool = False
    refork_after: int = 0
    own_queues: bool = False
    app_may_control: bool = False
    workers_of: Mapping[str, int] = field(default_factory=dict)

    def to_state(self) -> dict[str, Any]:
        """Return the values as JSON values, for `from_state`."""
        state = {each.name: getattr(self, each.name) for each in fields(self)}
        return {**state, "workers_of": dict(self.workers_of)}

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Policy:
        """Restore a policy of the previous program. Raises TypeError.

        state  the result of `to_state` in that program. It may be an older or a newer Servo: a
               missing field gets its default, and an unknown one is ignored
        """
        known = {each.name for each in fields(cls)}
        return cls(**{name: value for name, value in state.items() if name in known})

    @property
    def most_workers(self) -> int:
        """The largest number of workers that leaves scoreboard rows free for replacements."""
        return max(1, self.capacity - self.reload_batch)


def spread(serial: int, share: float) -> float:
    """Return the share by which to reduce a limit of a worker, from 0 to `share`.

    serial  the worker's number
    share   the largest reduction
    """
    return share * (serial * _GOLDEN_RATIO % 1)
