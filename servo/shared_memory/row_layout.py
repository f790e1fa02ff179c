"""The words of a scoreboard row: what each of them holds, how a worker counts, how a row is read.

    row[words.IN_FLIGHT] += 1
    words.count_request(row, "GET", 200, elapsed_ns)

A row is a few cache lines of 64-bit words. The first line is what a sibling's gate reads.
"""

from __future__ import annotations

import time
from typing import Final

STATE: Final = 0  # a STATE_* code
BEAT_NS: Final = 1  # the last heartbeat, on the monotonic clock
IN_FLIGHT: Final = 2  # requests being answered
CONNECTIONS: Final = 3  # open connections
OLDEST_START_NS: Final = 4  # when the oldest request in flight began, monotonic; 0 when none
SERIAL: Final = 5
SLOT: Final = 6
GENERATION: Final = 7

PID: Final = 8
BYTES_IN: Final = 9  # of request bodies
BYTES_OUT: Final = 10  # of response bodies
ACCEPTED: Final = 11  # connections ever accepted
SHED: Final = 12  # requests refused with 503 because of limit_concurrency
LATENCY_SUM_NS: Final = 13  # of all requests in the histogram
LOG_WARNING = 14  # entries of the error log; LOG_EXCEPTION counts those with a traceback
LOG_ERROR = 15
LOG_CRITICAL = 16
LOG_EXCEPTION = 17
LAG_US: Final = 18  # how late the event loop or poller woke up last
RSS_KIB = 19
STARTED_NS = 20  # when the row was allocated, monotonic

LATENCY_0 = 24  # the histogram's first bucket; the others follow
LATENCY_BUCKETS = 20

# Final responses by method and class of status: five words (1xx to 5xx) for each method. A request
# is counted here once, so that the sum is how many there were; 1xx means upgrades (101).
METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "other")
CLASSES = 5
METHOD_0 = 44

# And by status, unless it is 200, which is what is left of the 2xx: the usual ones have words of
# their own, then comes one for the rest of each class.
STATUS_CODES = (
    *(101, 200, 201, 202, 203, 204, 205, 206, 207, 301, 302, 303, 304, 307, 308),
    *(400, 401, 402, 403, 404, 405, 406, 408, 409, 410, 411, 412, 413, 414, 415, 416, 417),
    *(418, 421, 422, 423, 424, 426, 428, 429, 431, 451, 499),
    *(500, 501, 502, 503, 504, 505, 507, 508, 511),
)
STATUS_0 = METHOD_0 + len(METHODS) * CLASSES
STATUS_REST = STATUS_0 + len(STATUS_CODES)

# The commonest responses are counted in one step, by latency alone: a histogram for 200s to each of
# these methods. They are in none of the words above, and the readers below add them up.
OK_METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE")
OK_0 = STATUS_REST + CLASSES

ROW_WORDS = 248  # a whole number of cache lines (8 words each); the rest is spare

STATE_FREE = 0
STATE_SPAWNED = 1
STATE_BOOTING = 2
STATE_READY = 3
STATE_DRAINING = 4
STATE_EXITED = 5
STATE_NAMES = ("free", "spawned", "booting", "ready", "draining", "exited")

# The words that only ever grow, and are summed over all workers that ever lived.
COUNTERS = (
    *range(BYTES_IN, LOG_EXCEPTION + 1),
    *range(LATENCY_0, LATENCY_0 + LATENCY_BUCKETS),
    *range(METHOD_0, OK_0 + len(OK_METHODS) * LATENCY_BUCKETS),
)

# The clock of BEAT_NS, STARTED_NS and OLDEST_START_NS, the same in all processes of a machine.
now_ns = time.monotonic_ns

# Bucket i holds latencies below 2**(16 + i) ns: 66 us, 131 us, ... 17 s; the last takes the rest.
_FIRST_BUCKET_BITS = 16
LATENCY_BOUNDS_S = (
    *((1 << (_FIRST_BUCKET_BITS + i)) / 1e9 for i in range(LATENCY_BUCKETS - 1)),
    float("inf"),
)
# The bucket of a latency, by the bit length of its nanoseconds.
_BUCKET = tuple(min(max(bits - _FIRST_BUCKET_BITS, 0), LATENCY_BUCKETS - 1) for bits in range(65))

# The word before a method's five. What clients make up is "other".
_METHOD_WORD = {method: METHOD_0 + i * CLASSES - 1 for i, method in enumerate(METHODS[:-1])}
_OTHER_METHOD = METHOD_0 + (len(METHODS) - 1) * CLASSES - 1
_OK_WORD = {method: OK_0 + i * LATENCY_BUCKETS for i, method in enumerate(OK_METHODS)}
# Method -> the word to count a 200 in, by the bit length of its nanoseconds. A driver that spares
# the call of `count_request` writes `row[OK_WORDS[method][ns.bit_length()]] += 1`.
OK_WORDS = {
    method: tuple(start + bucket for bucket in _BUCKET) for method, start in _OK_WORD.items()
}
# By status, up to the 999 that three digits can say; what is none (0: nothing was sent) counts
# as an error of ours.
_STATUS_CLASS = tuple(status // 100 if 100 <= status < 600 else 5 for status in range(1000))
_STATUS_WORD = tuple(
    STATUS_0 + STATUS_CODES.index(status)
    if status in STATUS_CODES
    else STATUS_REST + _STATUS_CLASS[status] - 1
    for status in range(1000)
)


def latency_bucket(ns: int) -> int:
    """The histogram's bucket for a latency: 0 to LATENCY_BUCKETS - 1, see LATENCY_BOUNDS_S."""
    bucket = ns.bit_length() - _FIRST_BUCKET_BITS
    if bucket <= 0:
        return 0
    return bucket if bucket < LATENCY_BUCKETS else LATENCY_BUCKETS - 1


def count_request(row: memoryview, method: str, status: int, elapsed_ns: int) -> None:
    """Count a request that the application has answered, in its worker's own row."""
    bits = elapsed_ns.bit_length()
    if status == 200 and method in OK_WORDS:
        row[OK_WORDS[method][bits]] += 1
    else:
        row[LATENCY_0 + _BUCKET[bits]] += 1
        count_response(row, method, status)


def count_response(row: memoryview, method: str, status: int) -> None:
    """Count a request that the application has not seen."""
    row[_METHOD_WORD.get(method, _OTHER_METHOD) + _STATUS_CLASS[status]] += 1
    if status != 200:
        row[_STATUS_WORD[status]] += 1


def methods_in(row: list[int]) -> tuple[tuple[int, ...], ...]:
    """Of each method: its responses by class."""
    counts = [row[start : start + CLASSES] for start in range(METHOD_0, STATUS_0, CLASSES)]
    for method, start in _OK_WORD.items():
        counts[METHODS.index(method)][1] += sum(row[start : start + LATENCY_BUCKETS])
    return tuple(map(tuple, counts))


def requests_in(row: list[int]) -> int:
    """How many responses `methods_in` would tell of."""
    counts = row[METHOD_0:STATUS_0] + row[OK_0 : OK_0 + len(OK_METHODS) * LATENCY_BUCKETS]
    return sum(counts)


def latency_in(row: list[int]) -> tuple[int, ...]:
    """The histogram over all requests that the application has answered."""
    starts = (LATENCY_0, *_OK_WORD.values())
    parts = [row[start : start + LATENCY_BUCKETS] for start in starts]
    return tuple(map(sum, zip(*parts, strict=True)))


def codes_in(row: list[int], methods: tuple[tuple[int, ...], ...]) -> tuple[int, ...]:
    """Responses by STATUS_CODES, and by class for the rest."""
    codes = row[STATUS_0 : STATUS_REST + CLASSES]
    others = sum(
        count for code, count in zip(STATUS_CODES, codes, strict=False) if 200 < code < 300
    )
    successes = sum(counts[1] for counts in methods)
    # A worker may be between its two words for a response that is no 200.
    codes[STATUS_CODES.index(200)] = max(successes - others - codes[-CLASSES + 1], 0)
    return tuple(codes)
