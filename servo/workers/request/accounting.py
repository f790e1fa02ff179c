"""Accounting: counts each request in the worker's row of the scoreboard, and logs it.

A row is shared memory (see `shared_memory.row_layout`). The arbiter, the other workers' gates and
the metrics read it at any time, so counting needs no message and no system call. Only one thread
writes a row: the poller's, or the event loop's.
"""

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
    count_queue_time,
    count_request,
    count_response,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from servo.http.events import Request
    from servo.logs.access_log import AccessLog


class Meter:
    """Counts the requests of one worker. Only the thread that owns the row may call it.

    row           the worker's row of the scoreboard
    access        the access log; None if there is none
    max_requests  after this number of requests `on_recycle` is called, once; 0 for never
    on_recycle    asks for a replacement of this worker
    """

    __slots__ = (
        "_access",
        "_bytes_out",
        "_in_flight",
        "_latency_ns",
        "_ok",
        "_on_recycle",
        "_requests_left",
        "max_requests",
        "row",
    )

    def __init__(
        self,
        row: memoryview,
        access: AccessLog | None,
        max_requests: int,
        on_recycle: Callable[[], None],
    ) -> None:
        self.row = row
        self._access = access
        self.max_requests = max_requests
        self._requests_left = max_requests or -1
        self._on_recycle = on_recycle
        # Copies of fields in the row. Reading the row would cost as much as writing it, and only
        # this object writes these fields.
        self._in_flight = self._latency_ns = self._bytes_out = 0
        self._ok = [0] * ROW_WORDS

    def begin(self) -> int:
        """Count a request in flight. Returns its start, in monotonic nanoseconds."""
        row = self.row
        now = monotonic_ns()
        if not self._in_flight:
            # Other workers' gates consider this worker blocked if it has requests in flight and an
            # old heartbeat. An idle worker's heartbeat may be seconds old, so send one now.
            row[BEAT_NS] = now
        row[IN_FLIGHT] = self._in_flight = self._in_flight + 1
        return now

    def cancel(self) -> None:
        """Undo `begin`, because the request was refused before the application saw it."""
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
        """Count and log a request after its response, complete or not.

        started_ns        the start, from `begin`
        request           the request
        status            the response's status; 0 if there was no response
        sent              bytes of the response body
        remote            the client's address for the access log
        response_headers  the fields of the response, for the access log
        environ           the WSGI environ, for the access log

        Returns the time, in monotonic nanoseconds, so the caller need not read the clock again.
        """
        row = self.row
        now = monotonic_ns()
        elapsed = now - started_ns
        row[IN_FLIGHT] = self._in_flight = self._in_flight - 1
        if status == 200:
            # The common case: the code of `count_request`, without the cost of a call.
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
            # This part of the body came with the head; `received` has counted the rest.
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
        if self._requests_left > 0:
            self._requests_left -= 1
            if self._requests_left == 0:
                self._on_recycle()
        return now

    def received(self, count: int) -> None:
        """Count bytes of a request body that came after the head.

        count  number of bytes
        """
        self.row[BYTES_IN] += count

    def queued(self, ns: int) -> None:
        """Count how long a request has waited in queues before this worker read it.

        ns  the time in nanoseconds
        """
        count_queue_time(self.row, ns)

    def shed(self, request: Request, remote: str) -> None:
        """Count and log a request refused with 503: too many are in flight (`limit_concurrency`).

        request  the request
        remote   the client's address for the access log
        """
        self.row[row_layout.SHED] += 1
        self.refused(503, request.method, request.target, remote)

    def refused(self, status: int, method: str, target: bytes, remote: str) -> None:
        """Count and log a request that was refused before the application saw it.

        status  the status of the response
        method  the request's method; "" if the request could not be parsed
        target  the request's target; b"" if the request could not be parsed
        remote  the client's address for the access log
        """
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
