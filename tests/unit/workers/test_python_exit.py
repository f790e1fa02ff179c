"""The waits at a worker's end, and their limits, tested in child processes."""

from __future__ import annotations

import atexit
import logging
import multiprocessing
import os
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from unit.workers.fakes import Child, World

from servo.ipc.messages import ReopenLogs, Stop
from servo.shared_memory import row_layout
from servo.workers import python_exit
from servo.workers.python_exit import (
    PythonExit,
    grace_end_ns,
    register_exit_functions,
    running_threads,
)
from servo.workers.threads import WorkerThread

Begin = Callable[[int, int], object]


@pytest.mark.parametrize(("timeout_s", "own_s"), [(30.0, 29.5), (5.0, 4.5), (1.0, 0.9), (0.0, 0.0)])
def test_a_worker_is_done_shortly_before_it_would_be_killed(timeout_s: float, own_s: float) -> None:
    assert grace_end_ns(timeout_s, 7_000) == pytest.approx(own_s * 1e9 + 7_000)


def test_threads_that_python_waits_for() -> None:
    over = threading.Event()
    threads = [
        threading.Thread(target=over.wait, name="plain"),
        threading.Thread(target=over.wait, name="daemon", daemon=True),
        WorkerThread("ours", over.wait),
    ]
    for thread in threads:
        thread.start()
    try:
        names = {thread.name for thread in running_threads()}
        assert names & {"plain", "daemon", "ours", "MainThread"} == {"plain"}
    finally:
        over.set()
        for thread in threads:
            thread.join()


class Ending:
    """A child that comes to its end, and the test as its arbiter."""

    def __init__(self, begin: Begin, *, left_s: float, quick_s: float) -> None:
        self.world = World()

        def work(read: int, write: int) -> int:
            self.world.arbiter.close()
            logging.getLogger("servo.error").handlers = [
                logging.StreamHandler(os.fdopen(os.dup(write), "w"))
            ]
            python_exit.QUICK_S = quick_s
            begin(read, write)
            PythonExit(
                self.world.context.mailbox,
                self.world.channel.fileno(),
                self.world.row,
                lambda: say(write, "reopened"),
                row_layout.now_ns() + int(left_s * 1e9),
            ).run()
            say(write, "over")
            return 7

        self.child = Child(work)
        self.world.channel.close()

    def close(self) -> None:
        self.child.close()
        self.world.close()


def say(fd: int, text: str) -> None:
    os.write(fd, text.encode() + b"\n")


@pytest.fixture
def end() -> Iterator[Callable[..., Ending]]:
    made: list[Ending] = []

    def start(begin: Begin, left_s: float = 60.0, quick_s: float = 0.0) -> Ending:
        made.append(Ending(begin, left_s=left_s, quick_s=quick_s))
        return made[-1]

    yield start
    for ending in made:
        ending.close()


def hang(name: str) -> None:
    """A thread that would keep Python from its end."""
    threading.Thread(target=threading.Event().wait, name=name).start()


def test_functions_of_atexit_are_called(end: Any) -> None:
    child = end(lambda _read, write: atexit.register(say, write, "at exit")).child
    assert child.said() == b"at exit\nover\n"
    assert child.end() == 7


def test_threads_are_waited_for(end: Any) -> None:
    def begin(read: int, write: int) -> None:
        def work() -> None:
            os.read(read, 1)
            say(write, "the thread's last")

        threading.Thread(target=work).start()
        atexit.register(say, write, "at exit")

    child = end(begin).child
    child.tell(b"x")
    assert child.said() == b"the thread's last\nat exit\nover\n"
    assert child.end() == 7


def test_what_outlasts_its_time_is_named_and_cut(end: Any) -> None:
    child = end(lambda *_: hang("endless"), left_s=0.0).child
    assert b"this is cut off: thread endless" in child.said()
    assert child.end() == 0


def test_a_function_of_atexit_that_hangs_is_cut(end: Any) -> None:
    child = end(lambda *_: atexit.register(threading.Event().wait), left_s=0.0).child
    assert b"this is cut off: a function of atexit" in child.said()
    assert child.end() == 0


def test_a_quick_stop_shortens_the_time(end: Any) -> None:
    ending = end(lambda *_: hang("endless"))
    ending.world.tell(Stop(quick=True))
    assert b"thread endless" in ending.child.said()
    assert ending.child.end() == 0


def test_a_stop_that_is_not_quick_does_not(end: Any) -> None:
    def begin(read: int, _write: int) -> None:
        threading.Thread(target=os.read, args=(read, 1)).start()

    ending = end(begin)
    ending.world.tell(Stop(quick=False))
    ending.world.tell(ReopenLogs())
    assert ending.child.said(b"reopened\n")
    ending.child.tell(b"x")
    assert ending.child.said() == b"over\n"
    assert ending.child.end() == 7


def test_without_an_arbiter_threads_are_waited_for_all_the_same(end: Any) -> None:
    def begin(read: int, write: int) -> None:
        threading.Thread(target=os.read, args=(read, 1)).start()

    ending = end(begin)
    ending.world.lose_arbiter()
    ending.child.tell(b"x")
    assert ending.child.said() == b"over\n"
    assert ending.child.end() == 7


def test_it_beats_meanwhile(end: Any) -> None:
    def begin(read: int, _write: int) -> None:
        threading.Thread(target=os.read, args=(read, 1)).start()

    ending = end(begin)
    ending.world.tell(ReopenLogs())
    assert ending.child.said(b"reopened\n")
    assert ending.world.row[row_layout.BEAT_NS]
    ending.child.tell(b"x")
    assert ending.child.end() == 7


def test_processes_of_multiprocessing_are_named_and_ended(end: Any) -> None:
    pids: list[int] = []

    def begin(_read: int, write: int) -> None:
        register_exit_functions()
        context = multiprocessing.get_context("fork")
        process = context.Process(target=threading.Event().wait, name="helper")
        process.start()
        say(write, str(process.pid))

    ending = end(begin, left_s=0.0)
    said = ending.child.said(b"\n")
    pids.append(int(said.split()[0]))
    said += ending.child.said()
    assert b"process helper (pid %d)" % pids[0] in said
    assert ending.child.end() == 0
