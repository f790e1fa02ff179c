"""Roll-backs: return to the old generation, because an operator asks or the new one is bad.

During a reload, the old generation still exists. After the reload, it is kept for `bake_time` (see
`bake`). After that time, a roll-back is refused.

The protocol `Server` avoids an import cycle: it declares the part of the supervisor that is used
here.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Protocol

from servo.arbiter.core.actions import AdoptGeneration
from servo.arbiter.core.exit_reasons import ExitReason

if TYPE_CHECKING:
    from servo.arbiter.core.action_queue import ActionQueue
    from servo.arbiter.core.backoff import Backoff
    from servo.arbiter.core.bake import BakeMonitor
    from servo.arbiter.core.molds import Molds
    from servo.arbiter.core.policy import Policy
    from servo.arbiter.core.reload import Decision, Reload
    from servo.arbiter.core.worker_count import WorkerCount
    from servo.arbiter.core.worker_lifecycle import WorkerLifecycle
    from servo.arbiter.core.worker_table import WorkerTable


class Server(Protocol):
    """The part of `Supervisor` that a roll-back uses. `Supervisor` has the docstrings."""

    generation: int
    count: WorkerCount
    reload: Reload | None
    bakes: BakeMonitor
    molds: Molds
    backoff: Backoff
    workers: WorkerTable
    lifecycle: WorkerLifecycle
    queue: ActionQueue

    @property
    def policy(self) -> Policy: ...

    @property
    def ending(self) -> bool: ...

    def carry_out(self, decision: Decision | None, now: float) -> None: ...


def look_at_bake(server: Server, now: float) -> None:
    """Roll back to the old generation if the current one is bad. Called once a second.

    server  the supervisor
    now     the current time, in seconds
    """
    problem = server.bakes.look(now)
    if not problem or server.ending:
        return
    bad = server.generation
    refusal = _refusal(server)
    if refusal:
        # Don't stop a reload in progress: it may bring the repaired release.
        server.bakes.current = None
        text = f"generation {bad} is bad: {problem}; it can't be rolled back: {refusal}"
        server.queue.log("error", text)
        return
    _return_to_old(server, problem, now)
    reload = server.reload
    if reload is not None:
        # The reload goes on, because it may bring the repaired release. If it fails, a roll-back
        # returns to the generation that has just become the current one.
        reload.rebase(server.generation, target=server.count.target, low=server.count.low)
        text = f"reload ({reload.cause}) goes on: it replaces generation {server.generation}"
        server.queue.log("info", text)


def roll_back(server: Server, why: str, now: float) -> str:
    """Give up the reload in progress; without one, return to the old generation.

    server  the supervisor
    why     the reason, for the log
    now     the current time, in seconds

    Returns "", or why a roll-back is not possible.
    """
    if server.reload is not None:
        give_up_reload(server, why, now)
        return ""
    refusal = _refusal(server)
    if not refusal:
        _return_to_old(server, why, now)
    return refusal


def _return_to_old(server: Server, why: str, now: float) -> None:
    bake = server.bakes.current
    assert bake is not None
    old, bad = bake.old_generation, server.generation
    server.bakes.current = None
    server.generation = old
    server.backoff.reset()
    server.queue.do(AdoptGeneration(old))
    text = f"generation {bad} is rolled back to generation {old}: {why}"
    server.queue.record("rolled_back", "error", text, reason=why, generation=old)
    policy = server.policy
    if not policy.preload:
        text = "workers import the code that is on disk, because preload_app is off"
        server.queue.log("warning", f"only the settings of generation {old} return: {text}")
    for worker in server.workers.live():
        if worker.generation == bad and not worker.ready:
            server.lifecycle.retire(worker, ExitReason.ROLLED_BACK, now)
    server.count.adopt(policy, "rolled back")


def _refusal(server: Server) -> str:
    """Return why the old generation can't return, or ""."""
    bake = server.bakes.current
    if bake is None:
        return (
            f"there is nothing to roll back to: only generation {server.generation} is kept; "
            "with bake_time, the previous one is kept for a while after a reload"
        )
    if not server.molds.can_fork(bake.old_generation):
        return f"the mold of generation {bake.old_generation} has ended, and its code with it"
    return ""


def give_up_reload(server: Server, why: str, now: float, *, outcome: str = "") -> None:
    """Roll back the reload in progress, if there is one, and forget a reload that waits for it.

    server   the supervisor
    why      the reason, for the log
    now      the current time, in seconds
    outcome  which workers serve now, for the log, if not the old ones
    """
    if server.reload is not None:
        server.reload.next_cause = ""
        server.carry_out(replace(server.reload.give_up(why), outcome=outcome), now)
