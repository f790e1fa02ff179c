"""The process of a mold, with the test as its arbiter."""

from __future__ import annotations

import json
import logging
import os
import select
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from unit.workers.fakes import Child, World

from servo.arbiter.processes import spawn
from servo.ipc.channel import Channel, ChannelClosed, channel_pair
from servo.ipc.messages import (
    EXIT_APP,
    EXIT_BOOT,
    Booting,
    MakeMold,
    Message,
    MoldForked,
    Ready,
    Retire,
    Stop,
)
from servo.net.address import TCPAddress
from servo.net.listeners import Listener
from servo.shared_memory import row_layout
from servo.workers.fork_order import ForkOrder
from servo.workers.mold import MoldContext, _in_between, run_mold

ADDRESS = TCPAddress("127.0.0.1", 0)
APP = """
import atexit, os
IMPORTED_BY = os.getpid()
atexit.register(lambda: open("ends", "a").write(f"{os.getpid()}\\n"))

def app(environ, start_response):
    start_response("200 OK", [("Content-Length", "0")])
    return []
"""


class MoldProcess:
    """A mold, and the arbiter's end of its socket."""

    def __init__(self, **values: Any) -> None:
        self.world = World(shared=False, **values)
        self.sock, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.sock.settimeout(60)

        def work(_read: int, write: int) -> int:
            self.sock.close()
            logging.getLogger("servo.error").handlers = [
                logging.StreamHandler(os.fdopen(os.dup(write), "w"))
            ]
            context = MoldContext(
                generation=1,
                settings=self.world.context.settings,
                tls=None,
                scoreboard=self.world.board,
                server=None,
                arbiter_pid=os.getppid(),
                sock=theirs,
                run_to_exit=spawn.run_to_exit,
                die_with_arbiter=lambda: None,
            )
            return run_mold(context)

        self.child = Child(work)
        theirs.close()

    def answer(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.sock.recv(1 << 18))
        return found

    def order(
        self,
        listeners: list[Listener],
        *,
        leave_out: bool = False,
        mold_sock: socket.socket | None = None,
        sock: socket.socket | None = None,
    ) -> Channel:
        """Order a worker in the row of the world's own; return the arbiter's end of its channel.

        mold_sock   the end of a mold that the worker may fork
        sock        the socket of another mold, to order from that one
        """
        ours, theirs = channel_pair()
        described = [(each.address, each.name, each.requested, each.label) for each in listeners]
        row_index = self.world.context.row_index
        order = ForkOrder(5, 1, row_index, {}, described, False, mold_sock is not None)
        fd = mold_sock.fileno() if mold_sock is not None else -1
        order.send(sock or self.sock, theirs, -1, [] if leave_out else listeners, fd)
        theirs.close()
        return ours

    def close(self) -> None:
        self.sock.close()
        self.child.close()
        self.world.close()


Make = Callable[..., MoldProcess]


@pytest.fixture
def mold(tmp_path: Path) -> Iterator[Make]:
    (tmp_path / "molded_app.py").write_text(APP)
    (tmp_path / "broken_app.py").write_text("raise ValueError('broken at import')\n")
    made: list[MoldProcess] = []

    def start(app: str = "molded_app:app", **values: Any) -> MoldProcess:
        made.append(MoldProcess(app=app, chdir=str(tmp_path), **values))
        return made[-1]

    yield start
    for process in made:
        process.close()


@pytest.fixture
def listener() -> Iterator[Listener]:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        yield Listener(sock, ADDRESS, "here", ADDRESS)


def messages(channel: Channel, until: type[Message] | None = None) -> list[type[Message]]:
    """What a worker sends, up to a message of this kind, or up to its end."""
    kinds: list[type[Message]] = []
    while until not in kinds:
        assert select.select([channel.fileno()], [], [], 60)[0]
        try:
            kinds += [type(each) for each in channel.receive()]
        except ChannelClosed:
            assert until is None, kinds
            break
    return kinds


@pytest.mark.parametrize("worker_class", ["sync", "thread", "async"])
def test_a_worker_of_a_mold(
    mold: Make, listener: Listener, tmp_path: Path, worker_class: str
) -> None:
    process = mold(worker_class=worker_class)
    assert process.answer() == {"ready": True}
    channel = process.order([listener])
    answer = process.answer()
    assert messages(channel, Ready) == [Booting, Ready]
    assert answer == {"serial": 5, "pid": process.world.row[row_layout.PID]}
    assert answer["pid"] not in (os.getpid(), process.child.pid)
    with socket.create_connection(listener.socket.getsockname()) as client:
        client.sendall(b"GET / HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n")
        assert client.recv(4096).startswith(b"HTTP/1.1 200 OK")
    channel.send(Stop(quick=False))
    messages(channel)
    channel.close()
    process.sock.close()
    assert process.child.end() == 0
    assert (tmp_path / "ends").read_text() == f"{answer['pid']}\n"


def resident_pages(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1])


def test_a_mold_returns_the_memory_of_garbage_before_it_forks(mold: Make, tmp_path: Path) -> None:
    """By itself, glibc would keep the pages between used blocks."""
    app = APP + (
        "from pathlib import Path\n"
        "BLOCKS = [bytearray(60_000) for _ in range(800)]\n"
        "del BLOCKS[::2]\n"
        "Path('resident').write_text(Path('/proc/self/statm').read_text().split()[1])\n"
    )
    (tmp_path / "wasteful_app.py").write_text(app)
    process = mold("wasteful_app:app")
    assert process.answer() == {"ready": True}
    imported = int((tmp_path / "resident").read_text())
    # 400 blocks have 14 whole pages each. The rest of the start needs some more memory.
    assert imported - resident_pages(process.child.pid) > 4000


@pytest.mark.parametrize(
    ("app", "kind", "code", "text"),
    [
        ("broken_app:app", "app", EXIT_APP, "broken at import"),
        ("nowhere:app", "app", EXIT_APP, "there is no module 'nowhere'"),
        ("molded_app:app", "boot", EXIT_BOOT, "worker_class 'no.such.Class' can't be loaded"),
    ],
)
def test_an_app_that_cant_be_served(mold: Make, app: str, kind: str, code: int, text: str) -> None:
    process = mold(app, worker_class="no.such.Class" if kind == "boot" else "sync")
    answer = process.answer()
    assert answer["failed"] == kind
    assert text in answer["text"]
    assert process.child.end() == code


def refused(process: MoldProcess, listener: Listener, *, leave_out: bool = False) -> str:
    """Order a worker that the mold can't fork. Returns the reason that it gives."""
    process.answer()
    channel = process.order([listener], leave_out=leave_out)
    answer = process.answer()
    assert answer["serial"] == 5
    assert messages(channel) == []
    channel.close()
    return str(answer["error"])


def test_an_order_without_its_listener(mold: Make, listener: Listener) -> None:
    assert "no free descriptors" in refused(mold(), listener, leave_out=True)


def test_a_process_that_cant_be_forked(mold: Make, tmp_path: Path, listener: Listener) -> None:
    (tmp_path / "molded_app.py").write_text(
        APP + "def refuse(): raise OSError('no process can be had')\nos.fork = refuse\n"
    )
    assert refused(mold(), listener) == "no process can be had"


def test_a_process_in_between_that_dies(mold: Make, tmp_path: Path, listener: Listener) -> None:
    (tmp_path / "molded_app.py").write_text(
        APP + "os.register_at_fork(after_in_child=lambda: os.kill(os.getpid(), 9))\n"
    )
    assert refused(mold(), listener) == "the process in between has died"


def received(channel: Channel, kind: type[Message]) -> Message:
    """The next message of this kind."""
    while True:
        assert select.select([channel.fileno()], [], [], 60)[0]
        for message in channel.receive():
            if isinstance(message, kind):
                return message


def sockets(pid: int) -> set[str]:
    """The sockets that a process has open."""
    links = {os.readlink(fd) for fd in Path(f"/proc/{pid}/fd").iterdir()}
    return {link for link in links if link.startswith("socket:")}


@pytest.mark.parametrize("worker_class", ["sync", "thread"])
def test_a_drained_worker_forks_the_next_mold(
    mold: Make, listener: Listener, worker_class: str
) -> None:
    """And a worker of that mold forks another."""
    process = mold(worker_class=worker_class, refork_after=10)
    assert process.answer() == {"ready": True}
    source: socket.socket | None = None
    pids, inherited = [], sockets(process.child.pid)
    for generation in (2, 3):
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.settimeout(60)
        channel = process.order([listener], mold_sock=theirs, sock=source)
        own = {os.readlink(f"/proc/self/fd/{theirs.fileno()}")}
        theirs.close()
        received(channel, Ready)
        channel.send(MakeMold(generation))
        channel.send(Retire("reforked"))
        answer = received(channel, MoldForked)
        assert isinstance(answer, MoldForked)
        assert answer.text == ""
        messages(channel)
        channel.close()
        assert json.loads(ours.recv(1 << 18)) == {"ready": True}
        assert sockets(answer.pid) - inherited == own, "no channel, no socket of the worker's loop"
        pids.append(answer.pid)
        if source is not None:
            source.close()
        source = ours
    assert len({*pids, process.child.pid}) == 3
    assert source is not None
    channel = process.order([listener], sock=source)
    received(channel, Ready)
    with socket.create_connection(listener.socket.getsockname()) as client:
        client.sendall(b"GET / HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n")
        assert client.recv(4096).startswith(b"HTTP/1.1 200 OK")
    channel.send(MakeMold(4))
    channel.send(Stop(quick=False))
    assert MoldForked not in messages(channel), "a stop is no refork"
    channel.close()
    source.close()


def test_a_worker_without_a_socket_for_a_mold_says_so(mold: Make, listener: Listener) -> None:
    process = mold()
    process.answer()
    channel = process.order([listener])
    received(channel, Ready)
    channel.send(MakeMold(2))
    channel.send(Retire("reforked"))
    answer = received(channel, MoldForked)
    assert answer == MoldForked(0, "the worker has no socket for a mold")
    messages(channel)
    channel.close()


def test_reforks_are_for_wsgi_apps(mold: Make) -> None:
    answer = mold(worker_class="async", refork_after=10).answer()
    assert answer["failed"] == "boot"
    text = "refork_after is for WSGI apps in workers of class sync or thread, not of class async"
    assert answer["text"].startswith(text)


def test_the_process_in_between_ends_quietly_without_its_parent() -> None:
    reader, writer = os.pipe()
    gate_reader, gate_writer = os.pipe()

    def wait_for_the_end() -> None:
        """Until this test has closed its `reader`, and then the gate."""
        os.read(gate_reader, 1)

    pid = os.fork()
    if pid == 0:
        try:
            os.close(gate_writer)
            _in_between(lambda: 0, wait_for_the_end, reader, writer)
        finally:
            os._exit(9)  # in the new process, and after an error
    for fd in (reader, writer, gate_reader, gate_writer):
        os.close(fd)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
