"""The arbiter's decisions: pure functions of events."""
