"""The encoding of messages, and messages that are refused."""

from __future__ import annotations

import socket
import struct
import threading
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from servo.ipc.channel import (
    MAX_QUEUED_APP_BYTES,
    Channel,
    ChannelClosed,
    SharedChannel,
    channel_pair,
)
from servo.ipc.messages import (
    FAILURE,
    PLAIN,
    REQUEST,
    AppMessage,
    LogRecords,
    MessageError,
    Ready,
    Retire,
    decode,
    decode_value,
    encode,
    encode_value,
    to_json,
)

number = st.integers(0, 0xFFFF_FFFF)
json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=10,
)


def message(topic: bytes = b"t", payload: bytes = b"1") -> AppMessage:
    return AppMessage.make(PLAIN, (1, 2), 3, topic, payload)


@given(
    st.integers(PLAIN, FAILURE), number, number, number, number, st.text(max_size=60), json_values
)
def test_what_is_sent_is_what_arrives(
    kind: int, slot: int, serial: int, target: int, tie: int, topic: str, value: Any
) -> None:
    name = topic.encode("utf-8", "ignore")
    sent = AppMessage.make(kind, (slot, serial), target, name, to_json(value), tie)
    got = decode(encode(sent))
    assert got == sent
    assert isinstance(got, AppMessage)
    assert got[:5] == (kind, slot, serial, target, tie)
    assert got.topic == name.decode()
    assert got.value() == value


@given(st.binary(max_size=60).filter(lambda data: data[:1] != b"{"))
def test_any_bytes_are_a_message_or_refused(data: bytes) -> None:
    try:
        found = decode(data)
    except MessageError:
        return
    assert encode(found) == data


def test_a_truncated_message_is_refused() -> None:
    data = encode(message(b"topic", b"[1,2]"))
    for end in range(data.index(b"[")):
        with pytest.raises(MessageError, match="not a message"):
            decode(data[:end])


def test_a_wrong_encoding_raises_a_message_error() -> None:
    with pytest.raises(MessageError, match="not UTF-8"):
        _ = message(topic=b"\xff").topic
    with pytest.raises(MessageError, match="not UTF-8"):
        message(payload=b"\xff").value()
    for payload in (b"", b"{", b"[" * 100_000):
        with pytest.raises(MessageError, match="not JSON"):
            message(payload=payload).value()


def test_servos_own_messages_and_those_of_applications_share_a_channel() -> None:
    ours, theirs = channel_pair()
    assert ours.queue(encode(message(payload=b"1")))
    ours.send(Retire("scaled down"))
    assert ours.queue(encode(message(payload=b"2")))
    ours.flush()
    assert theirs.receive() == [message(payload=b"1"), Retire("scaled down"), message(payload=b"2")]
    ours.close()
    theirs.close()


def test_applications_can_not_fill_the_room_for_servos_own_messages() -> None:
    ours, theirs = channel_pair()
    data = encode(message(payload=b"1" * 10_000))
    queued = 0
    while ours.queue(data):
        queued += 1
    assert queued == MAX_QUEUED_APP_BYTES // (len(data) + 4)
    ours.send(Retire("scaled down"))  # raises nothing
    received: list[Any] = []
    while len(received) <= queued:
        received += theirs.receive()
        ours.flush()
    assert received[-1] == Retire("scaled down")
    ours.close()
    theirs.close()


def test_one_receive_has_a_limit_of_reads() -> None:
    one, other = socket.socketpair()
    channel = Channel(one)
    frame = struct.pack("!I", 1000) + encode(message(payload=b"1" * (1000 - 19)))
    other.setblocking(False)
    other.sendall(frame * 100)
    first = channel.receive(reads=1)
    assert len(first) == (1 << 16) // len(frame)
    assert len(first) + len(channel.receive(reads=1)) == 100
    channel.close()
    other.close()


def test_threads_share_a_channel() -> None:
    ours, theirs = channel_pair()
    shared = SharedChannel(ours)
    each = 500

    def send(slot: int) -> None:
        for value in range(each):
            data = AppMessage.make(REQUEST, (slot, slot), 0, b"", to_json(value)).data
            while not shared.queue(data):
                shared.flush()
            if value % 50 == 0:
                shared.send(Ready())
            shared.flush()

    threads = [threading.Thread(target=send, args=(slot,)) for slot in range(4)]
    for thread in threads:
        thread.start()
    received: list[Any] = []
    while len(received) < 4 * (each + each // 50):
        received += theirs.receive()
        shared.flush()
    for thread in threads:
        thread.join()
    for slot in range(4):
        values = [m.value() for m in received if isinstance(m, AppMessage) and m.slot == slot]
        assert values == list(range(each))
    theirs.close()
    with pytest.raises(ChannelClosed):
        shared.send(Ready())
    shared.close()


@pytest.mark.parametrize(
    "text",
    [
        '{"type": "BootFailed", "kind": [], "text": "x"}',
        '{"type": "BootFailed", "kind": "app", "text": 5}',
        '{"type": "Ready", "worker_class": null}',
        '{"type": "ReplaceMe", "reason": {}}',
        '{"type": "ReplaceMe", "reason": "recycled", "detail": 1}',
        '{"type": "Report", "number": [], "values": {}}',
        '{"type": "Report", "number": true, "values": {}}',
        '{"type": "Report", "number": 1, "values": []}',
        '{"type": "LogRecords", "records": 7}',
        '{"type": "LogRecords", "records": [7]}',
        '{"type": "LogRecords", "records": [[1, "info"]]}',
        '{"type": "LogRecords", "records": [[1, "info", []]]}',
        '{"type": "LogRecords", "records": [[NaN, "info", "x"]]}',
        '{"type": "LogRecords", "records": [[1e300, "info", "x"]]}',
        '{"type": "LogRecords", "records": [], "lost": "x"}',
        '{"type": "Stop", "quick": 1}',
        '{"type": []}',
        '{"type": "Ready", "worker_class": ' + "[" * 100_000,
    ],
)
def test_a_field_of_another_type_is_refused(text: str) -> None:
    """A worker that an attacker controls can send any message, and the arbiter reads it."""
    with pytest.raises(MessageError):
        decode(text.encode())


def test_log_records() -> None:
    good = LogRecords([[1.5, "info", "x"], [2, "error", "y"]], 3)
    assert decode(encode(good)) == good


@pytest.mark.parametrize("value", [b"", b"\0", b"{}", b"\xff" * 1000, bytes(range(256))])
def test_bytes_arrive_as_they_are(value: bytes) -> None:
    assert decode_value(encode_value(value)) == value
    message = AppMessage.make(REQUEST, (1, 1), 2, b"topic", encode_value(value))
    assert decode(message.data).value() == value  # type: ignore[union-attr]
    assert encode_value(bytearray(value)) == encode_value(memoryview(value)) == b"\0" + value


@pytest.mark.parametrize("value", [None, "\0", {"a": [1, 2.5]}, "text"])
def test_values_in_json_begin_with_no_zero_byte(value: Any) -> None:
    assert encode_value(value) == to_json(value)
    assert decode_value(encode_value(value)) == value


@pytest.mark.parametrize("payload", [b"", b"{", b"\xff", b"[" * 100_000])
def test_payloads_that_are_no_value(payload: bytes) -> None:
    with pytest.raises(MessageError):
        decode_value(payload)
