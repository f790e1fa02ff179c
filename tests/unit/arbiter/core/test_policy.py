"""The policy as JSON values, for an upgrade."""

from __future__ import annotations

import json

import pytest

from servo.arbiter.core.policy import Policy


def test_a_policy_comes_back_as_it_was() -> None:
    policy = Policy(3, max_lifetime_s=60.0, own_queues=True, workers_of={"sync": 2, "async": 4})
    assert Policy.from_state(json.loads(json.dumps(policy.to_state()))) == policy


def test_the_policy_of_an_older_or_a_newer_servo() -> None:
    state = Policy(3).to_state()
    del state["reload_batch"]
    state["of_the_future"] = True
    assert Policy.from_state(state) == Policy(3)
    with pytest.raises(TypeError):
        Policy.from_state({})
