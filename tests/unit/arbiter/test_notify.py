"""The messages to systemd, with a supervisor and a socket under the test's control."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest

from servo.arbiter.core import actions, events
from servo.arbiter.core.policy import Policy
from servo.arbiter.core.supervisor import Supervisor
from servo.arbiter.notify import EXTENSION_S, SystemdNotifier, status_line
from servo.ipc.messages import BootFailed, Booting, Ready

EXTEND = f"EXTEND_TIMEOUT_USEC={EXTENSION_S}000000"


class Service:
    """A server whose supervisor the test drives, and systemd's end of the socket."""

    def __init__(self, path: str, systemd: socket.socket, **environ: str) -> None:
        self.systemd = systemd
        self.environ = {"NOTIFY_SOCKET": path, "HOME": "/", **environ}
        self.notifier = SystemdNotifier(self.environ)
        self.supervisor = Supervisor(Policy(workers=2))
        self.now = 100.0
        self.pid = 1000
        self.forked: list[int] = []
        self.checks = True
        self.handle(events.Started())

    def handle(self, event: events.Event) -> None:
        """Handle an event and all that follows from it, then end the turn."""
        inbox = [event]
        while inbox:
            for action in self.supervisor.handle(inbox.pop(0), self.now):
                if isinstance(action, actions.Fork):
                    self.pid += 1
                    self.forked.append(action.serial)
                    inbox.append(events.Forked(action.serial, self.pid))
                elif isinstance(action, actions.CheckConfig) and self.checks:
                    inbox.append(events.ConfigChecked(action.generation, None))
                elif isinstance(action, actions.LoadConfig):
                    inbox.append(events.ConfigLoaded(action.generation, Policy(workers=2)))
        self.notifier.turn(self.supervisor, self.now)

    def ready(self, serial: int) -> None:
        self.handle(events.MessageReceived(serial, Booting()))
        self.handle(events.MessageReceived(serial, Ready("sync")))

    def serve(self) -> None:
        """Get both workers ready, and forget what systemd was sent."""
        for serial in (1, 2):
            self.ready(serial)
        self.sent()

    def tick(self, requests: int = 0, in_flight: int = 0) -> list[list[str]]:
        self.notifier.tick(self.supervisor, requests, in_flight, self.now)
        self.now += 1.0
        return self.sent()

    def sent(self) -> list[list[str]]:
        """The lines of each datagram since the last call."""
        found = []
        while True:
            try:
                found.append(self.systemd.recv(4096).decode().split("\n"))
            except BlockingIOError:
                return found


@pytest.fixture
def systemd(tmp_path: Path) -> Iterator[tuple[str, socket.socket]]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(str(tmp_path / "notify"))
        sock.setblocking(False)
        yield str(tmp_path / "notify"), sock


@pytest.fixture
def service(systemd: tuple[str, socket.socket]) -> Iterator[Service]:
    found = Service(*systemd)
    yield found
    found.notifier.close()


def test_ready_once_all_workers_have_started(service: Service) -> None:
    service.ready(1)
    assert service.sent() == []
    service.ready(2)
    assert service.sent() == [["READY=1"]]
    service.handle(events.Tick({}, {}))
    assert service.sent() == []


def test_a_worker_that_fails_does_not_keep_the_start_open(service: Service) -> None:
    service.ready(1)
    service.handle(events.ChildExited(1002, 1, "", False))
    assert service.sent() == [["READY=1"]]


def test_a_reload_is_announced_and_ended_in_datagrams_of_their_own(service: Service) -> None:
    service.serve()
    service.notifier.on_reload_signal()
    service.handle(events.SignalReceived("SIGHUP"))
    assert service.sent() == [["RELOADING=1", f"MONOTONIC_USEC={int(service.now * 1e6)}"]]
    while service.supervisor.reload is not None:
        service.ready(service.forked[-1])
    assert service.sent() == [["READY=1"]]


def test_a_signal_that_starts_no_reload_is_answered(service: Service) -> None:
    """`systemctl reload` would wait for the answer until its time limit."""
    service.serve()
    service.notifier.on_reload_signal()
    service.notifier.turn(service.supervisor, service.now)
    assert [lines[0] for lines in service.sent()] == ["RELOADING=1", "READY=1"]


def test_a_stop_asks_for_time_while_it_lasts(service: Service) -> None:
    service.serve()
    service.tick()
    service.handle(events.SignalReceived("SIGTERM"))
    assert service.sent() == [["STOPPING=1"]]
    for _ in range(3):
        assert EXTEND in [line for lines in service.tick() for line in lines]
    # It is no reload either, whatever comes.
    service.notifier.on_reload_signal()
    service.handle(events.SignalReceived("SIGHUP"))
    assert service.sent() == []


def test_a_start_asks_for_time_while_workers_boot(service: Service) -> None:
    service.handle(events.MessageReceived(1, Booting()))
    assert EXTEND in service.tick()[0]
    service.serve()
    assert EXTEND not in [line for lines in service.tick() for line in lines]


def test_the_status_line_is_sent_when_it_changes(service: Service) -> None:
    assert service.tick()[0][-1] == "STATUS=Starting: 0 of 2 workers ready"
    service.serve()
    assert service.tick(50)[0] == ["STATUS=2 of 2 workers ready, 50 requests/s, 0 open"]
    assert service.tick(100) == []
    assert service.tick(100, 3)[0] == ["STATUS=2 of 2 workers ready, 0 requests/s, 3 open"]


def test_other_states_in_the_status_line(service: Service) -> None:
    service.serve()
    supervisor = service.supervisor
    service.handle(events.SignalReceived("SIGHUP"))
    assert status_line(supervisor, 0.0, 0) == (
        "Reloading to generation 2: one worker of the new generation boots; 2 of 2 workers ready"
    )
    service.handle(events.SignalReceived("SIGTERM"))
    left = len(supervisor.workers)
    assert status_line(supervisor, 0.0, 4) == f"Stopping: {left} workers left, 4 requests open"


def test_a_rolled_back_reload_stays_in_the_status_line(service: Service) -> None:
    service.serve()
    service.handle(events.SignalReceived("SIGHUP"))
    canary = service.forked[-1]
    service.handle(events.MessageReceived(canary, Booting()))
    service.handle(events.MessageReceived(canary, BootFailed("app", "it raised")))
    line = status_line(service.supervisor, 3.0, 1)
    assert line == (
        "2 of 2 workers ready, 3 requests/s, 1 open; the reload to generation 2 was rolled back"
    )


def test_a_start_that_waits_for_a_change(systemd: tuple[str, socket.socket]) -> None:
    service = Service(*systemd)
    service.supervisor.held = True
    assert status_line(service.supervisor, 0.0, 0).startswith("Waiting for a changed file")
    service.notifier.close()


def test_a_reload_asks_for_time_in_every_phase(service: Service) -> None:
    service.serve()
    service.tick()
    service.checks = False  # the configuration is being read
    service.handle(events.SignalReceived("SIGHUP"))
    service.sent()
    assert service.tick()[0][0] == EXTEND
    service.handle(events.ConfigChecked(2, "it is bad"))
    service.sent()
    assert service.tick()[0][0].startswith("STATUS=")


def test_signs_of_life_come_at_half_the_time(systemd: tuple[str, socket.socket]) -> None:
    service = Service(*systemd, WATCHDOG_USEC="3000000", WATCHDOG_PID=str(os.getpid()))
    notifier = service.notifier
    assert service.sent() == [["WATCHDOG=1"]]
    assert notifier.wake_at() == service.now + 1.5
    notifier.turn(service.supervisor, service.now + 1.4)
    assert service.sent() == []
    notifier.turn(service.supervisor, service.now + 1.5)
    assert service.sent() == [["WATCHDOG=1"]]
    # Workers inherit neither of these.
    assert service.environ == {"HOME": "/"}
    notifier.close()


@pytest.mark.parametrize(
    "environ",
    [
        {},
        {"NOTIFY_SOCKET": ""},
        {"NOTIFY_SOCKET": "relative"},
        {"WATCHDOG_USEC": "3000000"},
    ],
)
def test_without_systemd_nothing_happens(environ: dict[str, str]) -> None:
    notifier = SystemdNotifier(dict(environ))
    supervisor = Supervisor(Policy(workers=1))
    notifier.turn(supervisor, 1.0)
    notifier.tick(supervisor, 0, 0, 1.0)
    assert not notifier.is_on
    assert notifier.wake_at() == float("inf")
    notifier.close()


@pytest.mark.parametrize(("usec", "pid"), [("many", ""), ("3000000", "1")])
def test_a_watchdog_of_another_process_gets_no_signs(
    systemd: tuple[str, socket.socket], usec: str, pid: str
) -> None:
    service = Service(*systemd, WATCHDOG_USEC=usec, WATCHDOG_PID=pid)
    assert service.sent() == []
    assert service.notifier.wake_at() == float("inf")
    service.notifier.close()


def test_an_abstract_socket() -> None:
    name = f"servo-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind("\0" + name)
        sock.setblocking(False)
        service = Service("@" + name, sock)
        service.ready(1)
        service.ready(2)
        assert service.sent() == [["READY=1"]]
        service.notifier.close()


def test_a_socket_that_is_gone_is_said_once(
    service: Service, caplog: pytest.LogCaptureFixture
) -> None:
    os.unlink(service.environ.get("NOTIFY_SOCKET", service.systemd.getsockname()))
    service.serve()
    service.tick()
    service.handle(events.SignalReceived("SIGTERM"))
    assert caplog.text.count("systemd can't be notified") == 1


class Bound:
    """A listener, as far as systemd is told of it."""

    def __init__(self, name: str) -> None:
        self.stored_as = name
        self.sock = socket.create_server(("127.0.0.1", 0))

    def fileno(self) -> int:
        return self.sock.fileno()


def stored(sock: socket.socket) -> list[tuple[list[str], list[int]]]:
    """The datagrams that systemd has got, each with its descriptors."""
    found = []
    while True:
        try:
            data, descriptors, _, _ = socket.recv_fds(sock, 4096, 4)
        except BlockingIOError:
            return found
        found.append((data.decode().split("\n"), descriptors))


def test_listeners_are_stored_until_the_server_stops(service: Service) -> None:
    kept, from_unit = Bound("servo-listener-a"), Bound("")
    with kept.sock, from_unit.sock:
        service.sent()
        service.notifier.store([cast("Any", kept), cast("Any", from_unit)], ["servo-listener-old"])
        removed, added = stored(service.systemd)
        assert removed == (["FDSTOREREMOVE=1", "FDNAME=servo-listener-old"], [])
        assert added[0] == ["FDSTORE=1", "FDNAME=servo-listener-a"]
        with socket.socket(fileno=added[1][0]) as copy:
            assert copy.getsockname() == kept.sock.getsockname()
    service.serve()
    service.handle(events.SignalReceived("SIGHUP"))
    assert not any("FDSTOREREMOVE=1" in lines for lines in service.sent())
    service.handle(events.SignalReceived("SIGTERM"))
    assert ["FDSTOREREMOVE=1", "FDNAME=servo-listener-a"] in service.sent()
    service.tick()
    assert not any("FDSTOREREMOVE=1" in lines for lines in service.sent())


def test_nothing_is_stored_where_systemd_keeps_nothing(
    systemd: tuple[str, socket.socket],
) -> None:
    service = Service(*systemd, FDSTORE="0")
    assert service.environ == {"HOME": "/"}
    kept = Bound("servo-listener-a")
    with kept.sock:
        service.notifier.store([cast("Any", kept)], ["servo-listener-old"])
    assert stored(service.systemd) == [(["FDSTOREREMOVE=1", "FDNAME=servo-listener-old"], [])]
    service.notifier.close()


def test_without_systemd_nothing_is_stored() -> None:
    notifier = SystemdNotifier({})
    notifier.store([cast("Any", None)], ["servo-listener-old"])
