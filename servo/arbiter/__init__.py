"""The arbiter: binds, forks, watches, replaces. Decisions in `supervisor`, deeds in `loop`."""
