"""Measures of saturation, computed from the rows of the scoreboard.

The metrics, /status.json and `servoctl` all use these functions, so that their numbers agree.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from servo.shared_memory.row_layout import FULL_UTILISATION, LIKE_IN_FLIGHT, UTILISATION_WINDOW_NS

if TYPE_CHECKING:
    from collections.abc import Iterable

    from servo.shared_memory.scoreboard import RowSnapshot

# A worker with requests in flight sends a heartbeat every 5 ms. If its last one is older than this,
# the worker is blocked.
BLOCKED_NS = 50_000_000
# Other workers send fewer heartbeats: one a second with open connections, and one every 5 s without
# (see servo.workers.worker). So they count as blocked after twice this time.
_CONNECTED_NS = 2_000_000_000
_IDLE_NS = 10_000_000_000
# Operators see a worker as blocked only after this many seconds: shorter times are normal.
SHOWN_S = 1.0
_SERVING_STATES = ("ready", "draining")


class Threads(NamedTuple):
    """The threads that run the application, in one worker or in all.

    busy     threads with a request
    idle     threads without one
    waiting  requests that wait for a thread
    """

    busy: int
    idle: int
    waiting: int


def blocked_s(row: RowSnapshot, now_ns: int) -> float:
    """How long a worker has been blocked, in seconds; 0.0 if it is not.

    now_ns  monotonic nanoseconds

    A worker is blocked if its event loop, or the thread that serves its sockets, is busy with a
    single callback, request or system call. Its last heartbeat shows how long.
    """
    if row.state not in _SERVING_STATES or not row.beat_ns:
        return 0.0
    age_ns = now_ns - row.beat_ns
    without_requests_ns = _CONNECTED_NS if row.connections else _IDLE_NS
    limit_ns = BLOCKED_NS if row.in_flight else without_requests_ns
    return age_ns / 1e9 if age_ns > limit_ns else 0.0


def lag_s(row: RowSnapshot, now_ns: int) -> float:
    """How late a worker's event loop is, in seconds.

    now_ns  monotonic nanoseconds

    The worker measures it once a second. A blocked worker can't, so its lag is the time for which
    it has been blocked.
    """
    return max(row.lag_us / 1e6, blocked_s(row, now_ns))


def utilisation(row: RowSnapshot, now_ns: int) -> float:
    """How much of a worker was in use during the last 5 s, from 0.0 to 1.0.

    now_ns  monotonic nanoseconds

    The worker measures it once a second. A blocked worker can't, and is in full use, so its last
    value counts only for the rest of the 5 s.
    """
    measured = min(row.utilisation, FULL_UTILISATION) / FULL_UTILISATION
    blocked = min(blocked_s(row, now_ns) * 1e9 / UTILISATION_WINDOW_NS, 1.0)
    return blocked + (1.0 - blocked) * measured


def server_utilisation(rows: Iterable[RowSnapshot], now_ns: int) -> float | None:
    """How much of the server was in use: the mean of its ready workers; None without any.

    now_ns  monotonic nanoseconds
    """
    values = [utilisation(row, now_ns) for row in rows if row.state == "ready"]
    return sum(values) / len(values) if values else None


def threads(row: RowSnapshot) -> Threads | None:
    """The threads of a worker; None if its event loop runs the application."""
    if not row.threads:
        return None
    requests = row.in_flight if row.thread_requests == LIKE_IN_FLIGHT else row.thread_requests
    busy = min(requests, row.threads)
    return Threads(busy, row.threads - busy, requests - busy)


def server_threads(rows: Iterable[RowSnapshot]) -> Threads | None:
    """The threads of all workers that serve; None if none has threads for the application."""
    found = [threads(row) for row in rows if row.state in _SERVING_STATES]
    known = [each for each in found if each is not None]
    return Threads(*map(sum, zip(*known, strict=True))) if known else None
