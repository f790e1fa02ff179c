"""Hostile callers of a control socket, and random commands and kills, for short and long tests."""

from __future__ import annotations

import os
import random
import re
import signal
import socket
import subprocess
import sys
import threading
import time

from integration.server import (
    DEADLINE_S,
    REPOSITORY,
    Server,
    command_line,
    environment,
    processes,
    wait_for,
)
from servo.control.client import ControlClient, ControlError, RequestFailed


def control_path(server: Server) -> str:
    # After an upgrade, the new program writes the line again.
    (found,) = set(re.findall(r"Control socket at (\S+?\.sock)\b", server.log()))
    return str(found)


def connect(server: Server, timeout_s: float = DEADLINE_S) -> ControlClient:
    return ControlClient(control_path(server), timeout_s)


class Hostile:
    """A hundred connections that send nonsense, half lines and endless ones, and read nothing.

    They are a process of their own, so as not to slow those whom they are to disturb.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._process: subprocess.Popen[bytes] | None = None
        self._rounds = 0

    def __enter__(self) -> Hostile:
        # As a program this file needs nothing of the package that it is in.
        self._process = subprocess.Popen(
            [sys.executable, __file__, self._path],
            env=environment({"PYTHONPATH": f"{REPOSITORY}:{REPOSITORY / 'tests'}"}),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
        )
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process is not None
        self._process.kill()
        self._process.communicate()

    @property
    def rounds(self) -> int:
        """How often all of them have had a go."""
        assert self._process is not None
        assert self._process.stdout is not None
        assert self._process.poll() is None, "the siege has ended"
        os.set_blocking(self._process.stdout.fileno(), False)
        self._rounds += len(self._process.stdout.read() or b"")
        return self._rounds


def besiege(path: str) -> None:
    """The siege. Ends never."""
    chance = random.Random(5)
    sockets: list[socket.socket] = []
    endless = b"x" * 65_536
    kinds = [
        b"",
        b'{"command": "stat',
        b"GET / HTTP/1.1\r\n\r\n",
        chance.randbytes(4096) + b"\n",
        b"[" * 50_000 + b"\n",
        b"\n" * 10_000,
        b'{"command": "logs", "args": {"follow": true}}\n',
        b'{"command": "config"}\n' * 30,
        b'{"command": "workers"}\n' * 30,
        b'{"command": "stack", "args": {"slot": 1}}\n',
        endless,
    ]
    while True:
        while len(sockets) < 100:
            sock = socket.socket(socket.AF_UNIX)
            sock.setblocking(False)
            try:
                sock.connect(path)
                sock.send(chance.choice(kinds))
            except OSError:
                sock.close()  # the queue is full for now
                break
            sockets.append(sock)
        for sock in list(sockets):
            try:
                # A line of 100 MB, in as many pieces as are taken.
                sock.send(endless if chance.random() < 0.5 else b"x")
                over = False
            except BlockingIOError:
                over = chance.random() < 0.05
            except OSError:
                over = True  # it was dropped, as it should be
            if over:
                sockets.remove(sock)
                sock.close()
        os.write(1, b".")
        time.sleep(0.005)


def check_list(server: Server, chance: random.Random, seconds: float) -> int:
    """Reload, scale, restart and kill at random, several at once, and compare; how often."""
    over = threading.Event()
    troubles: list[str] = []

    def disturb(seed: int) -> None:
        mine = random.Random(seed)
        while not over.is_set():
            try:
                with connect(server) as client:
                    what = mine.randrange(4)
                    if what == 0:
                        client.request("reload", {"wait": mine.random() < 0.5})
                    elif what == 1:
                        client.request("scale", {"to": str(mine.randint(1, 5))})
                    elif what == 2:
                        slot = mine.randint(1, 4)
                        client.request("restart-worker", {"slot": slot, "wait": False})
                    else:
                        kill_one(server, mine)
            except RequestFailed as error:
                if error.kind not in ("refused", "rolled back"):
                    troubles.append(str(error))
            except ControlError as error:  # told below, where it fails the test
                troubles.append(repr(error))
            over.wait(mine.random() * 0.3)

    threads = [threading.Thread(target=disturb, args=(chance.random(),)) for _ in range(3)]
    for thread in threads:
        thread.start()
    looks = 0
    end = time.monotonic() + seconds
    try:
        with connect(server) as client:
            while time.monotonic() < end:
                compare(server, client)
                looks += 1
                time.sleep(0.02)
    finally:
        over.set()
        for thread in threads:
            thread.join(DEADLINE_S)
    assert not troubles
    with connect(server) as client:
        target = client.request("scale", {"to": "2"})["workers"]

        def settled() -> bool:
            rows = client.request("workers")["workers"]
            return [row["state"] for row in rows] == ["ready"] * target

        wait_for(settled, "two ready workers")
        listed = {row["pid"] for row in client.request("workers")["workers"]}
    assert listed == set(workers_of(server))
    return looks


def kill_one(server: Server, chance: random.Random) -> None:
    pids = workers_of(server)
    if pids:
        try:
            os.kill(chance.choice(pids), chance.choice([signal.SIGKILL, signal.SIGTERM]))
        except ProcessLookupError:
            return  # it was faster


def workers_of(server: Server) -> list[int]:
    """The arbiter's children that are workers, by their own word: the title that each gives itself.

    Not those that read a configuration, and none of either kind that was forked just now.
    """
    return [
        process.pid
        for process in processes()
        if process.parent == server.pid and command_line(process.pid).startswith("servo: worker")
    ]


def compare(server: Server, client: ControlClient) -> None:
    before, some = set(workers_of(server)), set(children_of(server))
    listed = {row["pid"] for row in client.request("workers")["workers"]}
    after = set(workers_of(server))
    some |= set(children_of(server))
    # A worker that was there all the time is listed; one that is listed is a child, or has just
    # been reaped, which the log says in a moment.
    assert before & after <= listed, (before, listed, after)
    for pid in listed - some:
        server.wait_log(rf"\(pid {pid}\) ended")


def children_of(server: Server) -> list[int]:
    """Zombies, too: a dead worker is one until it is reaped."""
    return [process.pid for process in processes() if process.parent == server.pid]


if __name__ == "__main__":
    besiege(sys.argv[1])
