"""The arbiter: binds the sockets, and forks, watches and replaces the workers.

`core.supervisor` decides, and `loop` performs its decisions.
"""
