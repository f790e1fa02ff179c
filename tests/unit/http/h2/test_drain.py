"""The time of a draining connection's GOAWAY, in bytes, with a fake clock."""

from __future__ import annotations

import pytest
from h2frames import GET, NO_ERROR, Reader, data, head, hello, ping, settings, window

from servo.http.events import Request
from servo.http.h2.connection import H2Connection
from servo.http.h2.drain import (
    BROWSER_WAIT_S,
    BUSY_S,
    GIVE_UP,
    PINGS,
    RETRY_WAIT_S,
    SEND_GOAWAY,
    STEP_S,
    WAIT,
    Drain,
)
from servo.http.h2.frames import ClientKind
from servo.http.h2.stream import H2Stream
from servo.http.limits import H2Limits, Limits

PLAIN = [(b"content-type", b"text/plain")]
# What the h2 library sends first.
SPELLED_OUT = {1: 4096, 2: 0, 4: 65535, 5: 16384, 3: 100, 6: 65536}
CHROMIUM = {1: 65536, 2: 0, 4: 6291456, 6: 262144}


class Leaving:
    """A connection that has begun to drain, and a client that may answer PINGs."""

    def __init__(
        self, received: bytes = b"", *, answers: bool = True, browser: bool = False
    ) -> None:
        self.http = H2Connection(Limits(), H2Limits())
        self.http.start()
        self.now = 100.0
        self.client = Reader()
        self.answers = answers
        self.streams: dict[int, H2Stream] = {}
        self.say(hello(CHROMIUM if browser else SPELLED_OUT) + received)
        self.drain = Drain(self.http, self.now, 5.0, 1.0)

    def say(self, received: bytes) -> None:
        events = self.http.receive_data(received, self.now)
        while self.http.more:
            events += self.http.receive_more(self.now)
        for stream, event in events:
            if isinstance(event, Request):
                assert stream is not None
                self.streams[stream.id] = stream
        self.listen()

    def listen(self) -> None:
        self.client.feed(self.http.output())

    def answer(self, number: int) -> None:
        self.streams[number].send_response(200, PLAIN, b"ok")
        self.listen()

    def step(self) -> int:
        """The next one, after the client has answered."""
        self.listen()
        pings, self.client.pings = self.client.pings, []
        if self.answers:
            self.say(b"".join(ping(payload, ack=True) for payload in pings))
        self.now += STEP_S
        return self.drain.step(self.now)

    def outcome(self, most_s: float = 10.0) -> tuple[int, float]:
        """What comes of it, and after how long."""
        began = self.now
        while (outcome := self.step()) == WAIT:
            assert self.now - began < most_s, "nothing comes of it"
        return outcome, self.now - began


def test_who_is_taken_for_such_a_client() -> None:
    for values, kind in (
        (SPELLED_OUT, ClientKind.H2_LIBRARY),
        ({**SPELLED_OUT, 4: 1 << 20, 8: 0}, ClientKind.H2_LIBRARY),
        (CHROMIUM, ClientKind.CHROMIUM),
        ({**CHROMIUM, 3: 1000, 0x1A2A: 7}, ClientKind.CHROMIUM),
        ({}, ClientKind.ORDINARY),
        ({3: 100, 4: 1 << 20, 2: 0}, ClientKind.ORDINARY),  # curl
        ({1: 65536, 2: 0, 4: 131072, 5: 16384}, ClientKind.ORDINARY),  # Firefox
        ({2: 0, 4: 4194304, 6: 10485760}, ClientKind.ORDINARY),  # Go
    ):
        http = H2Connection(Limits(), H2Limits())
        http.start()
        http.receive_data(hello(values), 0.0)
        assert http.client is kind, values
        # Only its first word counts.
        http.receive_data(settings(SPELLED_OUT), 0.0)
        assert http.client is kind, values


def test_goaway_waits_for_open_streams() -> None:
    leaving = Leaving(head(1) + head(3))
    for _ in range(10):
        assert leaving.step() == WAIT
    leaving.answer(1)
    assert leaving.step() == WAIT
    assert leaving.client.pings == []
    leaving.answer(3)
    outcome, after_s = leaving.outcome()
    assert outcome == SEND_GOAWAY
    assert after_s < 1.0
    assert leaving.client.goaways == []


def test_later_requests_are_not_begun_and_may_come_again() -> None:
    leaving = Leaving(head(1))
    assert not leaving.drain.lets_begin(3)
    leaving.say(head(3) + head(5))
    leaving.answer(1)
    outcome, _ = leaving.outcome()
    assert outcome == SEND_GOAWAY
    leaving.http.finish_after(leaving.drain.last_id)
    leaving.listen()
    assert leaving.client.goaways == [(1, NO_ERROR)]
    assert leaving.http.over
    assert leaving.http.streams == {}
    # Nothing follows the GOAWAY, whatever comes.
    frames = len(leaving.client.frames)
    leaving.say(head(7) + data(3, b"x") + window(3, 1))
    assert len(leaving.client.frames) == frames


def test_a_client_gives_several_signs_without_a_request_in_between() -> None:
    leaving = Leaving(head(1))
    leaving.answer(1)
    number = 3
    for _ in range(PINGS + 2):
        assert leaving.step() == WAIT
        leaving.say(head(number))
        number += 2
    outcome, after_s = leaving.outcome()
    assert outcome == SEND_GOAWAY
    # Each request that waits is a task, and they take turns.
    assert after_s >= min(PINGS * len(leaving.streams) * STEP_S, BUSY_S) * 0.9


def test_a_client_that_never_pauses_has_its_time() -> None:
    leaving = Leaving(head(1))
    leaving.answer(1)
    began = leaving.now
    number = 3
    while leaving.step() == WAIT:
        leaving.say(head(number))
        number += 2
        assert leaving.now - began < 2 * BUSY_S
    assert leaving.now - began >= BUSY_S


@pytest.mark.parametrize("used", [True, False])
def test_a_client_that_reads_nothing(used: bool) -> None:
    """It will, with its next request: then that is above the last stream."""
    leaving = Leaving(head(1), answers=False)
    if used:
        leaving.answer(1)
        outcome, after_s = leaving.outcome()
        assert outcome == SEND_GOAWAY
        assert after_s == pytest.approx(RETRY_WAIT_S, abs=0.1)
    else:
        assert leaving.outcome()[0] == GIVE_UP


def test_an_endless_stream_ends_the_attempt() -> None:
    leaving = Leaving(head(1))
    outcome, after_s = leaving.outcome()
    assert outcome == GIVE_UP
    assert after_s == pytest.approx(RETRY_WAIT_S, abs=0.1)


def test_a_new_connection_may_bring_its_first_request() -> None:
    leaving = Leaving()
    for _ in range(5):
        assert leaving.step() == WAIT
    assert leaving.drain.lets_begin(1)
    assert not leaving.drain.lets_begin(3)
    leaving.say(head(1) + head(3, GET))
    assert leaving.step() == WAIT
    leaving.answer(1)
    assert leaving.outcome()[0] == SEND_GOAWAY
    assert leaving.drain.last_id == 1


def test_a_new_connection_that_brings_none() -> None:
    outcome, after_s = Leaving(browser=True).outcome()
    assert outcome == SEND_GOAWAY
    assert after_s == pytest.approx(1.0, abs=0.1)


def test_a_new_connection_of_httpx_gets_more_time_for_its_first_request() -> None:
    """httpx would lose it after a GOAWAY without a stream."""
    outcome, after_s = Leaving().outcome()
    assert outcome == SEND_GOAWAY
    assert after_s == pytest.approx(RETRY_WAIT_S, abs=0.1)
    leaving = Leaving()
    while leaving.now < 100.0 + RETRY_WAIT_S - 2 * STEP_S:
        assert leaving.step() == WAIT
    assert leaving.drain.lets_begin(1)
    leaving.say(head(1))
    leaving.answer(1)
    assert leaving.outcome()[0] == SEND_GOAWAY
    assert leaving.drain.last_id == 1


def test_a_client_that_turns_out_to_be_another() -> None:
    """Its SETTINGS come after the drain has begun."""
    http = H2Connection(Limits(), H2Limits())
    http.start()
    drain = Drain(http, 0.0, 5.0, 1.0)
    assert drain.step(STEP_S) == WAIT
    http.receive_data(hello({3: 100}), 2 * STEP_S)
    assert drain.step(3 * STEP_S) == GIVE_UP


def test_a_browser_gets_its_goaway_when_no_stream_is_open() -> None:
    """Chromium sends the requests above the last stream again, and those that it had begun."""
    leaving = Leaving(head(1) + head(3), browser=True)
    assert leaving.drain.lets_begin(3)
    assert not leaving.drain.lets_begin(5)
    for number in (1, 3):
        assert leaving.step() == WAIT
        leaving.answer(number)
        leaving.say(head(number + 4))
    outcome, after_s = leaving.outcome()
    assert outcome == SEND_GOAWAY
    assert after_s <= 3 * STEP_S
    leaving.http.finish_after(leaving.drain.last_id)
    leaving.listen()
    assert leaving.client.goaways == [(3, NO_ERROR)]
    assert leaving.http.over


def test_a_browser_must_have_read_the_last_response() -> None:
    leaving = Leaving(head(1), answers=False, browser=True)
    leaving.answer(1)
    for _ in range(5):
        assert leaving.step() == WAIT
    leaving.answers = True
    leaving.say(b"".join(ping(payload, ack=True) for payload in leaving.client.pings))
    assert leaving.drain.step(leaving.now) in (WAIT, SEND_GOAWAY)
    assert leaving.outcome()[0] == SEND_GOAWAY


def test_a_browser_does_not_wait_long_for_an_open_stream() -> None:
    outcome, after_s = Leaving(head(1), browser=True).outcome()
    assert outcome == GIVE_UP
    assert after_s == pytest.approx(BROWSER_WAIT_S, abs=2 * STEP_S)


def test_an_earlier_ping_is_no_sign_that_goaway_was_read() -> None:
    leaving = Leaving()
    leaving.http.probe()
    leaving.listen()
    before = leaving.client.pings.pop()
    leaving.http.announce()
    leaving.say(ping(before, ack=True))
    assert not leaving.http.closing
    leaving.say(ping(leaving.client.pings.pop(), ack=True))
    assert leaving.http.closing
