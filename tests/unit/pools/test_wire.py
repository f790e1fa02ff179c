"""Messages between a caller and a pool process, over a pair of sockets."""

from __future__ import annotations

import os
import socket

import pool_jobs as jobs
import pytest

from servo.pools import wire
from servo.pools.errors import NotPicklable


def round_trip(pair, value):
    packed = wire.pack(value, "it")
    wire.send(pair[0], wire.RESULT, packed)
    packed.close()
    message = wire.receive(pair[1])
    assert message.kind == wire.RESULT
    return wire.unpack(message.data)


@pytest.mark.parametrize("size", [0, 1, 4095, 4096, wire.MAX_INLINE_BYTES, 1 << 20])
def test_a_buffer_of_any_size_arrives_and_is_writable(pair, size):
    data = bytearray(os.urandom(size))
    view = memoryview(round_trip(pair, jobs.Block(data)).data)
    assert bytes(view) == bytes(data)
    if size:
        assert not view.readonly
        view[0] ^= 255
        assert view[0] == data[0] ^ 255


def test_a_read_only_buffer_stays_read_only(pair):
    for size in (5000, 1 << 20):
        view = memoryview(round_trip(pair, jobs.Block(memoryview(bytes(size)))).data)
        assert view.readonly


def test_small_data_needs_no_descriptor_and_large_data_no_copy_in_the_packet():
    small, large = wire.pack(b"x" * 1000, "it"), wire.pack(b"x" * (1 << 20), "it")
    assert (small.fd, large.inline) == (-1, b"")
    assert os.fstat(large.fd).st_size > 1 << 20
    with pytest.raises(PermissionError):
        os.write(large.fd, b"y")  # sealed
    with pytest.raises(PermissionError):
        os.ftruncate(large.fd, 10)
    large.close()


def test_a_memfd_without_seals_is_refused(pair):
    fd = os.memfd_create("unsealed")
    os.write(fd, bytes(100))
    wire.send(pair[0], wire.RESULT, wire.Packed(b"", fd))
    os.close(fd)
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(wire.WireError, match="without seals"):
        wire.receive(pair[1])
    assert len(os.listdir("/proc/self/fd")) == before


def test_the_end_of_a_connection(pair):
    pair[0].close()
    assert wire.receive(pair[1]) is None


def test_a_reset_does_not_hide_the_last_message(pair):
    wire.send(pair[1], wire.CREDIT, credit=3)  # never read, so closing is a reset
    wire.send(pair[0], wire.END)
    pair[0].close()
    assert wire.receive(pair[1]).kind == wire.END
    assert wire.receive(pair[1]) is None


def test_a_task_brings_its_label_its_flags_and_its_lifeline(pair):
    ours, theirs = os.pipe()
    packed = wire.pack(bytes(1 << 20), "it")
    wire.send(
        pair[0],
        wire.TASK,
        packed,
        credit=4,
        key=1 << 63,
        label="m." + "ä" * 100,
        flags=wire.LIFELINE | wire.STREAM,
        lifeline=ours,
    )
    packed.close()
    message = wire.receive(pair[1])
    assert (message.kind, message.credit, message.key) == (wire.TASK, 4, 1 << 63)
    assert message.flags == wire.LIFELINE | wire.STREAM
    assert message.label.startswith("m.ä")
    assert wire.unpack(message.data) == bytes(1 << 20)
    os.write(theirs, b"!")
    assert os.read(message.fd, 1) == b"!"
    for fd in (ours, theirs, message.fd):
        os.close(fd)


def test_a_short_message_is_refused(pair):
    pair[0].send(b"abc")
    with pytest.raises(wire.WireError, match="a message of 3 bytes"):
        wire.receive(pair[1])


def test_a_wrong_table_is_refused():
    data = bytearray(wire.pack([1, 2], "it").inline)
    with pytest.raises(wire.WireError):
        wire.unpack(memoryview(data + b"!"))
    data[0] = 200
    with pytest.raises(wire.WireError):
        wire.unpack(memoryview(data))


def test_a_deeply_nested_value():
    value: list[object] = []
    for _ in range(100_000):
        value = [value]
    with pytest.raises(NotPicklable, match="nested too deeply"):
        wire.pack(value, "it")
    while value:  # take it apart: the collector of 3.10 would recurse
        value = value[0]  # type: ignore[assignment]


def test_the_peer_is_this_process(pair):
    assert wire.peer(pair[0]) == (os.getpid(), os.geteuid())


def test_names_for_operators():
    import functools

    assert wire.label_of(jobs.add) == "pool_jobs.add"
    assert wire.label_of(functools.partial(jobs.add, 1)) == "pool_jobs.add"
    assert wire.label_of(jobs.Block(b"")).endswith("Block")


def test_methods_and_classes_can_be_tasks():
    wire.check_function(jobs.Block)
    wire.check_function(jobs.Explosive().__setstate__)
    wire.check_function(len)
    wire.check_function(jobs.count, is_stream=True)


def test_a_full_socket_is_an_error_and_not_a_part_of_a_message(pair):
    pair[0].setblocking(False)

    def fill():
        for _ in range(1000):
            wire.send(pair[0], wire.ITEM, wire.Packed(bytes(30_000), -1))

    with pytest.raises(BlockingIOError):
        fill()
    while True:
        try:
            message = wire.receive(pair[1])
        except BlockingIOError:
            break
        assert len(message.data) == 30_000
        pair[1].setblocking(False)


def test_the_system_must_tell_the_peer(pair, monkeypatch):
    monkeypatch.delattr(socket, "SO_PEERCRED")
    with pytest.raises(OSError, match="does not tell"):
        wire.peer(pair[0])
