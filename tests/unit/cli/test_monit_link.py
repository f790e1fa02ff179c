"""The connections of `servoctl monit` against servers with prepared answers."""

from __future__ import annotations

import json
import os
import queue
import socket
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, cast

import pytest

from servo.cli import monit_link as link
from servo.cli import target
from servo.cli.monit_link import Finder, ListLink, ServerLink
from servo.cli.monit_state import Send
from servo.cli.target import Target
from servo.control import protocol
from servo.control.client import ControlClient, ControlError, NoAnswer, NoSuchInstance
from servo.control.instances import Instance

ROW = {"slot": 1, "serial": 1, "pid": 0, "state": "spawned"}
EVENT = {"name": "ready", "time": 1.0, "text": "worker 1 is ready"}


class Server:
    """Answers requests from a table. It ends the connection of a request that has no answer.

    `follow` requests get their answer and no end, as from a server that runs.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self.answers: dict[str, list[bytes]] = {
            "status": [protocol.result_line({"name": "shop", "pid": 7})],
            "workers": [protocol.result_line({"server_pid": -1, "workers": [dict(ROW)]})],
            "events": [protocol.note_line(EVENT)],
            "logs": [protocol.lost_line(12)],
        }
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.bind(path)
        self.sock.listen()
        self.peers: list[socket.socket] = []
        self.threads = [threading.Thread(target=self._accept)]
        self.threads[0].start()

    def _accept(self) -> None:
        while True:
            try:
                peer, _ = self.sock.accept()
            except OSError:
                return
            self.peers.append(peer)
            self.threads.append(threading.Thread(target=self._serve, args=(peer,)))
            self.threads[-1].start()

    def _serve(self, peer: socket.socket) -> None:
        # The client may end the connection at any time.
        with suppress(ConnectionError), peer, peer.makefile("rb") as lines:
            for line in lines:
                answer = self.answers.get(json.loads(line)["command"])
                if answer is None:
                    return
                peer.sendall(b"".join(answer))

    def drop(self) -> None:
        """End all connections."""
        for peer in self.peers:
            try:
                peer.shutdown(socket.SHUT_RDWR)
            except OSError:
                continue  # its client has ended it

    def close(self) -> None:
        self.sock.shutdown(socket.SHUT_RDWR)
        self.sock.close()
        self.threads[0].join()
        self.drop()
        for thread in self.threads:
            thread.join()
        os.unlink(self.path)


class Links:
    """Servers and links, and the items that the links have put."""

    def __init__(self, directory: str) -> None:
        self.directory = directory
        self.items: queue.Queue[link.Item] = queue.Queue()
        self.seen: list[link.Item] = []
        self.running: list[Instance] = []
        self.to_close: list[Server | ServerLink | ListLink] = []

    def server(self, name: str = "shop", pid: int = 7) -> Server:
        server = Server(str(Path(self.directory, f"{name}-{pid}")))
        self.running.append(Instance(name, pid, server.path))
        self.to_close.append(server)
        return server

    def end(self, server: Server) -> None:
        self.to_close.remove(server)
        self.running = [each for each in self.running if each.socket != server.path]
        server.close()

    def open(self, instance: Instance, **options: Any) -> ServerLink:
        finder = Finder(instance, 10.0, may_follow=options.get("may_follow", True))
        opened = ServerLink(finder, self.items.put)
        self.to_close.append(opened)
        opened.start()
        return opened

    def until(self, is_wanted: Callable[[link.Item], bool]) -> link.Item:
        """The next item that is wanted; others are left out."""
        while True:
            item = self.items.get(timeout=30.0)
            self.seen.append(item)
            if is_wanted(item):
                return item


@pytest.fixture
def links(monkeypatch: pytest.MonkeyPatch) -> Iterator[Links]:
    monkeypatch.setattr(link, "_INTERVAL_S", 0.01)
    monkeypatch.setattr(link, "_LIST_INTERVAL_S", 0.01)
    with tempfile.TemporaryDirectory(prefix="servo-") as directory:
        made = Links(directory)
        monkeypatch.setattr(link, "all_servers", lambda: made.running)
        monkeypatch.setattr(target, "all_servers", lambda: made.running)
        yield made
        for each in reversed(made.to_close):
            each.close()


def is_snapshot(item: link.Item) -> bool:
    return isinstance(item, link.Snapshot)


def is_lost(item: link.Item) -> bool:
    return isinstance(item, link.Lost)


def test_snapshots_events_and_log(links: Links) -> None:
    links.server()
    links.open(links.running[0])
    snapshot = links.until(is_snapshot)
    assert snapshot == link.Snapshot(
        {"name": "shop", "pid": 7}, [{**ROW, "cpu_percent": None, "rss_bytes": None}]
    )
    links.until(is_snapshot)  # and again


def test_events_are_followed(links: Links) -> None:
    links.server()
    links.open(links.running[0])
    links.until(lambda item: item == link.NotesRestarted("events"))
    assert links.until(lambda item: isinstance(item, link.Note) and item.name == "events") == (
        link.Note("events", EVENT)
    )


def test_a_connection_that_brings_nothing_keeps_the_old_events(links: Links) -> None:
    server = links.server()
    links.open(links.running[0])
    links.until(lambda item: item == link.Note("events", EVENT))
    server.answers["events"] = []  # as a stopped server, which accepts connections
    server.drop()
    for _ in range(3):
        links.until(is_snapshot)
        server.drop()
        links.until(is_lost)
    assert links.seen.count(link.NotesRestarted("events")) == 1


def test_a_profile_is_written_where_it_can_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []

    def profile(*values: Any) -> dict[str, Any]:
        asked.append(values)
        return {"file": values[-1]}

    monkeypatch.setattr(link.profiling, "profile", profile)
    monkeypatch.chdir(tmp_path)
    client = cast("ControlClient", object())
    path = Path(link.profile_worker(client, 3)["file"])
    assert asked[0][:4] == (client, 3, 5, "svg")
    assert path.parent == tmp_path
    assert path.name.startswith("profile-3-")
    monkeypatch.setattr(os, "access", lambda *_: False)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    elsewhere = Path(link.profile_worker(client, 3)["file"])
    assert elsewhere.parent.parent == tmp_path
    assert elsewhere.parent.stat().st_mode & 0o777 == 0o700


def test_lost_log_lines_are_reported(links: Links) -> None:
    links.server()
    links.open(links.running[0])
    note = links.until(lambda item: isinstance(item, link.Note) and item.name == "logs")
    assert isinstance(note, link.Note)
    assert note.note["text"].startswith("12 lines are missing")


def test_a_lost_connection_is_made_again(links: Links) -> None:
    server = links.server()
    links.open(links.running[0])
    for _ in range(2):
        wanted: set[link.Item] = {link.NotesRestarted("events"), link.NotesRestarted("logs")}
        while wanted:
            wanted.discard(links.until(lambda item: isinstance(item, link.NotesRestarted)))
        links.until(is_snapshot)
        server.drop()
        links.until(is_lost)
    links.until(is_snapshot)


def test_a_server_that_ends_is_lost_and_found_again(links: Links) -> None:
    server = links.server()
    instance = links.running[0]
    links.open(instance, may_follow=False)
    links.until(is_snapshot)
    links.end(server)
    lost = links.until(lambda item: item == link.Lost("it has ended"))
    assert lost
    links.server()
    links.until(is_snapshot)


def test_a_successor_of_the_same_name_is_found(links: Links) -> None:
    server, twin = links.server(), links.server(pid=8)
    finder = Finder(links.running[0], 10.0, may_follow=True)
    with finder.connect() as client:
        assert client.path == server.path
    links.end(server)
    links.server("blog", 10)
    # The twin was there before, and is not the successor.
    with pytest.raises(NoSuchInstance):
        finder.connect()
    successor = links.server(pid=9)
    for _ in range(2):
        with finder.connect() as client:
            assert client.path == successor.path
    assert twin.path != successor.path


def test_a_server_that_was_chosen_by_its_pid_has_no_successor(links: Links) -> None:
    server = links.server()
    finder = Finder(links.running[0], 10.0, may_follow=False)
    links.end(server)
    links.server(pid=9)
    with pytest.raises(NoSuchInstance):
        finder.connect()


def test_commands(links: Links) -> None:
    server = links.server()
    opened = links.open(links.running[0])
    server.answers["reload"] = [
        protocol.note_line({"step": "accepted", "generation": 3, "workers": 1}),
        protocol.note_line({"step": "replaced", "text": "worker 1 replaced"}),
        protocol.result_line({"generation": 3}),
    ]
    server.answers["scale"] = [protocol.failure_line("denied", "only read access")]
    reload, scale = Send("reload", {}), Send("scale", {"to": "+1"})
    opened.send(reload)
    results = (link.Progress, link.Result, link.Failure)
    assert links.until(lambda item: isinstance(item, results)) == link.Progress("worker 1 replaced")
    assert links.until(lambda item: isinstance(item, results)) == (
        link.Result(reload, {"generation": 3})
    )
    opened.send(scale)
    assert links.until(lambda item: isinstance(item, results)) == (
        link.Failure(scale, "only read access")
    )


def test_nothing_is_put_after_the_end(links: Links) -> None:
    server = links.server()
    opened = links.open(links.running[0])
    links.until(is_snapshot)
    # The connections wait for an answer that does not come.
    server.answers["status"] = []
    opened.close()
    while not links.items.empty():
        links.items.get()
    opened._put(link.Lost("late"))
    assert links.items.empty()
    assert not any(thread.is_alive() for thread in opened._threads)


def test_the_list_of_servers(links: Links) -> None:
    links.server()
    links.server("blog", 9)
    shown = ListLink(Target(name="shop"), links.items.put)
    links.to_close.append(shown)
    shown.start()
    item = links.until(lambda item: isinstance(item, link.Servers))
    assert isinstance(item, link.Servers)
    assert item.instances == [links.running[0]]
    assert item.rows[0]["name"] == "shop"


@pytest.mark.parametrize(
    ("error", "problem"),
    [
        (NoAnswer("…"), "it does not answer, it may be stopped (SIGSTOP)"),
        (NoSuchInstance("…"), "it has ended"),
        (ControlError("not permitted"), "not permitted"),
    ],
)
def test_the_reason_of_a_loss_fits_the_screen(error: ControlError, problem: str) -> None:
    assert link._problem(error) == problem


def test_a_connection_can_be_interrupted(links: Links) -> None:
    server = links.server()
    with ControlClient(server.path) as client:
        client.interrupt()
        client.interrupt()
