"""Shared by all tests: hypothesis profiles, selected by `--hypothesis-profile`."""

from __future__ import annotations

from hypothesis import HealthCheck, settings

# No deadlines: a test never asserts how fast a shared machine is.
settings.register_profile(
    "servo", deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True
)
settings.register_profile(
    "fuzz", deadline=None, suppress_health_check=[HealthCheck.too_slow], max_examples=20_000
)
settings.load_profile("servo")
