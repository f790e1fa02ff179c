"""The arbiter's child processes."""
