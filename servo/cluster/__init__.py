"""Messages, counters, locks and schedules that all processes of a server share.

    from servo import cluster

Each module of this package has one part of it: messages, counters, locks, schedules, control.
"""

from __future__ import annotations

from typing import Any

from servo.cluster import messages as _messages
from servo.cluster.control import reload, retire, scale
from servo.cluster.counters import Counter, counter
from servo.cluster.locks import Lock, LockTimeout, lock
from servo.cluster.messages import (
    ARBITER,
    ClusterOverflow,
    MessageTooLong,
    NoSuchWorker,
    RequestFailed,
    RequestTimeout,
    Sender,
    Stats,
    WorkerInfo,
    WorkerLost,
    arequest,
    broadcast,
    is_draining,
    on_message,
    request,
    send,
    stats,
    workers,
)
from servo.cluster.schedules import cron, every
from servo.errors import ClusterError
from servo.shared_memory.counters import CountersFull

__all__ = [
    "send",
    "broadcast",
    "request",
    "arequest",
    "on_message",
    "workers",
    "slot",
    "pid",
    "is_draining",
    "stats",
    "Sender",
    "WorkerInfo",
    "Stats",
    "ClusterError",
    "MessageTooLong",
    "NoSuchWorker",
    "ClusterOverflow",
    "WorkerLost",
    "RequestFailed",
    "RequestTimeout",
    "ARBITER",
    "counter",
    "Counter",
    "CountersFull",
    "lock",
    "Lock",
    "LockTimeout",
    "every",
    "retire",
    "reload",
    "scale",
    "cron",
]

slot: int  # this worker's slot
pid: int  # this process's pid


def __getattr__(name: str) -> Any:
    # A worker changes these values when it begins, so they can't be plain attributes of the module.
    if name in ("slot", "pid"):
        return getattr(_messages.backend(), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
