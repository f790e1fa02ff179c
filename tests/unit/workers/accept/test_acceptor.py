"""Accepting, with a real listener and a driver under the test's control."""

from __future__ import annotations

import errno
import socket
from types import SimpleNamespace

import pytest

from servo.accept_errors import MAX_LOST_IN_A_ROW
from servo.shared_memory import row_layout
from servo.shared_memory.scoreboard import Scoreboard
from servo.workers.accept.accept_queue import AcceptQueue
from servo.workers.accept.acceptor import Acceptor


class Driver:
    def __init__(self):
        self.watched = []
        self.later = []
        self.accepted = []

    def watch_listener(self, queue):
        self.watched.append(queue.socket)

    def unwatch_listener(self, queue):
        assert queue.socket.fileno() != -1, "unwatched after it was closed"
        self.watched.remove(queue.socket)

    def call_later(self, delay, callback, /):
        self.later.append(callback)

    def opened(self, sock, peer, local):
        self.accepted.append(sock)

    def run_later(self):
        calls, self.later = self.later, []
        for call in calls:
            call()


@pytest.fixture
def world():
    listener = socket.create_server(("127.0.0.1", 0))
    listener.setblocking(False)
    board = Scoreboard(4)
    row = board.row(board.allocate(1, 1, 1))
    row[row_layout.STATE] = row_layout.STATE_READY
    shared = SimpleNamespace(socket=listener, close=listener.close)
    worker = SimpleNamespace(
        settings=SimpleNamespace(worker_connections=2, reuse_port=False),
        row=row,
        context=SimpleNamespace(listeners=[shared], scoreboard=board),
    )
    driver = Driver()
    clients = []

    def connect():
        clients.append(socket.create_connection(listener.getsockname()))

    yield SimpleNamespace(
        acceptor=Acceptor(worker, driver),
        driver=driver,
        listener=listener,
        queue=AcceptQueue(listener),
        connect=connect,
        row=row,
        board=board,
    )
    for sock in [*clients, *driver.accepted, listener]:
        sock.close()
    board.close()


def test_one_connection_per_wake_up(world):
    world.acceptor.start()
    world.connect()
    world.connect()
    world.acceptor.on_ready(world.queue)
    assert len(world.driver.accepted) == 1
    assert not world.driver.accepted[0].getblocking()
    assert world.row[row_layout.CONNECTIONS] == 1
    assert world.row[row_layout.ACCEPTED] == 1


def test_a_full_worker_stops_watching_until_one_ends(world):
    world.acceptor.start()
    for _ in range(3):
        world.connect()
        world.acceptor.on_ready(world.queue)
    assert len(world.driver.accepted) == 2
    assert world.driver.watched == []
    world.acceptor.closed()
    assert world.driver.watched == [world.listener]


def test_the_gate_makes_it_look_away_for_a_moment(world):
    other = world.board.row(world.board.allocate(2, 2, 1))
    other[row_layout.STATE] = row_layout.STATE_READY
    world.row[row_layout.CONNECTIONS] = 1
    world.acceptor.open_connections = 1
    world.acceptor.start()
    world.connect()
    world.acceptor.on_ready(world.queue)
    assert world.driver.accepted == []
    assert world.driver.watched == []
    world.driver.run_later()
    assert world.driver.watched == [world.listener]


def test_somebody_else_may_have_taken_it(world):
    world.acceptor.start()
    world.acceptor.on_ready(world.queue)
    assert world.driver.accepted == []


@pytest.mark.parametrize("code", [errno.EMFILE, errno.ENFILE, errno.ENOBUFS])
def test_without_descriptors_it_backs_off_and_says_so(world, caplog, code):
    world.acceptor.start()
    world.acceptor.on_ready(failing(world.queue, [code]))
    assert "Can't accept" in caplog.text
    assert world.driver.watched == []
    world.driver.run_later()
    assert world.driver.watched == [world.listener]


# accept(2), "Error handling": Linux passes errors that are pending on the new connection.
CLIENT_LOST = [
    *("ECONNABORTED", "EPERM", "EPROTO", "ENETDOWN", "EHOSTUNREACH", "EHOSTDOWN"),
    *("ENOPROTOOPT", "ETIMEDOUT", "ENONET", "EOPNOTSUPP", "ENETUNREACH"),
]


def failing(queue, codes):
    """A queue whose first accepts fail with these error codes."""
    accept, codes = queue._accept, list(codes)

    def fail_first():
        if codes:
            raise OSError(codes.pop(0), "accept fails")
        return accept()

    queue._accept = fail_first
    return queue


@pytest.mark.parametrize("name", CLIENT_LOST)
def test_a_client_that_is_lost_while_it_is_accepted_is_nobodys_end(world, name):
    world.acceptor.start()
    world.connect()
    queue = failing(world.queue, [getattr(errno, name)])
    world.acceptor.on_ready(queue)
    assert world.driver.accepted == []
    assert world.driver.watched == [world.listener]
    world.acceptor.on_ready(queue)
    assert len(world.driver.accepted) == 1


def test_clients_that_are_lost_without_end_make_it_pause(world, caplog):
    world.acceptor.start()
    queue = failing(world.queue, [errno.EPERM] * (MAX_LOST_IN_A_ROW + 1))
    for _ in range(MAX_LOST_IN_A_ROW - 1):
        world.acceptor.on_ready(queue)
    assert world.driver.watched == [world.listener]
    world.acceptor.on_ready(queue)
    assert world.driver.watched == []
    assert "Can't accept" in caplog.text
    world.driver.run_later()
    assert world.driver.watched == [world.listener]


def test_stopping_goes_on_behind_a_client_that_is_lost(world):
    queue = failing(world.queue, [errno.EPROTO, errno.ECONNABORTED])
    world.acceptor.start()
    world.connect()
    world.connect()
    world.acceptor._watch(False)
    world.acceptor._queues = [queue]
    world.acceptor.stop(take_queued=True)
    assert len(world.driver.accepted) == 2


def test_stopping_takes_what_is_queued_and_closes(world):
    world.acceptor.start()
    world.connect()
    world.connect()
    world.connect()
    world.acceptor.stop(take_queued=True)
    assert len(world.driver.accepted) == 3
    assert world.driver.watched == []
    assert world.listener.fileno() == -1
    world.acceptor.closed()
    assert world.driver.watched == []


def test_a_connection_that_ends_while_stopping_does_not_start_it_again(world):
    def opened(sock, peer, local):
        world.driver.accepted.append(sock)
        world.acceptor.closed()

    world.driver.opened = opened
    world.acceptor.start()
    world.connect()
    world.acceptor.stop(take_queued=True)
    assert world.driver.watched == []
    assert world.acceptor.open_connections == 0


def test_retiring_leaves_the_queue_to_the_siblings(world):
    copy = world.listener.dup()
    world.acceptor.start()
    world.connect()
    world.acceptor.stop(take_queued=False)
    assert world.driver.accepted == []
    sock, _ = copy.accept()
    sock.close()
    copy.close()
