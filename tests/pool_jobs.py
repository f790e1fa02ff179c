"""Tasks for the tests of pools, and a process that runs them: `python pool_jobs.py ROW ...`."""

from __future__ import annotations

import ctypes
import os
import pickle
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def add(a: int, b: int = 0) -> int:
    return a + b


def pid() -> int:
    return os.getpid()


def fail(text: str) -> None:
    raise ValueError(text)


def leave() -> None:
    sys.exit("leaving")


class Awkward(Exception):  # noqa: N818
    """Can be pickled, but not unpickled."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(f"{code} {text}")


class Local(Exception):  # noqa: N818
    """Can't be pickled."""

    def __init__(self) -> None:
        super().__init__("a lock")
        self.lock = threading.Lock()


def fail_awkwardly() -> None:
    raise Awkward(7, "seven")


def fail_locally() -> None:
    raise Local


def lock() -> Any:
    return threading.Lock()


class Explosive:
    """Raises when it is unpickled anywhere but in the process that made it."""

    def __init__(self) -> None:
        self.maker = os.getpid()

    def __setstate__(self, state: dict[str, Any]) -> None:
        if state["maker"] != os.getpid():
            raise RuntimeError("boom")


def explosive() -> Explosive:
    return Explosive()


def take(value: Any) -> str:
    return type(value).__name__


class Block:
    """An object with a large buffer, like an array of numpy."""

    def __init__(self, data: Any) -> None:
        self.data = data

    def __reduce_ex__(self, protocol: int) -> Any:
        assert protocol >= 5
        return Block, (pickle.PickleBuffer(self.data),)


def invert(block: Block) -> Block:
    view = memoryview(block.data)
    view[0] = 255 - view[0]
    return block


def echo(value: Any) -> Any:
    return value


def touch(path: str) -> None:
    Path(path).touch()


def wait_for_file(path: str) -> str:
    while not os.path.exists(path):
        time.sleep(0.005)
    return path


def begin_and_wait(begun: str, path: str) -> int:
    Path(begun).write_text(str(os.getpid()))
    wait_for_file(path)
    return os.getpid()


def hold_the_interpreter(begun: str) -> None:
    """Never returns to the interpreter: no Python signal handler could end this."""
    Path(begun).touch()
    ctypes.PyDLL(None).sleep(600)


def kill_itself(signum: int = signal.SIGKILL) -> None:
    os.kill(os.getpid(), signum)


def count(upto: int) -> Iterator[int]:
    yield from range(upto)


def count_and_fail(upto: int) -> Iterator[int]:
    yield from range(upto)
    raise ValueError("no more")


def count_into(path: str, upto: int) -> Iterator[int]:
    """Writes each number that it is asked for, and at its end the word `closed`."""
    with open(path, "a", buffering=1) as file:
        try:
            for n in range(upto):
                file.write(f"{n}\n")
                yield n
        finally:
            file.write("closed\n")


def kill_after(upto: int) -> Iterator[int]:
    yield from range(upto)
    kill_itself()


marks: list[str] = []


def add_mark() -> None:
    marks.append("initialized")


def mark() -> str:
    return " ".join(marks)


async def coroutine() -> None:
    """No task of a pool."""


def main(index: str, board_fd: str, listener_fd: str, order_fd: str) -> None:
    from servo.pools.board import Board
    from servo.pools.task_server import TaskServer

    listener = socket.socket(fileno=int(listener_fd))
    listener.setblocking(False)
    row = Board(int(board_fd)).row(int(index))
    row.pid = os.getpid()
    TaskServer(listener, int(order_fd), row).run()


if __name__ == "__main__":
    # Tasks are pickled under the module's name, not as `__main__`.
    import pool_jobs

    pool_jobs.main(*sys.argv[1:])
