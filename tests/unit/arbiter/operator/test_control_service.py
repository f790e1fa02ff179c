"""Answers to operators, with the arbiter's own supervisor and no socket."""

from __future__ import annotations

import json
import logging
import os
import select
import socket
from collections import deque
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any, cast

import pytest

from servo.arbiter.core import actions, events
from servo.arbiter.core.policy import Policy
from servo.arbiter.core.supervisor import Supervisor
from servo.arbiter.operator.control_service import (
    ControlService,
    ControlSocket,
    check_control_socket,
)
from servo.arbiter.operator.feed import Feed
from servo.arbiter.operator.lifecycle_events import LifecycleEvent, event_of
from servo.control import protocol
from servo.control.server import Caller
from servo.errors import ConfigError
from servo.ipc.messages import LogRecords, Ready
from servo.logs import error_log as log_module
from servo.settings.sources import Settings
from servo.shared_memory.output_rings import ACCESS, ACCESS_LINES, APP, STDOUT
from servo.shared_memory.row_layout import LATENCY_BUCKETS
from servo.shared_memory.scoreboard import Scoreboard


class FakeCaller:
    """Keeps what it is sent."""

    def __init__(self) -> None:
        self.uid = os.geteuid()
        self.name = "servoctl"
        self.is_child = False
        self.received: list[dict[str, Any]] = []
        self.result: dict[str, Any] | None = None
        self.failure: tuple[str, str] | None = None
        self.gone = self.following = False

    def note(self, note: dict[str, Any]) -> None:
        self.received.append(note)

    def notes(self, notes: list[dict[str, Any]]) -> None:
        self.received += notes

    def done(self, result: dict[str, Any]) -> None:
        assert self.result is self.failure is None
        self.result = result

    def fail(self, kind: str, error: str, _details: str = "") -> None:
        assert self.result is self.failure is None
        self.failure = (kind, error)


class FakeRouter:
    """Sends to worker 1 alone, which reads nothing if it is told so."""

    def __init__(self) -> None:
        self.sent: list[Any] = []
        self.reads = True

    def by_slot(self) -> dict[int, object]:
        return {1: object()}

    def send_to_slot(self, message: Any, slot: int, topic: str) -> bool:
        self.sent.append((message, slot, topic))
        return slot == 1 and self.reads

    def ask(self, message: Any, slot: int, topic: str, on_answer: Any) -> int:
        self.sent.append((message, slot, topic))
        self.on_answer = on_answer
        return 1

    def forget(self, _number: int) -> None:
        return

    def broadcast(self, message: Any, topic: str) -> int:
        self.sent.append((message, topic))
        return 1


class FakeWorkers(dict[int, Any]):
    """The worker processes by serial: tests add those that write into rings."""

    def __init__(self, signal: Any) -> None:
        super().__init__()
        self.signal = signal

    def __iter__(self) -> Iterator[Any]:
        return iter(self.values())

    def send(self, *_: Any) -> None:
        return


class FakeMolds(list[Any]):
    """The molds: tests add those that write into rings."""

    on_end: Any = None


class Server:
    """The arbiter as the service sees it, driven by hand."""

    def __init__(self, board: Scoreboard, epoll: select.epoll) -> None:
        self.settings = Settings({"app": "x:app", "control_socket_disable": True}, {})
        self.supervisor = Supervisor(Policy(workers=1))
        self.scoreboard = board
        self.router = FakeRouter()
        self.signals: list[tuple[int, int]] = []
        self.may_signal = True
        self.reopened: dict[str, str] = {}
        self.workers = FakeWorkers(self.signal)
        self.molds = FakeMolds()
        self.listeners = [
            SimpleNamespace(
                name="http://127.0.0.1:8000",
                socket=SimpleNamespace(getsockname=lambda: ("127.0.0.1", 8000), fileno=lambda: 3),
            )
        ]
        self.pools: list[Any] = []
        self.inbox: deque[events.Event] = deque()
        self.now = 1.0
        self.service = ControlService(cast("Any", self), ControlSocket(self.settings), epoll)
        self.pids = iter(range(1001, 2000))
        self.enqueue(events.Started())
        self.turn()

    def signal(self, serial: int, signum: int) -> bool:
        self.signals.append((serial, signum))
        return self.may_signal

    def enqueue(self, event: events.Event) -> None:
        self.inbox.append(event)

    def turn(self) -> None:
        """Handle the inbox as the loop does."""
        while self.inbox:
            for action in self.supervisor.handle(self.inbox.popleft(), self.now):
                if isinstance(action, actions.Fork):
                    self.enqueue(events.Forked(action.serial, next(self.pids)))
                elif isinstance(action, actions.RecordLifecycleEvent):
                    self.service.on_event(event_of(action, 100.0))
                elif isinstance(action, actions.ReopenLogFiles):
                    self.service.on_logs_reopened(self.reopened)
                elif isinstance(action, actions.CommandAnswered):
                    self.service.answered(action)
        self.service.settle()

    def ask(self, command: str, **args: Any) -> FakeCaller:
        caller = FakeCaller()
        defaults = protocol.COMMANDS[command].arguments
        args = {name: default for name, (_, default) in defaults.items()} | args
        self.service._handle(cast("Caller", caller), protocol.Request(command, args))
        self.turn()
        return caller


@pytest.fixture
def server() -> Iterator[Server]:
    board = Scoreboard(4)
    with select.epoll() as epoll:
        yield Server(board, epoll)
    board.close()


def test_a_child_is_served_without_a_control_socket(
    server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "servo.error")
    ours, theirs = socket.socketpair()
    with theirs:
        commands = frozenset(["status", "scale"])
        caller = server.service.attach(ours, "dashboard", commands)
        for request in (protocol.request_line("scale", {"to": "1"}), b"\n"):
            theirs.sendall(request)
            assert server.service.on_ready(ours.fileno(), select.EPOLLIN)
            server.service.tick(1.0)
            server.turn()
        assert json.loads(theirs.recv(1000))["result"] == {"workers": 1, "before": 1}
        assert "dashboard: scale to=1" in caplog.text
        server.service.detach(caller)
        assert theirs.recv(1000) == b""


def test_operators_do_not_see_the_secret_of_a_record() -> None:
    control_socket = ControlSocket(Settings({"control_socket_disable": True}, {}))
    record = logging.makeLogRecord({"msg": "the token is abc", "levelname": "INFO"})
    control_socket._on_record(record)
    record.shown = "the token is in the log"
    control_socket._on_record(record)
    texts = [each["text"] for each in control_socket.records.records]
    assert texts == ["the token is abc", "the token is in the log"]


def test_the_status_has_what_a_client_needs_for_its_own_percentiles(server: Server) -> None:
    status = server.ask("status").result
    assert status is not None
    for name in ("latency", "thread_waits", "queue_times"):
        assert status[name] == [0] * LATENCY_BUCKETS
    assert status["worker_class"] == "auto"
    assert len(status["accept_queues"]) == len(status["listeners"])


def test_questions_are_answered_at_once(server: Server) -> None:
    status = server.ask("status").result
    assert status is not None
    assert (status["state"], status["app"]) == ("starting", "x:app")
    assert status["listeners"] == ["http://127.0.0.1:8000"]
    workers = server.ask("workers").result
    assert workers is not None
    assert [(row["slot"], row["pid"]) for row in workers["workers"]] == [(1, 1001)]
    config = server.ask("config").result
    assert config is not None
    assert config["settings"]


def test_a_command_is_answered_when_the_supervisor_has_decided(server: Server) -> None:
    result = server.ask("scale", to="+1").result
    assert result is not None
    assert server.supervisor.count.target == 2
    refused = server.ask("restart-worker", slot=9, wait=False)
    assert refused.failure is not None
    assert refused.failure[0] == protocol.REFUSED
    assert "9" in refused.failure[1]


def test_a_caller_that_waits_for_a_reload_learns_that_it_was_given_up(server: Server) -> None:
    server.enqueue(events.SignalReceived("SIGTERM"))
    server.turn()
    caller = server.ask("reload", wait=True)
    assert caller.failure is not None


def test_a_stop_is_done_once_the_service_closes(server: Server) -> None:
    caller = server.ask("stop", now=False, wait=True)
    assert caller.result is None
    assert caller.failure is None
    server.service.close()
    assert caller.result == {}


def test_events_are_kept_and_followed(server: Server) -> None:
    once = server.ask("events", follow=False)
    assert [event["name"] for event in once.received] == ["spawned"]
    assert once.result == {}
    follower = server.ask("events", follow=True)
    assert follower.following
    server.ask("scale", to="+1")
    assert "scaled" in [event["name"] for event in follower.received]


def test_log_lines_of_workers_name_them(server: Server) -> None:
    server.service.on_message(1, LogRecords([(5.0, "warning", "slow")], 3))
    lines = server.ask("logs", follow=False).received
    assert lines[0] == {"time": 5.0, "level": "warning", "slot": 1, "pid": 1001, "text": "slow"}
    assert "3 lines of this worker are missing" in lines[1]["text"]


def worker_with_output(server: Server, serial: int, *lines: str) -> Any:
    """A worker process that has printed lines."""
    output = server.scoreboard.output
    assert output is not None
    row = server.scoreboard.allocate(serial, 1, 1)
    server.workers[serial] = SimpleNamespace(serial=serial, slot=1, pid=1001, row_index=row)
    ring, access_ring = output.writer(row, APP), output.writer(row, ACCESS)
    for line in lines:
        ring.append(STDOUT, 9, b"", line.encode() + b"\n")
        access_ring.append(ACCESS_LINES, 1, b"", f'"GET /{line} HTTP/1.1" 404 -\n'.encode())
    return ring


def test_the_output_of_workers_is_between_the_lines_of_the_arbiter(server: Server) -> None:
    server.service.on_message(1, LogRecords([(5.0, "info", "long ago")]))
    worker_with_output(server, 1, "one", "two")
    server.service.on_message(1, LogRecords([(9e9, "info", "much later")]))
    lines = server.ask("logs").received
    assert [line["text"] for line in lines] == ["long ago", "one", "two", "much later"]
    assert (lines[1]["slot"], lines[1]["pid"], lines[1]["stream"]) == (1, 1001, "stdout")


def test_new_output_is_sent_to_followers(server: Server) -> None:
    ring = worker_with_output(server, 1, "past")
    follower = server.ask("logs", follow=True)
    assert [line["text"] for line in follower.received] == ["past"]
    ring.append(STDOUT, 9, b"", b"new\n")
    server.service._output.tick(float("inf"))
    assert [line["text"] for line in follower.received] == ["past", "new"]
    ring.append(STDOUT, 9, b"", b"the last")
    server.service.close()
    assert [line["text"] for line in follower.received] == ["past", "new", "the last"]


def test_the_last_words_of_a_worker_outlive_it(server: Server) -> None:
    worker_with_output(server, 1, "last words")
    exited = LifecycleEvent("exited", 1.0, "it ended", slot=1, serial=1, reason="crashed")
    server.service.on_event(exited)
    assert [line["text"] for line in server.ask("logs").received] == ["last words"]
    server.scoreboard.release(server.workers.pop(1).row_index)
    worker_with_output(server, 2, "hello")  # in the same row
    state = json.loads(json.dumps(server.service.to_state()))
    assert [line["text"] for line in server.ask("logs").received] == ["last words", "hello"]
    server.service._output.ended = Feed(10, 1000)
    server.service.restore(state)
    assert [line["text"] for line in server.ask("logs").received] == ["last words", "hello"]
    del state["output"], state["access_lines"]  # from an older version
    server.service.restore(state)


def test_the_output_of_a_mold(server: Server) -> None:
    output = server.scoreboard.output
    assert output is not None
    server.molds.append(SimpleNamespace(generation=3, pid=77))
    output.writer(output.mold_row(3), APP).append(STDOUT, 9, b"", b"importing\n")
    (line,) = server.ask("logs").received
    assert (line["text"], line["mold"], line["pid"]) == ("importing", 3, 77)
    server.molds.on_end(server.molds[0])
    server.molds.clear()
    assert server.ask("logs").received == [line]


def test_the_access_log(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    worker_with_output(server, 1, "a", "b")
    failure = server.ask("logs", access=True).failure
    assert failure is not None
    assert "--access-logfile -" in failure[1]
    monkeypatch.setattr(log_module, "user_handles_access_log", lambda: True)
    lines = server.ask("logs", access=True).received
    assert [line["text"][:6] for line in lines] == ['"GET /'] * 2
    assert {(line["level"], line["stream"]) for line in lines} == {("warning", "access")}


def test_a_report_has_the_output_of_workers(server: Server) -> None:
    worker_with_output(server, 1, "one", "two")
    report = server.ask("report", lines=1).result
    assert report is not None
    assert [line["text"] for line in report["logs"]] == ["two"]


def test_messages_to_applications(server: Server) -> None:
    assert server.ask("send", slot=0, message='{"a": 1}', topic="t").result == {"workers": 1}
    assert server.ask("send", slot=1, message="2", topic="").result == {"workers": 1}
    assert server.router.sent == [({"a": 1}, "t"), (2, 1, "")]
    unknown = server.ask("send", slot=7, message="2", topic="").failure
    assert unknown == (protocol.REFUSED, "there is no worker 7; the slots are 1")
    server.router.reads = False
    behind = server.ask("send", slot=1, message="2", topic="").failure
    assert behind == (protocol.REFUSED, "worker 1 does not read its messages")
    wrong = server.ask("send", slot=1, message="{", topic="").failure
    assert wrong is not None
    assert wrong[0] == protocol.USAGE


def test_calls_of_message_handlers(server: Server) -> None:
    def call(slot: int = 1, message: str = '{"a": 1}', timeout_ms: int = 5000) -> FakeCaller:
        return server.ask("call", slot=slot, message=message, topic="t", timeout_ms=timeout_ms)

    caller = call()
    assert caller.result is caller.failure is None
    assert server.router.sent == [({"a": 1}, 1, "t")]
    server.router.on_answer("", [1, 2])
    assert caller.result == {"slot": 1, "answer": "[1, 2]"}
    caller = call()
    server.router.on_answer("failed", "worker 1: ValueError: no")
    assert caller.failure == (protocol.REFUSED, "worker 1: ValueError: no")
    assert call(slot=7).failure == (protocol.REFUSED, "there is no worker 7; the slots are 1")
    wrong = call(message="{").failure
    assert wrong is not None
    assert wrong[0] == protocol.USAGE
    for timeout_ms in (-1, 10**400):
        caller = call(timeout_ms=timeout_ms)
        server.service._calls.tick(float("inf"))
        assert caller.failure is not None
        assert "has not answered within" in caller.failure[1]


def test_restarts_are_counted(server: Server) -> None:
    restarts = lambda: (server.ask("status").result or {})["restarts"]  # noqa: E731
    assert restarts() == 0
    for reason in ("crashed", "recycled", "out_of_memory", "replaced"):
        exited = LifecycleEvent("exited", 1.0, "it ended", slot=1, serial=1, reason=reason)
        server.service.on_event(exited)
    assert restarts() == 2
    state = json.loads(json.dumps(server.service.to_state()))
    server.service.restore(state)
    assert restarts() == 2
    del state["restarts"]  # from an older version
    server.service.restore(state)
    assert restarts() == 0


def test_a_report_hides_the_secrets_that_the_server_knows(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SHOP_TOKEN", "hunter2-hunter2")
    server.service.on_message(1, LogRecords([(5.0, "info", "it is hunter2-hunter2")]))
    server.service.on_message(1, LogRecords([(6.0, "info", "the last line")]))
    report = server.ask("report", lines=2).result
    assert report is not None
    assert [line["text"] for line in report["logs"]] == ["it is [removed]", "the last line"]
    assert (report["status"]["app"], report["workers"][0]["slot"]) == ("x:app", 1)
    last = server.ask("report", lines=-5).result
    assert last is not None
    assert [line["text"] for line in last["logs"]] == ["the last line"]


def test_a_stack_of_a_worker_that_is_not_there(server: Server) -> None:
    failure = server.ask("stack", slot=4).failure
    assert failure == (protocol.REFUSED, "there is no worker 4; the slots are 1")


def test_reopened_logs_are_named(server: Server) -> None:
    server.reopened = {"/var/log/error.log": "", "/var/log/access.log": ""}
    assert server.ask("reopen").result == {"files": list(server.reopened), "workers": 1}
    server.reopened["/var/log/access.log"] = "can't open /var/log/access.log: No space left"
    failure = server.ask("reopen").failure
    text = "the old log stays in use: can't open /var/log/access.log: No space left"
    assert failure == (protocol.REFUSED, text)


def test_a_signal_goes_to_the_worker_that_stays(server: Server) -> None:
    result = server.ask("signal", slot=1, name="kill").result
    assert result is not None
    assert (result["slot"], result["pid"], result["signal"]) == (1, 1001, "SIGKILL")
    assert "a new worker takes slot 1" in result["effect"]
    assert server.signals == [(1, 9)]


def test_a_signal_that_can_not_be_sent(server: Server) -> None:
    unknown = server.ask("signal", slot=1, name="TREM").failure
    assert unknown == (protocol.USAGE, "'TREM' is not a signal; did you mean TERM?")
    no_slot = server.ask("signal", slot=2, name="TERM").failure
    assert no_slot == (protocol.REFUSED, "there is no worker 2; the slots are 1")
    a_pid = server.ask("signal", slot=1001, name="TERM").failure
    text = "there is no worker 1001; the slots are 1; 1001 is the pid of worker 1"
    assert a_pid == (protocol.REFUSED, text)
    assert server.signals == []
    server.may_signal = False
    forbidden = server.ask("signal", slot=1, name="TERM").failure
    assert forbidden is not None
    assert "can't be sent SIGTERM" in forbidden[1]


def test_an_error_in_an_answer_does_not_end_the_server(
    server: Server, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(server.scoreboard, "totals", lambda: 1 // 0)
    failure = server.ask("status").failure
    assert failure is not None
    assert "The control request status failed" in caplog.text


def test_a_path_where_no_socket_can_be() -> None:
    check_control_socket(Settings({"app": "x:app"}, {}))
    long = Settings({"app": "x:app", "control_socket": "/tmp/" + "x" * 200}, {})
    with pytest.raises(ConfigError, match="control_socket: "):
        check_control_socket(long)


def test_only_root_and_the_servers_user_may_name_an_interpreter(server: Server) -> None:
    """Others in control_allow would choose a program that runs as the server's user."""
    server.enqueue(events.MessageReceived(1, Ready("sync")))
    server.turn()
    other = FakeCaller()
    other.uid = 65534
    args = {"python": "/tmp/python", "wait": True}
    server.service._handle(cast("Caller", other), protocol.Request("upgrade", args))
    server.turn()
    assert other.failure == (
        protocol.DENIED,
        f"only root and user {os.geteuid()} may name an interpreter",
    )
    assert server.supervisor.upgrade is None


def test_a_caller_learns_that_its_upgrade_has_failed(server: Server) -> None:
    server.enqueue(events.MessageReceived(1, Ready("sync")))
    server.turn()
    caller = server.ask("upgrade", python="/opt/python", wait=True)
    assert caller.received == [{"step": "accepted", "generation": 2, "workers": 1}]
    server.enqueue(events.PreflightEnded("there is no interpreter /opt/python"))
    server.turn()
    assert caller.failure == (protocol.REFUSED, "there is no interpreter /opt/python")


def test_the_next_program_has_the_events_of_this_one(server: Server) -> None:
    server.enqueue(events.ChildExited(1001, 1))
    server.turn()
    state = json.loads(json.dumps(server.service.to_state()))
    with select.epoll() as epoll:
        after = ControlService(cast("Any", server), ControlSocket(server.settings), epoll)
    after.restore(state)
    assert after.to_state() == server.service.to_state()
    assert after._last_exits[1].reason == "exited"


def test_a_server_without_pools(server: Server) -> None:
    assert server.ask("pools").result == {"server_pid": os.getpid(), "pools": []}
    assert server.ask("requests").result == {"workers": [], "tasks": []}
