"""Sends gunicorn's statsd metrics, under gunicorn's names, once a second.

gunicorn's workers send three datagrams for each request. In Servo only the metrics process sends
datagrams. It compares the scoreboard with its state one second ago, and sends the differences in a
few datagrams with several lines each.

gunicorn.requests                a counter
gunicorn.request.status.200      a counter for each status that occurred
gunicorn.request.duration        a timer, see `durations`
gunicorn.workers                 a gauge: worker processes
gunicorn.backlog                 a gauge: connections in the accept queues, if the user wants it
gunicorn.log.warning             a counter; also for error, critical and exception
"""

from __future__ import annotations

import logging
import math
import socket
import time
from typing import TYPE_CHECKING, NamedTuple

from servo.logs.entry_counts import LOG_LEVELS
from servo.settings.statsd_address import split_statsd_address
from servo.shared_memory.row_layout import LATENCY_BOUNDS_S, STATUS_CODES

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from servo.metrics.families import Reader, Snapshot

log = logging.getLogger("servo.error")

# Ordinary Ethernet carries a datagram of this size in one piece; statsd's documentation advises it.
DATAGRAM_BYTES = 1432
# Seconds until a failed look-up of a host name is tried again. The look-up may block.
RETRY_S = 60.0

# The scoreboard counts common statuses one by one, and the others by their class.
_CODE_NAMES = (*map(str, STATUS_CODES), *(f"{digit}xx" for digit in range(1, 6)))


class Counts(NamedTuple):
    """The counters to compare with those of one second ago."""

    requests: int
    codes: tuple[int, ...]
    latency: tuple[int, ...]
    latency_sum_us: int
    log: tuple[int, ...]


def counts_of(seen: Snapshot) -> Counts:
    """The counters for statsd from a snapshot."""
    totals = seen.totals
    entries = tuple(map(sum, zip(seen.facts.log, totals.log, strict=True)))
    return Counts(totals.requests, totals.codes, totals.latency, totals.latency_sum_us, entries)


def changes(before: Counts, after: Counts) -> Iterator[str]:
    """The lines for the differences between two counts, without prefix and tags."""
    if after.requests > before.requests:
        yield f"gunicorn.requests:{after.requests - before.requests}|c"
    for name, old, new in zip(_CODE_NAMES, before.codes, after.codes, strict=True):
        if new > old:
            yield f"gunicorn.request.status.{name}:{new - old}|c"
    grown = [new - old for old, new in zip(before.latency, after.latency, strict=True)]
    yield from durations(grown, after.latency_sum_us - before.latency_sum_us)
    for name, old, new in zip(LOG_LEVELS, before.log, after.log, strict=True):
        if new > old:
            yield f"gunicorn.log.{name}:{new - old}|c"


def durations(grown: list[int], sum_us: int) -> Iterator[str]:
    """The timer's lines.

    grown   the number of new requests in each bucket of the scoreboard's histogram
    sum_us  the sum of their durations, in microseconds

    The scoreboard doesn't keep single durations. So for each bucket with n new requests, one value
    is sent with the sample rate 1/n: the statsd server counts it n times. The value is within the
    bucket's bounds, and all values are scaled so that their sum is nearly correct.
    """
    lows = (0.0, *LATENCY_BOUNDS_S)
    values = [
        _bucket_value_ms(low, high) for low, high in zip(lows, LATENCY_BOUNDS_S, strict=False)
    ]
    guessed = sum(count * value for count, value in zip(grown, values, strict=True))
    factor = sum_us / 1000 / guessed if guessed else 1.0
    for count, value, low, high in zip(grown, values, lows, LATENCY_BOUNDS_S, strict=False):
        if count > 0:
            exact = min(max(value * factor, low * 1000), high * 1000)
            rate = f"|@{1 / count:.9g}" if count > 1 else ""
            yield f"gunicorn.request.duration:{exact:.6g}|ms{rate}"


def datagrams(lines: Iterable[str], prefix: str, tags: str) -> Iterator[bytes]:
    """Join the lines into datagrams of up to DATAGRAM_BYTES.

    lines   the lines, without prefix and tags
    prefix  put before each line, with a dot between
    tags    put after each line; "" for none
    """
    start = f"{prefix.rstrip('.')}." if prefix.rstrip(".") else ""
    end = f"|#{tags}" if tags else ""
    packet = b""
    for line in lines:
        data = f"{start}{line}{end}".encode("utf-8", "backslashreplace")
        if packet and len(packet) + 1 + len(data) > DATAGRAM_BYTES:
            yield packet
            packet = b""
        packet = packet + b"\n" + data if packet else data
    if packet:
        yield packet


class StatsdClient:
    """Sends the metrics to one statsd server.

    address  the value of the setting `statsd_host`
    prefix   put before each name, with a dot between
    tags     dogstatsd's tags, in its format: "name:value,name:value"
    backlog  whether to send gunicorn.backlog
    clock    returns monotonic seconds
    """

    def __init__(
        self,
        address: str,
        prefix: str,
        tags: str,
        backlog: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._address = split_statsd_address(address)
        self._name = address
        self._prefix = prefix
        self._tags = tags
        self._backlog = backlog
        self._clock = clock
        self._socket: socket.socket | None = None
        self._retry_at = -math.inf
        self._is_failing = False
        self._before: Counts | None = None

    def send_changes(self, reader: Reader) -> None:
        """Send the differences since the last call. The first call sends only the gauges.

        reader  takes the snapshot
        """
        seen = reader.read(processes=False, queues=self._backlog)
        after = counts_of(seen)
        lines = [f"gunicorn.workers:{len(seen.rows)}|g"]
        if self._backlog:
            waiting = sum(queue.waiting for queue in seen.queues if queue is not None)
            lines.append(f"gunicorn.backlog:{waiting}|g")
        if self._before is not None:
            lines += changes(self._before, after)
        self._before = after
        sock = self._connected()
        if sock is None:
            return
        try:
            for packet in datagrams(lines, self._prefix, self._tags):
                sock.send(packet)
        except OSError as error:
            # No process listens at the address (UDP reports this for the previous datagram), or the
            # receive queue is full. In both cases, keep the socket.
            self._report_failure(error)
            if not isinstance(error, (BlockingIOError, ConnectionRefusedError)):
                self.close()
        else:
            self._is_failing = False

    def close(self) -> None:
        """Close the socket. The next `send_changes` opens a new one."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _connected(self) -> socket.socket | None:
        if self._socket is None and self._clock() >= self._retry_at:
            try:
                self._socket = _connect(self._address)
            except OSError as error:
                self._report_failure(error)
                # Trying a Unix socket costs nothing; looking up a host name may take seconds.
                wait = 0.0 if isinstance(self._address, str) else RETRY_S
                self._retry_at = self._clock() + wait
        return self._socket

    def _report_failure(self, error: OSError) -> None:
        if not self._is_failing:
            self._is_failing = True
            log.warning("Can't send metrics to statsd at %s: %s", self._name, error)


def _connect(address: str | tuple[str, int]) -> socket.socket:
    if isinstance(address, str):
        family, kind, protocol, target = socket.AF_UNIX, socket.SOCK_DGRAM, 0, address
    else:
        host, port = address
        found = socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM)
        family, kind, protocol, _, target = found[0]  # type: ignore[assignment]
    sock = socket.socket(family, kind, protocol)
    try:
        sock.setblocking(False)
        sock.connect(target)
    except BaseException:
        sock.close()
        raise
    return sock


def _bucket_value_ms(low: float, high: float) -> float:
    if not low:
        return high * 500
    return low * 1414 if math.isinf(high) else math.sqrt(low * high) * 1000
