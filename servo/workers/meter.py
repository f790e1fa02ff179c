"""What a finished request leaves behind: its row of the scoreboard, and an access-log line."""

from __future__ import annotations

from time import monotonic_ns
from typing import TYPE_CHECKING, Any

from servo.observe import scoreboard as board
from servo.observe.scoreboard import LATENCY_WORD

if TYPE_CHECKING:
    from collections.abc import Callable

    from servo.http.events import Request
    from servo.observe.access import AccessLog


class Meter:
    """Counts for one worker. Only the thread that owns the row (poller or loop) may call it.

    on_recycle  is called once, when the worker has served `max_requests`; 0 for never
    """

    __slots__ = ("_access", "_left", "_on_recycle", "row")

    def __init__(
        self,
        row: memoryview,
        access: AccessLog | None,
        max_requests: int,
        on_recycle: Callable[[], None],
    ) -> None:
        self.row = row
        self._access = access
        self._left = max_requests or -1
        self._on_recycle = on_recycle

    def begin(self) -> int:
        """A request goes to the application. Returns its start, monotonic nanoseconds."""
        row = self.row
        now = monotonic_ns()
        if row[board.IN_FLIGHT] == 0:
            # While something is in flight the beat tells a live loop from a blocked one.
            row[board.BEAT_NS] = now
        row[board.IN_FLIGHT] += 1
        return now

    def end(
        self,
        started_ns: int,
        request: Request,
        status: int,
        sent: int,
        remote: str,
        response_headers: Any = (),
        environ: dict[str, Any] | None = None,
    ) -> None:
        """Its response is complete, or given up. `sent` counts bytes of the body."""
        row = self.row
        now = monotonic_ns()
        elapsed = now - started_ns
        row[board.IN_FLIGHT] -= 1
        row[board.REQUESTS] += 1
        row[board.STATUS_1XX + status // 100 - 1 if 100 <= status < 600 else board.STATUS_5XX] += 1
        row[LATENCY_WORD[elapsed.bit_length()]] += 1
        row[board.LATENCY_SUM_US] += elapsed // 1000
        row[board.BYTES_OUT] += sent
        if self._access is not None:
            self._access.record(
                remote=remote,
                method=request.method,
                target=request.target,
                version=request.version,
                status=status,
                sent=sent,
                duration_ns=elapsed,
                headers=request.headers,
                response_headers=response_headers,
                environ=environ,
            )
        if self._left > 0:
            self._left -= 1
            if self._left == 0:
                self._on_recycle()

    def refused(self, status: int, method: str, target: bytes, remote: str) -> None:
        """The parser refused a request: no application has seen it."""
        self.row[board.REQUESTS] += 1
        self.row[board.STATUS_1XX + status // 100 - 1] += 1
        if self._access is not None:
            self._access.record(
                remote=remote,
                method=method or "-",
                target=target or b"-",
                version="1.1",
                status=status,
                sent=0,
                duration_ns=0,
                headers=[],
                response_headers=[],
                environ=None,
            )
