"""When a draining HTTP/2 connection may get its GOAWAY: `Drain` and `Pause`.

GOAWAY exists so that no request is lost (RFC 9113 section 6.8): it tells the client that the
connection is ending; the client opens no further streams and waits for the open ones. Two kinds of
clients lose requests all the same.

`Drain` is for those that accept no frame after a GOAWAY. In Python's h2 library, on which httpx is
built, any GOAWAY closes the connection's state machine, and the responses to open requests are
lost. Requests above the last stream that the GOAWAY names are safe: httpx sends them again on
another connection. So such a client gets its GOAWAY at a moment when no stream up to the last one
is open:

1. While the connection drains, a further request is not started. It waits, unanswered.
2. Once the earlier requests are answered, PINGs make sure that the client has read the answers:
   httpx would lose an answer that it reads together with a GOAWAY.
3. Then the GOAWAY names the last answered stream. Nothing is sent after it, because the library
   would lose the GOAWAY if it read another frame along with it.

If that moment does not come in time (a long download, server-sent events), the waiting requests are
served, and the connection ends like any other.

`Pause` is for Chromium, whose request fails (`net::ERR_FAILED`) if a GOAWAY arrives between the
choice of a connection for it and the opening of its stream. That takes a millisecond or less, but a
page with several requests under way starts one for each answer. So nothing is answered, and no
request started, for the moment in which the client reads the GOAWAY. All of them are served then.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from servo.http.h2.connection import H2Connection

# PINGs that the client must answer after the last response, for each of its tasks. httpx's tasks
# take turns at reading the connection. In its turn a task whose request waits reads one PING, and a
# task whose response has come takes one part of it: the head, 16 KiB of the body, or the end. So it
# takes as many rounds as a response has parts until its task has all of it.
PINGS = 8
# Seconds without a new request before the GOAWAY. Tasks send their next requests once they have
# their responses, and the library raises an error in a task that sends after a GOAWAY.
QUIET_S = 0.08
# Seconds after which a client that never pauses between requests gets its GOAWAY anyway.
BUSY_S = 1.5
# The longest that a request may wait for being sent again, in seconds: httpx gives up after 5.
RETRY_WAIT_S = 3.0
# Seconds between two calls of `step` while the client answers no PING.
STEP_S = 0.02

# Seconds for which a browser must have started no request, after it has read the last answer.
PAUSE_S = 0.08
# The longest that a pause may keep requests waiting, in seconds.
PAUSE_MOST_S = 0.5

# The results of `step`.
WAIT, SEND_GOAWAY, GIVE_UP = range(3)


class Drain:
    """Waits for the moment at which one connection can get its GOAWAY.

    http     the connection
    now      seconds, by the clock of `H2Connection.receive_data`
    most_s   seconds to try for at most
    fresh_s  seconds to wait for the first request, if the connection has not had one

    last_id  the last stream that is served; requests above it wait
    """

    __slots__ = (
        "_ends_at",
        "_fresh_ends_at",
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
        self._most_s = min(most_s, RETRY_WAIT_S)
        # 0 until the first request has come.
        self._ends_at = now + self._most_s if http.last_id else 0.0
        self._fresh_ends_at = now + fresh_s
        # PINGs answered since the last response went out; -1 while responses are outstanding.
        self._pings = -1
        self._heard_at = self._paused_at = now
        self._opened_at = http.opened_at
        self.last_id = http.last_id

    def lets_begin(self, number: int) -> bool:
        """Whether to serve the request with this stream number.

        A request that comes while the connection drains is served only if it is the first.
        """
        if not self.last_id:
            self.last_id = number
        return number <= self.last_id

    def step(self, now: float) -> int:
        """Decide what to do now. Call this every `STEP_S`, and whenever a PING was answered.

        now  seconds, by the clock of `H2Connection.receive_data`

        Returns WAIT, SEND_GOAWAY (with `last_id`), or GIVE_UP: end the connection like any other.
        """
        http = self._http
        if http.strict is False:
            return GIVE_UP
        if not self.last_id:
            # httpx sends a request again only if its number is above the one that GOAWAY names, so
            # a GOAWAY that names no stream would not help it.
            return SEND_GOAWAY if now >= self._fresh_ends_at else WAIT
        if not self._ends_at:
            self._ends_at = now + self._most_s
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
            tasks = 1 + len(http.streams)
            is_quiet = self._pings >= PINGS * tasks and now - self._paused_at >= QUIET_S
            if is_quiet or now - self._heard_at >= BUSY_S:
                return SEND_GOAWAY
            http.probe()
        # A client that reads only while it waits for a response sees GOAWAY at its next request.
        return SEND_GOAWAY if now >= self._ends_at else WAIT


class Pause:
    """Waits for a moment at which a client that is a browser starts no request.

    http  the connection
    now   seconds, by the clock of `H2Connection.receive_data`

    last_id  the last stream that is served before the GOAWAY; requests above it wait
    """

    __slots__ = ("_ends_at", "_http", "_quiet_since", "_seen", "last_id")

    def __init__(self, http: H2Connection, now: float) -> None:
        self._http = http
        self._ends_at = now + PAUSE_MOST_S
        # The requests at the time of the PING, and the time of its answer; 0 until then.
        self._seen = (http.opened_at, len(http.streams))
        self._quiet_since = 0.0
        self.last_id = http.last_id
        http.probe()

    def lets_begin(self, number: int) -> bool:
        """Whether to serve the request with this stream number."""
        return number <= self.last_id

    def step(self, now: float) -> int:
        """Decide what to do now: WAIT, or GIVE_UP to end the connection like any other.

        now  seconds, by the clock of `H2Connection.receive_data`
        """
        http = self._http
        seen = (http.opened_at, len(http.streams))
        if seen != self._seen:
            # A request has come, or an answer went out, which may bring the next request.
            self._seen = seen
            self._quiet_since = 0.0
            if http.heard:
                http.probe()
        elif http.heard and not self._quiet_since:
            self._quiet_since = now
        is_quiet = self._quiet_since and now - self._quiet_since >= PAUSE_S
        return GIVE_UP if is_quiet or now >= self._ends_at else WAIT
