"""Limits the requests of the whole server, however many workers it has (WSGI).

    servo examples/rate_limit.py:app -w 4

The limit is a token bucket made of two counters: `taken` has the tokens that requests have taken,
and `lapsed` those that nobody has taken while the bucket was full. The clock gives the tokens: all
processes of a machine share the monotonic clock. No worker waits for another. So two workers may
take the last token at the same moment: the limit may be exceeded by one request for each worker.
"""

import time

from servo import cluster


class RateLimit:
    """A limit for all workers together.

    name        labels the counters of this limit on /metrics
    per_second  how many requests may pass in a second
    burst       how many may pass at once after a pause
    """

    def __init__(self, name, per_second, burst):
        self._per_second = per_second
        self._burst = burst
        self._taken = cluster.counter("rate_limit_taken", limit=name)
        self._lapsed = cluster.counter("rate_limit_lapsed", limit=name)

    def allows(self):
        """Whether a request may pass now. It takes a token if so."""
        earned = int(time.monotonic() * self._per_second)
        tokens = earned - self._lapsed.value() - self._taken.value()
        if tokens > self._burst:
            self._lapsed.add(tokens - self._burst)
        if tokens < 1:
            return False
        self._taken.add()
        return True


limit = RateLimit("all", per_second=50, burst=10)


def app(environ, start_response):
    """Answer with 429 if the server gets too many requests."""
    if limit.allows():
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [b"welcome\n"]
    start_response("429 Too Many Requests", [("Content-Type", "text/plain"), ("Retry-After", "1")])
    return [b"too many requests\n"]
