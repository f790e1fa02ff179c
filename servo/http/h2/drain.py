"""`Drain`: finds the right moment for the GOAWAY of a draining HTTP/2 connection.

GOAWAY should prevent lost requests (RFC 9113 section 6.8): it announces the end of the connection.
The client then opens no further streams, but waits for the open ones. But two kinds of clients lose
requests if a GOAWAY comes while streams are open:

* In Python's h2 library, which httpx uses, any GOAWAY closes the connection's state machine, and
  the responses to open requests are lost.
* In Chromium a request fails (`net::ERR_FAILED`) if Chromium has already chosen the connection for
  it, but reads a GOAWAY before it has opened the stream. If no stream is open, the GOAWAY ends the
  connection at once; then Chromium sends such a request again on another connection.

A GOAWAY has the number of the last accepted stream, and both clients send later requests again. So
we send these clients the GOAWAY at a moment when none of the accepted streams is open:

1. While the connection drains, further requests are held: they are not started.
2. After the earlier requests are answered, PINGs show when the client has read the answers. One
   PING is enough for Chromium. httpx would lose an answer that it reads together with a GOAWAY.
3. Then the GOAWAY is sent, with the number of the last answered stream. No frame follows it: if the
   h2 library reads another frame together with the GOAWAY, it loses the GOAWAY.

If this moment does not come in time (a long download, server-sent events), the held requests are
served, and the connection ends like those of other clients.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from servo.http.h2.frames import ClientKind

if TYPE_CHECKING:
    from servo.http.h2.connection import H2Connection

# How many PINGs httpx must answer, for each of its tasks, before we assume that the tasks have read
# their responses. The tasks read the connection in turns. In each turn, a task that waits for a
# response reads one PING, and a task with a response reads one part of it: the head, 16 KiB of the
# body, or the end. So a task needs as many turns as its response has parts.
PINGS = 8
# Seconds without a new request before the GOAWAY. httpx's tasks send their next requests right
# after their responses, and a task that sends after a GOAWAY gets an error.
QUIET_S = 0.08
# Seconds after which the GOAWAY is sent even if the client never pauses between requests.
BUSY_S = 1.5
# A request is held for at most this many seconds: httpx gives up after 5 s.
RETRY_WAIT_S = 3.0
# The same for Chromium. It would wait for longer, but a user is looking at the page.
BROWSER_WAIT_S = 0.5
# Seconds between two calls of `step` while the client answers no PING.
STEP_S = 0.02

# The results of `step`.
WAIT, SEND_GOAWAY, GIVE_UP = range(3)


class Drain:
    """Finds the right moment for the GOAWAY of one connection.

    http     the connection
    now      seconds, by the clock of `H2Connection.receive_data`
    most_s   how many seconds to wait for the right moment
    fresh_s  seconds to wait for the first request, if the connection has not had one. For httpx, at
             least `RETRY_WAIT_S`

    last_id  the last stream to serve; requests with a higher number are held
    """

    __slots__ = (
        "_began_at",
        "_ends_at",
        "_fresh_s",
        "_heard_at",
        "_http",
        "_most_s",
        "_opened_at",
        "_paused_at",
        "_pings",
        "last_id",
    )

    def __init__(self, http: H2Connection, now: float, most_s: float, fresh_s: float) -> None:
        self._http = http
        self._most_s = most_s
        # When to give up, in seconds; 0 before the first request.
        self._ends_at = self._end_after(now) if http.last_id else 0.0
        self._began_at = now
        self._fresh_s = fresh_s
        # How many PINGs were answered since the last response; -1 while responses are outstanding.
        self._pings = -1
        self._heard_at = self._paused_at = now
        self._opened_at = http.opened_at
        self.last_id = http.last_id

    def lets_begin(self, number: int) -> bool:
        """Whether to serve the request with this stream number.

        While the connection drains, only the very first request of the connection is served.
        """
        if not self.last_id:
            self.last_id = number
        return number <= self.last_id

    def step(self, now: float) -> int:
        """Decide about the GOAWAY. Call this every `STEP_S`, and after each answer to a PING.

        now  seconds, by the clock of `H2Connection.receive_data`

        Returns WAIT, SEND_GOAWAY (with `last_id`), or GIVE_UP: end the connection like any other.
        """
        http = self._http
        if http.client is ClientKind.ORDINARY:
            return GIVE_UP
        if not self.last_id:
            # No request has arrived yet, so wait. httpx sends a request again only if its number is
            # above that in the GOAWAY, so an early GOAWAY would lose its first request.
            return SEND_GOAWAY if now >= self._began_at + self._first_wait_s() else WAIT
        if not self._ends_at:
            self._ends_at = self._end_after(now)
        if any(number <= self.last_id for number in http.streams):
            self._pings = -1
            return GIVE_UP if now >= self._ends_at else WAIT
        if self._pings < 0:
            self._pings = 0
            http.probe()
        elif http.heard:
            if not self._pings:
                self._heard_at = self._paused_at = now
            if http.opened_at != self._opened_at:
                self._opened_at = http.opened_at
                self._paused_at = now
            self._pings += 1
            if http.client is ClientKind.CHROMIUM:
                return SEND_GOAWAY
            tasks = 1 + len(http.streams)
            is_quiet = self._pings >= PINGS * tasks and now - self._paused_at >= QUIET_S
            if is_quiet or now - self._heard_at >= BUSY_S:
                return SEND_GOAWAY
            http.probe()
        # Some clients read only while they wait for a response. They read the GOAWAY with their
        # next request.
        return SEND_GOAWAY if now >= self._ends_at else WAIT

    def _first_wait_s(self) -> float:
        """Seconds to wait for the first request."""
        # httpx connects only when it has a request to send, and treats a GOAWAY with the number 0
        # as one without a number. So an early GOAWAY would lose a request that has just been sent.
        # A busy client may need over a second between its SETTINGS and its first request.
        if self._http.client is ClientKind.H2_LIBRARY:
            return max(self._fresh_s, RETRY_WAIT_S)
        return self._fresh_s

    def _end_after(self, now: float) -> float:
        is_browser = self._http.client is ClientKind.CHROMIUM
        return now + min(self._most_s, BROWSER_WAIT_S if is_browser else RETRY_WAIT_S)
