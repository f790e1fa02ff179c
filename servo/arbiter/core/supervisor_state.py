"""The supervisor's state as JSON values, which an upgrade passes to the next program.

The state has all data that decisions depend on. It has no actions, because their queue is empty
between two events. It has only the current generation's mold, because the other molds end with
their program.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from servo.arbiter.core.policy import Policy
from servo.arbiter.core.supervisor import Supervisor

if TYPE_CHECKING:
    from collections.abc import Mapping


def state_of(supervisor: Supervisor) -> dict[str, Any]:
    """Return the supervisor's state as JSON values, for `restored`.

    supervisor  one with neither a reload nor a stop in progress
    """
    assert supervisor.served
    assert supervisor.reload is None
    assert not supervisor.ending
    return {
        "workers": supervisor.workers.to_state(),
        "policies": {
            str(number): policy.to_state() for number, policy in supervisor.policies.items()
        },
        "target": supervisor.count.target,
        "low": supervisor.count.low,
        "generation": supervisor.generation,
        "last_generation": supervisor.last_generation,
        "paused": supervisor.paused,
        "backoff": supervisor.backoff.to_state(),
        "boot_failures": supervisor.boot_failures.to_state(),
        "memory": supervisor.memory.to_state(),
        "molds": supervisor.molds.to_state(supervisor.generation),
        "reforks": supervisor.reforks.to_state(),
        "now": supervisor._now,
    }


def restored(state: Mapping[str, Any]) -> Supervisor:
    """Continue the supervisor of the previous program, after an upgrade.

    state  the result of that program's `state_of`. Its times stay valid, because all programs on a
           machine have the same monotonic clock

    Raises KeyError, TypeError or ValueError for an invalid state.
    """
    generation = int(state["generation"])
    policies = {int(key): Policy.from_state(each) for key, each in state["policies"].items()}
    supervisor = Supervisor(policies[generation])
    supervisor.policies.clear()
    supervisor.policies.update(policies)
    supervisor.workers.restore(state["workers"])
    supervisor.count.target = int(state["target"])
    supervisor.count.low = int(state.get("low", supervisor.count.target))  # older versions lack it
    supervisor.generation = generation
    supervisor.last_generation = int(state["last_generation"])
    supervisor.served = True
    supervisor.paused = bool(state["paused"])
    supervisor.backoff.restore(state["backoff"])
    supervisor.boot_failures.restore(state["boot_failures"])
    supervisor.memory.restore(state["memory"])
    supervisor.molds.restore(state.get("molds", []))  # older versions lack it
    supervisor.reforks.restore(state.get("reforks", []))  # older versions lack it
    # The time of the upgrade counts as a standstill, which extends all limits.
    supervisor._now = float(state["now"])
    return supervisor
