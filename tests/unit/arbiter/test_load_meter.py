"""The load of real processes and sockets, as autoscaling sees it."""

from __future__ import annotations

import math
import os
import socket

from servo.arbiter.core.autoscale import SAMPLE_S
from servo.arbiter.core.worker_table import WorkerEntry, WorkerState
from servo.arbiter.load_meter import LoadMeter
from servo.shared_memory import row_layout


def worker(serial: int, state: WorkerState = WorkerState.READY, capacity: int = 1) -> WorkerEntry:
    pid = os.getpid()
    return WorkerEntry(serial, serial, 1, 0.0, pid=pid, state=state, capacity=capacity)


class Rows:
    """Rows of the scoreboard, by serial."""

    def __init__(self) -> None:
        self.rows = {
            serial: memoryview(bytearray(8 * row_layout.ROW_WORDS)).cast("Q") for serial in (1, 2)
        }

    def of(self, serial: int) -> memoryview | None:
        return self.rows.get(serial)


def test_requests_and_heartbeats_come_from_the_scoreboard() -> None:
    rows = Rows()
    now = row_layout.now_ns()
    rows.rows[1][row_layout.IN_FLIGHT] = 3
    rows.rows[1][row_layout.BEAT_NS] = now + 10**9
    rows.rows[2][row_layout.IN_FLIGHT] = 1
    rows.rows[2][row_layout.BEAT_NS] = now - 10**9
    workers = [worker(1, capacity=4), worker(2, capacity=1000), worker(3, WorkerState.BOOTING)]
    load = LoadMeter(list).measure(workers, rows.of)
    assert [(each.serial, each.requests, each.capacity) for each in load.workers] == [
        (1, 3, 4),
        (2, 1, 1000),
    ]
    assert [each.blocked for each in load.workers] == [False, True]
    assert load.memory_left is not None
    assert load.worker_memory is not None
    assert load.worker_memory > 1 << 20


def test_cpu_time_is_a_share_of_the_time_between_two_looks() -> None:
    now = [100.0]
    meter = LoadMeter(list, lambda: now[0])
    rows = Rows()
    assert meter.measure([worker(1)], rows.of).workers[0].cpu == 0.0
    busy_until = os.times().user + 0.1
    while os.times().user < busy_until:
        pass
    now[0] += 1.0
    assert 0.08 < meter.measure([worker(1)], rows.of).workers[0].cpu < 5.0


def test_connections_that_wait_are_counted() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        clients = [socket.create_connection(listener.getsockname()) for _ in range(3)]
        load = LoadMeter(lambda: [listener.getsockname()]).measure([worker(1)], Rows().of)
        assert load.waiting == 3
        for client in clients:
            client.close()


def test_it_wakes_the_loop_only_with_autoscaling() -> None:
    meter = LoadMeter(list, lambda: 100.0)
    assert meter.wake_at(is_on=False) == math.inf
    meter.measure([], Rows().of)
    assert meter.wake_at(is_on=True) == 100.0 + SAMPLE_S
