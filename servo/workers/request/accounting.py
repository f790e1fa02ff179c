"""What a finished request leaves behind: its row of the scoreboard, and an access-log line."""

from __future__ import annotations

from time import monotonic_ns
from typing import TYPE_CHECKING, Any

from servo.shared_memory import row_layout
from servo.shared_memory.row_layout import (
    BEAT_NS,
    BYTES_IN,
    BYTES_OUT,
    IN_FLIGHT,
    LATENCY_SUM_NS,
    OK_WORDS,
    ROW_WORDS,
    count_request,
    count_response,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from servo.http.events import Request
    from servo.logs.access_log import AccessLog


class Meter:
    """Counts for one worker. Only the thread that owns the row (poller or loop) may call it.

    most_requests  `on_recycle` is called once, when the worker has served so many; 0 for never
    """

    __slots__ = (
        "_access",
        "_bytes_out",
        "_in_flight",
        "_latency_ns",
        "_left",
        "_ok",
        "_on_recycle",
        "most_requests",
        "row",
    )

    def __init__(
        self,
        row: memoryview,
        access: AccessLog | None,
        most_requests: int,
        on_recycle: Callable[[], None],
    ) -> None:
        self.row = row
        self._access = access
        self.most_requests = most_requests
        self._left = most_requests or -1
        self._on_recycle = on_recycle
        # Of words that nobody else writes a copy is kept: reading one costs as much as writing it.
        self._in_flight = self._latency_ns = self._bytes_out = 0
        self._ok = [0] * ROW_WORDS

    def begin(self) -> int:
        """A request goes to the application. Returns its start, monotonic nanoseconds."""
        row = self.row
        now = monotonic_ns()
        if not self._in_flight:
            # While something is in flight the beat tells a live loop from a blocked one.
            row[BEAT_NS] = now
        row[IN_FLIGHT] = self._in_flight = self._in_flight + 1
        return now

    def take_back(self) -> None:
        """The request that was begun last is refused after all: no application has seen it."""
        self.row[IN_FLIGHT] = self._in_flight = self._in_flight - 1

    def end(
        self,
        started_ns: int,
        request: Request,
        status: int,
        sent: int,
        remote: str,
        response_headers: Any = (),
        environ: dict[str, Any] | None = None,
    ) -> int:
        """Its response is complete, or given up. `sent` counts bytes of the body.

        Returns the time, monotonic nanoseconds.
        """
        row = self.row
        now = monotonic_ns()
        elapsed = now - started_ns
        row[IN_FLIGHT] = self._in_flight = self._in_flight - 1
        if status == 200:
            # As `count_request` does, without the call.
            try:
                word = OK_WORDS[request.method][elapsed.bit_length()]
            except KeyError:
                count_request(row, request.method, status, elapsed)
            else:
                ok = self._ok
                row[word] = ok[word] = ok[word] + 1
        else:
            count_request(row, request.method, status, elapsed)
        row[LATENCY_SUM_NS] = self._latency_ns = self._latency_ns + elapsed
        row[BYTES_OUT] = self._bytes_out = self._bytes_out + sent
        if request.body:
            # What of the body came with the head; `received` counts the rest.
            row[BYTES_IN] += len(request.body)
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
        return now

    def received(self, count: int) -> None:
        """So many bytes of a request's body came after its head."""
        self.row[BYTES_IN] += count

    def shed(self, request: Request, remote: str) -> None:
        """A request was refused with 503, as too many are in flight (limit_concurrency)."""
        self.row[row_layout.SHED] += 1
        self.refused(503, request.method, request.target, remote)

    def refused(self, status: int, method: str, target: bytes, remote: str) -> None:
        """The parser refused a request: no application has seen it."""
        count_response(self.row, method, status)
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
