"""The end of an HTTP/2 connection to a client that takes no frame after a GOAWAY.

GOAWAY is made so that no request is lost (RFC 9113 section 6.8): a client is told that the
connection ends, opens no further stream, and waits for the answers to those that it has. But the
state machine of Python's h2 library (httpx is built on it) is closed by any GOAWAY: what is open
then is lost to its user. Requests above the last stream that the GOAWAY names are not lost: httpx
sends those again on another connection.

So such a client gets its GOAWAY when no stream up to the last one is open. While the connection
drains, no further request is begun: it waits, unanswered. Once those before it have been answered,
the client is asked for a sign (PING) that it has read the answers: in one read with a GOAWAY, httpx
would lose them. Then the GOAWAY names the last of them, and nothing follows it: in one read with a
frame behind it the library would lose that, too.

Where that does not come about in time (a long download, server-sent events), the requests that wait
are served, and the connection ends like any other.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from servo.http.h2.connection import H2Connection

# Signs from the client after the last answer, for each of its tasks. httpx's tasks take turns to
# read the connection. A task whose request waits reads one sign in its turn; a task whose answer
# has come takes one part of it: the head, 16 KiB of a body, the end. So a task may have its whole
# answer only after as many rounds as the answer has parts.
SIGNS = 8
# Without a new request for so long: the library raises an error for what is sent behind a GOAWAY,
# and other tasks send their next requests once they have their answers.
PAUSE_S = 0.08
# A client that sends one request after the other makes no such pause: it has had its time anyway.
HURRY_S = 1.5
# The longest that a request waits to be sent again: httpx gives up after 5 s.
WAIT_S = 3.0
# How often a connection is looked at, apart from when the client gives a sign.
STEP_S = 0.02

WAIT, MOMENT, GIVE_UP = range(3)


class Drain:
    """One connection on its way to a moment without open streams.

    most_s   how long to try, in seconds
    fresh_s  how long to wait for the first request of a connection that has brought none

    last_id  the last stream that is served: later ones wait
    """

    __slots__ = (
        "_ends_at",
        "_fresh_ends_at",
        "_heard_at",
        "_http",
        "_most_s",
        "_opened_at",
        "_paused_at",
        "_signs",
        "last_id",
    )

    def __init__(self, http: H2Connection, now: float, most_s: float, fresh_s: float) -> None:
        self._http = http
        self._most_s = min(most_s, WAIT_S)
        # 0: no request has come yet.
        self._ends_at = now + self._most_s if http.last_id else 0.0
        self._fresh_ends_at = now + fresh_s
        # Since all streams up to the last one were answered; -1: they are not.
        self._signs = -1
        self._heard_at = self._paused_at = now
        self._opened_at = http.opened_at
        self.last_id = http.last_id

    def lets_begin(self, number: int) -> bool:
        """Whether this request is to be served; only the first of a connection is."""
        if not self.last_id:
            self.last_id = number
        return number <= self.last_id

    def step(self, now: float) -> int:
        """To be called every `STEP_S`, and when the client was heard, with `receive_data`'s clock.

        WAIT; MOMENT: now is the time for GOAWAY with `last_id`; GIVE_UP: it will not come.
        """
        http = self._http
        if not self.last_id:
            # A GOAWAY that names no stream would tell httpx nothing: it retries above a last one.
            return MOMENT if now >= self._fresh_ends_at else WAIT
        if not self._ends_at:
            self._ends_at = now + self._most_s
        if any(number <= self.last_id for number in http.streams):
            self._signs = -1
            return GIVE_UP if now >= self._ends_at else WAIT
        if self._signs < 0:
            self._signs = 0
            http.probe()
        elif http.heard:
            if not self._signs:
                self._heard_at = self._paused_at = now
            if http.opened_at != self._opened_at:
                self._opened_at = http.opened_at
                self._paused_at = now
            self._signs += 1
            tasks = 1 + len(http.streams)
            is_quiet = self._signs >= SIGNS * tasks and now - self._paused_at >= PAUSE_S
            if is_quiet or now - self._heard_at >= HURRY_S:
                return MOMENT
            http.probe()
        # A client that reads only what it waits for will see GOAWAY at its next request.
        return MOMENT if now >= self._ends_at else WAIT
