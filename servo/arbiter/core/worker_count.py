"""How many workers should serve, and the bounds of this number.

Without autoscaling the number is fixed: the configuration sets it, and operators change it (TTIN,
TTOU, `servoctl scale`). With autoscaling (`-w MIN:MAX`) the configuration and operators set the
bounds, and the load sets the number (see `autoscale`).

An operator's change stays in effect after a reload, unless the configured number has changed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from servo.arbiter.core.actions import WorkerCountChanged
from servo.arbiter.core.autoscale import Autoscale

if TYPE_CHECKING:
    from servo.arbiter.core.action_queue import ActionQueue
    from servo.arbiter.core.autoscale import ServerLoad
    from servo.arbiter.core.policy import Policy


class WorkerCount:
    """The number of workers that should serve.

    target  the number, set by configuration, operator or load
    low     the minimum; the same as `target` without autoscaling
    """

    def __init__(self, policy: Policy, queue: ActionQueue) -> None:
        """Start with the configured number.

        policy  the policy of the current generation; `adopt` replaces it
        queue   collects the actions
        """
        self.target = self.low = policy.workers
        self._policy = policy
        self._queue = queue
        self._autoscale = Autoscale()

    @property
    def most(self) -> int:
        """The largest number of workers that may be asked for."""
        most, high = self._policy.most_workers, self._policy.max_workers
        return min(most, high) if high else most

    @property
    def bounds(self) -> tuple[int, int]:
        """The least and the largest number that the load may choose; equal without autoscaling."""
        return self.low, self.most if self._policy.max_workers else self.low

    @property
    def use(self) -> dict[int, float]:
        """Serial -> the used share of that worker's capacity; empty without autoscaling."""
        return self._autoscale.use

    def scale(self, target: int, why: str) -> None:
        """Change the number of workers; with autoscaling, the minimum.

        target  the new number
        why     who or what requested it, for the log
        """
        old, self.low = self.low, target
        if not self._policy.max_workers:
            self._set_target(target, why)
            return
        if target != old:
            text = f"{why}: at least {target} instead of {old} workers, at most {self.most}"
            self._queue.log("info", text)
        self._set_target(max(target, min(self.target, self.most)), why)

    def adopt(self, policy: Policy, why: str) -> None:
        """Apply the policy of another generation.

        A number that an operator or the load has set stays, unless the configured number differs
        or the number is now out of bounds.

        policy  that generation's policy
        why     the reason, for the log
        """
        before, self._policy = self._policy, policy
        if (policy.workers, policy.max_workers) != (before.workers, before.max_workers):
            self.scale(policy.workers, why)
        elif max(self.target, self.low) > self.most:
            self.scale(min(self.low, self.most), why)

    def roll_back(self, policy: Policy, *, low: int, target: int) -> None:
        """Return to the numbers before a reload.

        policy  the policy of the old generation
        low     the minimum before the reload
        target  the number before the reload. With autoscaling the load may have changed since, so
                the current number stays if it is within the bounds
        """
        self._policy = policy
        self.low = low
        if policy.max_workers:
            target = max(low, min(self.target, self.most))
        self._set_target(target, "rolled back")

    def measured(self, load: ServerLoad, now: float, *, may_shrink: bool) -> None:
        """Let a measurement of the load decide about the number.

        load        the measurement
        now         the current time, in seconds
        may_shrink  whether the number may decrease
        """
        scaling = self._autoscale.decide(
            load,
            target=self.target,
            bounds=(self.low, self.most),
            delay_s=self._policy.scale_down_delay_s,
            now=now,
            may_shrink=may_shrink,
        )
        if scaling.target != self.target:
            self._set_target(scaling.target, "autoscaling", scaling.text)
        elif scaling.text:
            self._queue.log("warning", scaling.text)

    def forget_load(self) -> None:
        """Forget the load, because autoscaling is off for a while."""
        self._autoscale.reset()

    def shift(self, gap_s: float) -> None:
        """Forget the load, because the machine stood still for `gap_s` seconds."""
        self._autoscale.shift(gap_s)

    def _set_target(self, target: int, why: str, text: str = "") -> None:
        """Change how many workers should serve.

        target  the new number
        why     who or what requested it, for the log
        text    the line for the log, if not the usual one
        """
        old, self.target = self.target, target
        if target != old:
            text = text or f"{why}: {target} worker{'s' * (target != 1)} instead of {old}"
            data = {"workers": target, "before": old}
            self._queue.record("scaled", "info", text, reason=why, data=data)
            self._queue.do(WorkerCountChanged(target, old))
