"""The connections of `servoctl monit` to a server, in threads, so that keys work at any time.

A stopped server leaves each request without an answer for seconds. So each connection has a thread
that waits in its place, and puts what it gets into the inbox of the main thread:

* one thread asks for "status" and "workers" once a second,
* two follow the events and the log, as `servoctl events -f` does,
* each command has a thread of its own.

The first three connect again when the connection is lost. They look for the server's own socket,
and then for a server of the same name that has started since.
"""

from __future__ import annotations

import os
import tempfile
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from servo.cli import profile as profiling
from servo.cli import show
from servo.cli.monit_state import PROFILE_S
from servo.cli.target import Target, all_servers
from servo.control.client import ControlClient, ControlError, NoAnswer, NoSuchInstance
from servo.metrics.usage import Usage, next_reading_at

if TYPE_CHECKING:
    from collections.abc import Callable

    from servo.cli.monit_state import Send
    from servo.control.instances import Instance

# The time between two questions for the state, and between two attempts to connect, in seconds.
_INTERVAL_S = 1.0
# The list of servers asks each server, so it asks less often, and waits for a stopped one only
# shortly.
_LIST_INTERVAL_S = 2.0
_LIST_TIMEOUT_S = 1.0
# At the end, wait this many seconds for each thread.
_JOIN_S = 0.2


@dataclass(frozen=True)
class Snapshot:
    """The answers to "status" and "workers"."""

    status: dict[str, Any]
    workers: list[dict[str, Any]]


@dataclass(frozen=True)
class Lost:
    """The server can't be reached, and why."""

    problem: str


@dataclass(frozen=True)
class NotesRestarted:
    """A new connection sends the kept events or log records again: "events" or "logs"."""

    name: str


@dataclass(frozen=True)
class Note:
    """An event or a log record."""

    name: str
    note: dict[str, Any]


@dataclass(frozen=True)
class Progress:
    """A step of a command."""

    text: str


@dataclass(frozen=True)
class Result:
    """The result of a command."""

    send: Send
    result: dict[str, Any]


@dataclass(frozen=True)
class Failure:
    """The reason why a command has failed."""

    send: Send
    error: str


@dataclass(frozen=True)
class Servers:
    """The running servers, and the row of each one."""

    instances: list[Instance]
    rows: list[dict[str, Any]]


Item = Snapshot | Lost | NotesRestarted | Note | Progress | Result | Failure | Servers


class Finder:
    """Finds a server again, also after it was started anew.

    instance     the server
    timeout_s    how long to wait for each answer, in seconds
    may_follow   whether a server of the same name that has started since may take its place
    """

    def __init__(self, instance: Instance, timeout_s: float, *, may_follow: bool) -> None:
        self._target = Target(timeout_s=timeout_s)
        self._instance = instance
        self._may_follow = may_follow
        # Another server may have the same name. It is not the successor.
        self._others = {each.socket for each in all_servers()}

    def connect(self) -> ControlClient:
        """Connect to the server, or to its successor. Raises ControlError."""
        try:
            return self._target.connect_to(self._instance)
        except NoSuchInstance:
            successor = self._successor()
            if successor is None:
                raise
        client = self._target.connect_to(successor)
        self._instance = successor
        return client

    def _successor(self) -> Instance | None:
        if not self._may_follow:
            return None
        for each in all_servers():
            if each.name == self._instance.name and each.socket not in self._others:
                return each
        return None


class ServerLink:
    """The connections to one server.

    finder    finds the server
    on_item   called by the threads with each item for the main thread
    """

    def __init__(self, finder: Finder, on_item: Callable[[Item], None]) -> None:
        self._finder = finder
        self._on_item = on_item
        self._closed = threading.Event()
        self._lock = threading.Lock()
        self._clients: set[ControlClient] = set()
        self._threads: list[threading.Thread] = []

    def start(self) -> None:
        """Start the threads."""
        self._start(self._poll)
        self._start(lambda: self._follow("events"))
        self._start(lambda: self._follow("logs"))

    def send(self, send: Send) -> None:
        """Send a command in a thread of its own; a Result or a Failure follows."""
        self._start(lambda: self._send(send))

    def close(self) -> None:
        """End the connections and the threads.

        A thread that is just connecting to a stopped server ends later, when it gives up.
        """
        self._closed.set()
        profiling.interrupt()
        with self._lock:
            for client in self._clients:
                client.interrupt()
        for thread in self._threads:
            thread.join(_JOIN_S)

    def _start(self, run: Callable[[], None]) -> None:
        thread = threading.Thread(target=run, daemon=True)
        self._threads = [each for each in self._threads if each.is_alive()]
        self._threads.append(thread)
        thread.start()

    def _put(self, item: Item) -> None:
        if not self._closed.is_set():
            self._on_item(item)

    def _with_client(self, use: Callable[[ControlClient], None]) -> None:
        """Connect, and call a function with the connection. Raises ControlError."""
        with self._finder.connect() as client:
            with self._lock:
                self._clients.add(client)
            try:
                if not self._closed.is_set():
                    use(client)
            finally:
                with self._lock:
                    self._clients.discard(client)

    # --- the threads ------------------------------------------------------------------------------

    def _poll(self) -> None:
        while not self._closed.is_set():
            try:
                self._with_client(self._poll_connection)
            except ControlError as error:
                self._put(Lost(_problem(error)))
            self._closed.wait(_INTERVAL_S)

    def _poll_connection(self, client: ControlClient) -> None:
        usage = Usage()
        at = time.monotonic()
        while not self._closed.is_set():
            status = client.request("status")
            workers = client.request("workers")
            usage.add(workers, client.server_pid, time.monotonic())
            self._put(Snapshot(status, workers["workers"]))
            # Keep the pace of one question a second, but don't hurry after a delay.
            at = next_reading_at(at, time.monotonic(), _INTERVAL_S)
            self._closed.wait(at - time.monotonic())

    def _follow(self, name: str) -> None:
        is_new = True  # whether the connection has not yet brought anything

        def on_note(note: dict[str, Any]) -> None:
            # A stopped server accepts connections, too. So keep the old notes until new ones come.
            nonlocal is_new
            if is_new:
                self._put(NotesRestarted(name))
            is_new = False
            self._put(Note(name, note))

        def on_lost(count: int) -> None:
            text = f"{count} lines are missing here: this screen reads them too slowly"
            values = {"time": time.time(), "level": "warning", "name": "lost", "text": text}
            on_note(values)

        def follow(client: ControlClient) -> None:
            client.request(name, {"follow": True}, on_note, on_lost)

        while not self._closed.is_set():
            is_new = True
            # `_poll` reports a lost server. If only this connection was lost, make a new one.
            with suppress(ControlError):
                self._with_client(follow)
            self._closed.wait(_INTERVAL_S)

    def _send(self, send: Send) -> None:
        def on_note(note: dict[str, Any]) -> None:
            if "text" in note:
                self._put(Progress(note["text"]))

        def request(client: ControlClient) -> None:
            if send.command == "profile":  # servoctl itself does this
                result = profile_worker(client, send.args["slot"])
            else:
                result = client.request(send.command, send.args, on_note)
            self._put(Result(send, result))

        try:
            self._with_client(request)
        except ControlError as error:
            self._put(Failure(send, str(error)))


def profile_worker(client: ControlClient, slot: int) -> dict[str, Any]:
    """Profile a worker for PROFILE_S seconds. Raises ControlError.

    client   the connection to the server
    slot     the worker's slot

    The picture is put into the current directory, or, if that is not writable, into a new one.
    """
    try:
        directory = os.getcwd()
    except FileNotFoundError:  # it was removed
        directory = ""
    if not os.access(directory, os.W_OK):
        directory = tempfile.mkdtemp(prefix="servoctl-")
    name = f"profile-{slot}-{time.strftime('%Y%m%d-%H%M%S')}.svg"
    path = os.path.join(directory, name)
    return profiling.profile(client, slot, PROFILE_S, profiling.SVG, path)


def _problem(error: ControlError) -> str:
    """The reason why a server can't be reached, short enough for one line of the screen."""
    if isinstance(error, NoAnswer):
        return "it does not answer, it may be stopped (SIGSTOP)"
    if isinstance(error, NoSuchInstance):
        return "it has ended"
    return str(error)


class ListLink:
    """Looks for the running servers again and again, in a thread.

    target    selects the servers
    on_item   called by the thread with each Servers
    """

    def __init__(self, target: Target, on_item: Callable[[Item], None]) -> None:
        self._target = target
        self._on_item = on_item
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def close(self) -> None:
        """End the thread. While it waits for a stopped server, it ends a little later."""
        self._closed.set()
        self._thread.join(_JOIN_S)

    def _run(self) -> None:
        while not self._closed.is_set():
            found = self._target.matching(all_servers())
            timeout_s = min(_LIST_TIMEOUT_S, self._target.timeout_s)
            rows = show.query_all(found, timeout_s, with_usage=False)
            if not self._closed.is_set():
                self._on_item(Servers(found, rows))
            self._closed.wait(_LIST_INTERVAL_S)
