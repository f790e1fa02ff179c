"""The channel: frames in any pieces, full queues, and a peer that disappears."""

from __future__ import annotations

import json
import os
import selectors
import socket
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from servo.ipc.channel import (
    MAX_FRAME_BYTES,
    MAX_QUEUED_BYTES,
    Channel,
    ChannelClosed,
    ChannelOverflow,
    channel_pair,
    frame_of,
)
from servo.ipc.messages import (
    BootFailed,
    Booting,
    Draining,
    Message,
    Ready,
    ReopenLogs,
    ReplaceMe,
    Retire,
    Stop,
    encode,
)

text = st.text(max_size=200)
messages = st.one_of(
    st.just(Booting()),
    st.just(Ready()),
    st.just(Draining()),
    st.just(ReopenLogs()),
    st.builds(BootFailed, st.sampled_from(["app", "boot"]), text),
    st.builds(ReplaceMe, text, text),
    st.builds(Retire, text),
    st.builds(Stop, st.booleans()),
)


def frame(message: Message) -> bytes:
    payload = encode(message)
    return struct.pack("!I", len(payload)) + payload


def selectors_ready(channel: Channel) -> bool:
    with selectors.DefaultSelector() as selector:
        selector.register(channel, selectors.EVENT_READ)
        return bool(selector.select(0))


@pytest.fixture
def pair():
    ours, theirs = channel_pair()
    yield ours, theirs
    ours.close()
    theirs.close()


@pytest.fixture
def raw():
    """A channel, and a plain socket at its other end."""
    one, other = socket.socketpair()
    channel = Channel(one)
    yield channel, other
    channel.close()
    other.close()


def test_messages_arrive_in_order_in_both_directions(pair):
    arbiter, worker = pair
    worker.send(Booting())
    worker.send(Ready())
    arbiter.send(Retire("scaled down"))
    assert arbiter.receive() == [Booting(), Ready()]
    assert worker.receive() == [Retire("scaled down")]
    assert arbiter.receive() == []


def test_descriptors_are_closed_on_exec_and_do_not_block(pair):
    for channel in pair:
        assert not os.get_blocking(channel.fileno())
        assert not os.get_inheritable(channel.fileno())


@given(st.lists(messages, max_size=6), st.data())
def test_any_split_of_the_bytes_gives_the_same_messages(sent, data):
    stream = b"".join(frame(message) for message in sent)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=10)))
    one, other = socket.socketpair()
    channel = Channel(one)
    received = []
    for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True):
        other.sendall(stream[start:end])
        received += channel.receive()
    assert received == sent
    other.close()
    with pytest.raises(ChannelClosed):
        channel.receive()
    channel.close()


def test_one_byte_at_a_time(raw):
    channel, other = raw
    received = []
    for byte in frame(Stop(quick=True)):
        assert received == []
        other.sendall(bytes([byte]))
        received += channel.receive()
    assert received == [Stop(quick=True)]


def test_what_the_socket_does_not_take_is_queued_and_flushed(pair):
    ours, theirs = pair
    long = BootFailed("app", "x" * 500_000)
    ours.send(long)
    ours.send(long)
    ours.send(Ready())
    assert ours.wants_write
    assert not ours.flush()
    received = []
    while len(received) < 3:
        received += theirs.receive()
        ours.flush()
    assert received == [long, long, Ready()]
    assert not ours.wants_write
    assert ours.flush()


def test_a_full_queue_refuses_the_next_message_only(pair):
    ours, theirs = pair
    count = 0
    message = BootFailed("app", "x" * 300_000)
    overflow = None
    while overflow is None and count < 100:
        try:
            ours.send(message)
            count += 1
        except ChannelOverflow as error:
            overflow = str(error)
    assert "does not read" in (overflow or "")
    assert count * 300_000 < MAX_QUEUED_BYTES + 1_000_000
    received = []
    while len(received) < count:
        received += theirs.receive()
        ours.flush()
    assert received == [message] * count
    assert theirs.receive() == []


def test_a_message_that_is_too_long_is_not_sent(pair):
    ours, theirs = pair
    with pytest.raises(ChannelOverflow, match=str(MAX_FRAME_BYTES)):
        ours.send(BootFailed("app", "x" * MAX_FRAME_BYTES))
    ours.send(Ready())
    assert theirs.receive() == [Ready()]


def test_messages_before_the_end_are_returned_before_it_is_raised(pair):
    ours, theirs = pair
    ours.send(BootFailed("boot", "no"))
    ours.close()
    assert theirs.receive() == [BootFailed("boot", "no")]
    for _ in range(2):
        with pytest.raises(ChannelClosed, match="is closed"):
            theirs.receive()


def test_an_end_in_the_middle_of_a_message_says_so(raw):
    channel, other = raw
    other.sendall(frame(Ready()) + frame(Ready())[:-1])
    other.close()
    assert channel.receive() == [Ready()]
    with pytest.raises(ChannelClosed, match="middle of a message"):
        channel.receive()


def test_sending_to_a_closed_end_raises(pair):
    ours, theirs = pair
    theirs.close()
    with pytest.raises(ChannelClosed):
        ours.send(Ready())
    assert not ours.wants_write


def test_an_end_that_closed_without_reading_is_closed_too(pair):
    ours, theirs = pair
    ours.send(Ready())
    theirs.send(Draining())
    theirs.close()
    assert ours.receive() == [Draining()]
    with pytest.raises(ChannelClosed):
        ours.receive()


@pytest.mark.parametrize(
    ("garbage", "reason"),
    [
        (b"GET / HTTP/1.1\r\n\r\n", "announced a message of"),
        (struct.pack("!I", MAX_FRAME_BYTES + 1), "announced a message of"),
        (struct.pack("!I", 4) + b"null", "not a message"),
        (struct.pack("!I", 0), "not a message"),
        (struct.pack("!I", 3) + b"\xff\xfe\xfd", "not a message"),
    ],
)
def test_garbage_cuts_the_peer_off_after_its_valid_messages(raw, garbage, reason):
    channel, other = raw
    other.sendall(frame(Ready()) + garbage)
    assert channel.receive() == [Ready()]
    # A selector reports the socket as readable once more, so its owner gets the error.
    assert selectors_ready(channel)
    with pytest.raises(ChannelClosed, match=reason):
        channel.receive()
    with pytest.raises(BrokenPipeError):
        other.sendall(b"more")


def test_a_closed_channel_raises_and_closes_again(pair):
    ours, _ = pair
    ours.close()
    ours.close()
    assert ours.fileno() == -1
    with pytest.raises(ChannelClosed):
        ours.receive()


def test_wait_writable_says_whether_the_socket_has_room(pair):
    ours, _ = pair
    assert ours.wait_writable(0)
    ours.send(BootFailed("app", "x" * 1_000_000))
    assert not ours.wait_writable(0)


@given(data=st.binary(max_size=50), split=st.integers(0, 50))
def test_the_next_program_goes_on_in_the_middle_of_a_frame(data: bytes, split: int) -> None:
    ours, theirs = channel_pair()
    raw = socket.socket(fileno=os.dup(theirs.fileno()))
    frame = frame_of(Retire(data.hex()))
    raw.sendall(frame[:split])
    before = ours.receive()
    state = json.loads(json.dumps(ours.to_state(lambda fd: fd)))
    after = Channel.from_state(state, os.dup)
    ours.close()
    raw.sendall(frame[split:])
    assert before + after.receive() == [Retire(data.hex())]
    after.send(Stop())
    assert theirs.receive() == [Stop()]
    for end in (after, theirs, raw):
        end.close()


def test_queued_bytes_go_on_to_the_next_program() -> None:
    ours, theirs = channel_pair()
    number = 0
    while not ours.wants_write:
        ours.send(Retire(f"{number} {'x' * 10_000}"))
        number += 1
    assert ours.unsent
    after = Channel.from_state(ours.to_state(lambda fd: fd), os.dup)
    ours.close()
    assert after.wants_write
    got: list[Message] = []
    while len(got) < number:
        got += theirs.receive()
        after.flush()
    assert [message.reason.split()[0] for message in got] == [*map(str, range(number))]
    after.close()
    theirs.close()
