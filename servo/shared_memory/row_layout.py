"""The layout of a scoreboard row: its words, and the functions to count and to read.

A row is an array of 64-bit numbers ("words") that belongs to one worker. The names below are
indexes into it:

    row[row_layout.IN_FLIGHT] += 1
    row_layout.count_request(row, "GET", 200, elapsed_ns)

Counting must cost as little as possible, because each request needs it. So there is no lock (only
one thread of the worker writes its row), the bit length of a latency gives its bucket, and for the
most common case, a 200, only a single word is incremented. The sums are left to the readers, which
read much less often.

Other workers read some words before each connection (see workers/accept/gate.py). These words come
first, because then they share one cache line of 64 bytes.
"""

from __future__ import annotations

import time
from typing import Final

# Compiled modules use the constants that are Final: mypyc puts the number into the code, which
# saves looking up a global.
STATE: Final = 0  # a STATE_* code
BEAT_NS: Final = 1  # the last heartbeat, on the monotonic clock
IN_FLIGHT: Final = 2  # requests that the application is running
CONNECTIONS: Final = 3  # open connections
OLDEST_START_NS: Final = 4  # the start of the oldest request, on the monotonic clock; 0 without one
SERIAL: Final = 5  # number of the worker process; never used twice
SLOT: Final = 6  # the worker's place, 1 to N; its replacement gets the same
GENERATION: Final = 7  # 1, and one more with each reload

PID: Final = 8
BYTES_IN: Final = 9  # of request bodies
BYTES_OUT: Final = 10  # of response bodies
ACCEPTED: Final = 11  # accepted connections
SHED: Final = 12  # requests refused with 503 because of limit_concurrency
LATENCY_SUM_NS: Final = 13  # of all requests in the histogram
LOG_WARNING = 14  # entries of the error log; LOG_EXCEPTION counts those with a traceback
LOG_ERROR = 15
LOG_CRITICAL = 16
LOG_EXCEPTION = 17
LAG_US: Final = 18  # how late the event loop or poller last woke up, in microseconds
RSS_KIB = 19  # resident memory
STARTED_NS = 20  # when the row was allocated, on the monotonic clock
UTILISATION = 21  # how much of the worker was in use; see workers.utilisation
THREADS = 22  # how many threads run the application; 0 if the event loop does
THREAD_REQUESTS = 23  # requests that have a thread or wait for one; or LIKE_IN_FLIGHT

LATENCY_0 = 24  # the first bucket of the histogram of latencies; the others follow
LATENCY_BUCKETS = 20

# Final responses by method and class of status: five words (1xx to 5xx) for each method. Each
# request is counted once, so the sum is the number of requests. 1xx counts upgrades (101).
METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "other")
CLASSES = 5
METHOD_0 = 44

# The same responses by exact status. Each common status has its own word; one word for each class
# counts the other statuses. 200 has no word: `codes_in` computes its count by subtraction.
STATUS_CODES = (
    *(101, 200, 201, 202, 203, 204, 205, 206, 207, 301, 302, 303, 304, 307, 308),
    *(400, 401, 402, 403, 404, 405, 406, 408, 409, 410, 411, 412, 413, 414, 415, 416, 417),
    *(418, 421, 422, 423, 424, 426, 428, 429, 431, 451, 499),
    *(500, 501, 502, 503, 504, 505, 507, 508, 511),
)
STATUS_0 = METHOD_0 + len(METHODS) * CLASSES
STATUS_REST = STATUS_0 + len(STATUS_CODES)

# Most responses are 200s to a common method. Each of these methods has its own histogram of 200s,
# so incrementing a single word counts method, status and latency at once. The words above don't
# include these responses; the functions below that read a row add them.
OK_METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE")
OK_0 = STATUS_REST + CLASSES

# The histogram of the times that requests have waited in queues before the worker read them; only
# of those whose proxy says so (see http.queue_time). It has the same buckets as the latencies.
QUEUE_0 = OK_0 + len(OK_METHODS) * LATENCY_BUCKETS
# The same for the time that requests have waited for a thread; only of those that had to wait.
THREAD_WAIT_0 = QUEUE_0 + LATENCY_BUCKETS
QUEUE_SUM_NS = THREAD_WAIT_0 + LATENCY_BUCKETS
THREAD_WAIT_SUM_NS = QUEUE_SUM_NS + 1

ROW_WORDS = 288  # a whole number of cache lines (8 words each); the rest is spare

STATE_FREE = 0
STATE_SPAWNED = 1
STATE_BOOTING = 2
STATE_READY = 3
STATE_DRAINING = 4
STATE_EXITED = 5
STATE_NAMES = ("free", "spawned", "booting", "ready", "draining", "exited")

# The value of THREAD_REQUESTS if its number is IN_FLIGHT. This saves writing both.
LIKE_IN_FLIGHT = 1 << 32
# The unit of UTILISATION, and the time over which it is an average, in nanoseconds.
FULL_UTILISATION = 1_000_000
UTILISATION_WINDOW_NS = 5_000_000_000

# The words that only grow. They are summed over all workers, including ended ones.
COUNTERS = (
    *range(BYTES_IN, LOG_EXCEPTION + 1),
    *range(LATENCY_0, LATENCY_0 + LATENCY_BUCKETS),
    *range(METHOD_0, THREAD_WAIT_SUM_NS + 1),
)

# The clock of BEAT_NS, STARTED_NS and OLDEST_START_NS. All processes of a machine share it.
now_ns = time.monotonic_ns

# Bucket i holds latencies below 2**(16 + i) ns: 66 us, 131 us, ... 17 s; the last one holds all
# longer latencies. With powers of two, a latency's bit length gives its bucket without a search.
_FIRST_BUCKET_BITS = 16
LATENCY_BOUNDS_S = (
    *((1 << (_FIRST_BUCKET_BITS + i)) / 1e9 for i in range(LATENCY_BUCKETS - 1)),
    float("inf"),
)
# The bucket of a latency, by the bit length of its nanoseconds.
_BUCKET = tuple(min(max(bits - _FIRST_BUCKET_BITS, 0), LATENCY_BUCKETS - 1) for bits in range(65))

# Method -> the word before its five words (before, because classes of status begin with 1). Methods
# that are not in the table count as "other", because clients may invent any number of them.
_METHOD_WORD = {method: METHOD_0 + i * CLASSES - 1 for i, method in enumerate(METHODS[:-1])}
_OTHER_METHOD = METHOD_0 + (len(METHODS) - 1) * CLASSES - 1
_OK_WORD = {method: OK_0 + i * LATENCY_BUCKETS for i, method in enumerate(OK_METHODS)}
# Method -> the words that count a 200, by the bit length of the nanoseconds. The hot path writes
# `row[OK_WORDS[method][ns.bit_length()]] += 1`, which saves the call to `count_request`.
OK_WORDS = {
    method: tuple(start + bucket for bucket in _BUCKET) for method, start in _OK_WORD.items()
}
# Class and word of each status from 0 to 999. A status outside 100 to 599 counts as 5xx; so does 0,
# which means that the application sent no response.
_STATUS_CLASS = tuple(status // 100 if 100 <= status < 600 else 5 for status in range(1000))
_STATUS_WORD = tuple(
    STATUS_0 + STATUS_CODES.index(status)
    if status in STATUS_CODES
    else STATUS_REST + _STATUS_CLASS[status] - 1
    for status in range(1000)
)


def latency_bucket(ns: int) -> int:
    """The bucket of a latency, from 0 to LATENCY_BUCKETS - 1 (see LATENCY_BOUNDS_S).

    ns  the latency in nanoseconds
    """
    bucket = ns.bit_length() - _FIRST_BUCKET_BITS
    if bucket <= 0:
        return 0
    return bucket if bucket < LATENCY_BUCKETS else LATENCY_BUCKETS - 1


def count_request(row: memoryview, method: str, status: int, elapsed_ns: int) -> None:
    """Count a request that the application has answered.

    row         this worker's row
    method      the request's method
    status      the response's status; 0 if none was sent
    elapsed_ns  the duration, in nanoseconds
    """
    bits = elapsed_ns.bit_length()
    if status == 200 and method in OK_WORDS:
        row[OK_WORDS[method][bits]] += 1
    else:
        row[LATENCY_0 + _BUCKET[bits]] += 1
        count_response(row, method, status)


def count_response(row: memoryview, method: str, status: int) -> None:
    """Count a request that was answered without the application.

    row     this worker's row
    method  the request's method
    status  the response's status
    """
    row[_METHOD_WORD.get(method, _OTHER_METHOD) + _STATUS_CLASS[status]] += 1
    if status != 200:
        row[_STATUS_WORD[status]] += 1


def count_queue_time(row: memoryview, ns: int) -> None:
    """Count how long a request has waited in queues before this worker read it.

    row  this worker's row
    ns   the time in nanoseconds
    """
    row[QUEUE_0 + latency_bucket(ns)] += 1
    row[QUEUE_SUM_NS] += ns


def count_thread_wait(row: memoryview, ns: int) -> None:
    """Count how long a request has waited for a thread.

    row  this worker's row
    ns   the time in nanoseconds
    """
    row[THREAD_WAIT_0 + latency_bucket(ns)] += 1
    row[THREAD_WAIT_SUM_NS] += ns


def methods_in(row: list[int]) -> tuple[tuple[int, ...], ...]:
    """The responses of a row: for each of METHODS, by class of status."""
    counts = [row[start : start + CLASSES] for start in range(METHOD_0, STATUS_0, CLASSES)]
    for method, start in _OK_WORD.items():
        counts[METHODS.index(method)][1] += sum(row[start : start + LATENCY_BUCKETS])
    return tuple(map(tuple, counts))


def requests_in(row: list[int]) -> int:
    """The number of responses of a row: the sum of `methods_in`."""
    counts = row[METHOD_0:STATUS_0] + row[OK_0 : OK_0 + len(OK_METHODS) * LATENCY_BUCKETS]
    return sum(counts)


def latency_in(row: list[int]) -> tuple[int, ...]:
    """The histogram of a row, over all requests that the application has answered."""
    starts = (LATENCY_0, *_OK_WORD.values())
    parts = [row[start : start + LATENCY_BUCKETS] for start in starts]
    return tuple(map(sum, zip(*parts, strict=True)))


def queue_times_in(row: list[int]) -> tuple[int, ...]:
    """The histogram of a row's times in queues."""
    return tuple(row[QUEUE_0 : QUEUE_0 + LATENCY_BUCKETS])


def thread_waits_in(row: list[int]) -> tuple[int, ...]:
    """The histogram of a row's waits for a thread."""
    return tuple(row[THREAD_WAIT_0 : THREAD_WAIT_0 + LATENCY_BUCKETS])


def codes_in(row: list[int], methods: tuple[tuple[int, ...], ...]) -> tuple[int, ...]:
    """The responses of a row for each of STATUS_CODES, then for each class those with other codes.

    methods  the result of `methods_in` for the same row
    """
    codes = row[STATUS_0 : STATUS_REST + CLASSES]
    others = sum(
        count for code, count in zip(STATUS_CODES, codes, strict=False) if 200 < code < 300
    )
    successes = sum(counts[1] for counts in methods)
    # A worker counts a 2xx other than 200 in two words, one after the other. If the row was read
    # between these steps, the difference is one too small, so it might be negative.
    codes[STATUS_CODES.index(200)] = max(successes - others - codes[-CLASSES + 1], 0)
    return tuple(codes)
