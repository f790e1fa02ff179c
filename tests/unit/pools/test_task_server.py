"""The loop of a pool process, in the test's own process, one task at a time."""

from __future__ import annotations

import os
import socket

import pool_jobs as jobs
import pytest

from servo.pools import wire
from servo.pools.board import BUSY, IDLE, Row
from servo.pools.errors import RemoteError
from servo.pools.listening import listen
from servo.pools.task_server import (
    RemoteTraceback,
    TaskServer,
    pack_error,
    with_traceback,
)


@pytest.fixture
def row():
    return Row(memoryview(bytearray(512)).cast("Q"))


@pytest.fixture
def server(tmp_path, row):
    listener = listen(str(tmp_path / "p.sock"), 4)
    ours, theirs = os.pipe()
    server = TaskServer(listener, ours, row)
    server.path = str(tmp_path / "p.sock")
    server.order = theirs
    yield server
    listener.close()
    os.close(ours)
    if server.order is not None:
        os.close(theirs)


def connect(server):
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    sock.connect(server.path)
    return sock


def send_task(sock, function, *args, **options):
    packed = wire.pack((function, args, {}), "it")
    wire.send(sock, wire.TASK, packed, label=wire.label_of(function), **options)
    packed.close()


def test_a_task_begins_and_has_a_result(server, row):
    with connect(server) as sock:
        send_task(sock, jobs.add, 1, 2)
        server.serve_waiting()
        result = wire.receive(sock)
        assert (result.kind, wire.unpack(result.data)) == (wire.RESULT, 3)
        assert wire.receive(sock) is None
    assert row.state == IDLE
    assert row.totals.outcomes == (1, 0, 0, 0)


def test_nothing_waits(server, row):
    server.serve_waiting()
    assert row.started == 0


def test_the_loop_ends_when_the_arbiter_closes_the_pipe(server):
    os.close(server.order)
    server.order = None
    server.run()


def test_a_task_given_up_before_it_begins_is_skipped(server, row, tmp_path):
    with connect(server) as sock:
        send_task(sock, jobs.touch, str(tmp_path / "trace"))
    server.serve_waiting()
    assert not (tmp_path / "trace").exists()
    assert (row.key, row.totals.outcomes) == (0, (0, 0, 1, 0))


def test_a_lifeline_that_is_cut_before_the_task_begins(server, row, tmp_path):
    ours, theirs = os.pipe()
    with connect(server) as sock:
        trace = str(tmp_path / "trace")
        send_task(sock, jobs.touch, trace, flags=wire.LIFELINE, lifeline=ours)
        os.close(ours)
        os.close(theirs)
        with pytest.MonkeyPatch.context() as patch:
            # The kernel sends SIGIO only to a later cut; the test's process must not risk it.
            patch.setattr("servo.pools.task_server.fcntl.fcntl", lambda *_args: 0)
            patch.setattr("servo.pools.task_server.signal.signal", lambda *_args: None)
            server.serve_waiting()
        assert wire.receive(sock) is None
    assert not os.path.exists(trace)
    assert row.totals.outcomes == (0, 0, 1, 0)


def test_a_caller_that_leaves_during_its_task(server, row):
    sock = connect(server)
    send_task(sock, jobs.add, 1)
    real = wire.pack

    def pack(*args):
        sock.close()
        return real(*args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("servo.pools.task_server.wire.pack", pack)
        server.serve_waiting()
    assert row.totals.outcomes == (0, 0, 1, 0)
    assert row.state == IDLE


def test_another_user_is_refused(server, row, monkeypatch, caplog):
    monkeypatch.setattr("servo.pools.wire.peer", lambda _sock: (7, os.geteuid() + 1))
    with connect(server) as sock:
        send_task(sock, jobs.add, 1)
        server.serve_waiting()
        assert wire.receive(sock) is None
    assert "may not use this pool" in caplog.text
    assert row.started == 0


def test_a_caller_that_sends_no_task(server, row, monkeypatch, caplog):
    monkeypatch.setattr("servo.pools.task_server._TASK_S", 0.01)
    with connect(server):
        server.serve_waiting()
    assert "sent no task" in caplog.text
    connect(server).close()
    server.serve_waiting()
    with connect(server) as sock:
        wire.send(sock, wire.CREDIT)
        server.serve_waiting()
        assert wire.receive(sock) is None
    assert row.started == 0


def test_a_stream_waits_for_credit(server, row, tmp_path):
    trace = tmp_path / "trace"
    with connect(server) as sock:
        send_task(sock, jobs.count_into, str(trace), 5, flags=wire.STREAM, credit=2)
        wire.send(sock, wire.CREDIT, credit=2)
        wire.send(sock, wire.CREDIT, credit=9)
        server.serve_waiting()
        kinds = [wire.receive(sock).kind for _ in range(6)]
    assert kinds == [*[wire.ITEM] * 5, wire.END]
    assert trace.read_text().split() == ["0", "1", "2", "3", "4", "closed"]


def test_a_stream_ends_when_its_caller_leaves(server, row, tmp_path):
    trace = tmp_path / "trace"
    sock = connect(server)
    send_task(sock, jobs.count_into, str(trace), 5, flags=wire.STREAM, credit=1)
    real = wire.receive

    def receive(target):
        message = real(target)
        if message is not None and message.kind == wire.TASK:
            sock.shutdown(socket.SHUT_WR)
        return message

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("servo.pools.task_server.wire.receive", receive)
        patch.setattr("servo.pools.task_server.select.POLLRDHUP", 0)
        server.serve_waiting()
    sock.close()
    assert trace.read_text().split() == ["0", "1", "closed"]
    assert row.totals.outcomes == (0, 0, 1, 0)


def test_what_goes_wrong_in_a_task_is_its_answer(server, row):
    with connect(server) as sock:
        send_task(sock, jobs.fail, "no")
        server.serve_waiting()
        answer = wire.receive(sock)
        assert answer.kind == wire.ERROR
        error = with_traceback(wire.unpack(answer.data))
    assert isinstance(error, ValueError)
    assert isinstance(error.__cause__, RemoteTraceback)
    assert row.state != BUSY
    assert row.totals.outcomes == (0, 1, 0, 0)


class Mute(Exception):  # noqa: N818
    def __str__(self):
        raise RuntimeError("no text")

    def __reduce__(self):
        raise TypeError("not picklable")


def test_errors_that_can_not_be_packed_are_replaced():
    error = with_traceback(wire.unpack(memoryview(bytearray(pack_error(Mute(), Mute()).inline))))
    assert isinstance(error, RemoteError)
    assert "Mute (its text can't be made: RuntimeError)" in str(error)


def test_a_large_error_goes_through_memory():
    packed = pack_error(ValueError("x" * 100_000), ValueError("y"))
    assert packed.fd >= 0
    packed.close()


def test_an_error_without_memory(monkeypatch):
    def no_memory(_parts):
        raise OSError("no memory")

    monkeypatch.setattr("servo.pools.wire._in_memory", no_memory)
    packed = pack_error(ValueError("x" * 40_000), ValueError("y"))
    error = wire.unpack(memoryview(bytearray(packed.inline)))[0]
    assert isinstance(error, RemoteError)
    assert isinstance(with_traceback("nonsense"), wire.WireError)


def test_a_result_that_can_not_be_sent_is_an_error_and_not_silence(server, row, monkeypatch):
    real = wire.send

    def send(sock, kind, *args, **options):
        if kind == wire.RESULT:
            raise OSError("too many references")
        real(sock, kind, *args, **options)

    with connect(server) as sock:
        send_task(sock, jobs.add, 1)
        monkeypatch.setattr("servo.pools.task_server.wire.send", send)
        server.serve_waiting()
        answer = wire.receive(sock)
    assert answer.kind == wire.ERROR
    error = with_traceback(wire.unpack(answer.data))
    assert "can't be sent: too many references" in str(error)
    assert row.totals.outcomes == (0, 1, 0, 0)


def test_a_process_that_can_not_answer_at_all_ends(server, row, monkeypatch):
    """The caller sends the task again if the key is gone, so the key must stay."""

    class Ended(Exception):  # noqa: N818
        pass

    def send(*_args, **_options):
        raise OSError("no memory")

    def leave(code):
        raise Ended(code)

    with connect(server) as sock:
        send_task(sock, jobs.add, 1, key=77)
        monkeypatch.setattr("servo.pools.task_server.wire.send", send)
        monkeypatch.setattr("servo.pools.task_server.os._exit", leave)
        with pytest.raises(Ended):
            server.serve_waiting()
    assert row.key == 77
