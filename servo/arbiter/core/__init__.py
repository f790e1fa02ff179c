"""The arbiter's decisions, as pure functions of events."""
