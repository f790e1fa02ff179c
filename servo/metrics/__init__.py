"""Collects metrics from shared memory and the kernel, and exports them.

scoreboard, arbiter_facts, accept_queue, procfs -> families -> exporter (prometheus) | statsd
"""
