"""Commands over the control socket: each is carried out, or refused with a reason."""

from __future__ import annotations

from typing import Any

import pytest

from servo.arbiter.core import actions, events
from servo.arbiter.core.policy import Policy
from servo.arbiter.core.supervisor import Supervisor
from servo.ipc.messages import AppCommand, BootFailed, Booting, Draining, Ready


class Server:
    """A supervisor, workers that obey it, and all actions so far."""

    def __init__(self, workers: int = 2, capacity: int = 6, **values: Any) -> None:
        self.supervisor = Supervisor(Policy(workers=workers, capacity=capacity, **values))
        self.now = 100.0
        self.actions: list[actions.Action] = []
        self.tell(events.Started())
        self.boot()

    def tell(self, event: events.Event) -> list[actions.Action]:
        answer = self.supervisor.handle(event, self.now)
        self.actions += answer
        for action in answer:
            if isinstance(action, actions.Fork):
                self.tell(events.Forked(action.serial, 1000 + action.serial))
        return answer

    def boot(self) -> None:
        for worker in self.supervisor.workers:
            if not worker.ready and worker.live:
                self.says(worker.serial, Booting())
                self.says(worker.serial, Ready("sync"))

    def says(self, serial: int, message: Any) -> None:
        self.tell(events.MessageReceived(serial, message))

    def drain(self) -> None:
        for worker in self.supervisor.workers.draining():
            assert worker.pid is not None
            self.says(worker.serial, Draining())
            self.tell(events.ChildExited(worker.pid, 0))

    def ask(self, command: str, argument: object = None) -> actions.CommandAnswered:
        done = self.tell(events.CommandReceived(7, command, argument))
        (answer,) = (action for action in done if isinstance(action, actions.CommandAnswered))
        assert answer.ticket == 7
        return answer

    def recorded(self) -> list[str]:
        return [
            action.name
            for action in self.actions
            if isinstance(action, actions.RecordLifecycleEvent)
        ]


@pytest.mark.parametrize(
    ("to", "workers"), [("4", 4), ("+1", 3), ("-1", 1), (" 2 ", 2), ("+0", 2), ("5", 5)]
)
def test_scale(to: str, workers: int) -> None:
    server = Server()
    answer = server.ask("scale", to)
    assert (answer.refused, answer.result) == ("", {"workers": workers, "before": 2})
    assert server.supervisor.count.target == workers


@pytest.mark.parametrize(
    ("to", "says"),
    [
        ("0", "at least one worker stays"),
        ("-2", "at least one worker stays"),
        ("6", "no room for more than 5 workers"),
        ("+4", "no room for more than 5 workers"),
        ("many", "not a number of workers"),
        ("1" * 500, "not a number of workers"),
        ("--1", "not a number of workers"),
        ("", "not a number of workers"),
    ],
)
def test_scale_refused(to: str, says: str) -> None:
    server = Server()
    assert says in server.ask("scale", to).refused
    assert server.supervisor.count.target == 2


def test_scale_moves_the_lower_bound_of_autoscaling() -> None:
    server = Server(max_workers=4)
    answer = server.ask("scale", "+1")
    assert answer.result == {"workers": 3, "before": 2, "most": 4, "now": 3}
    assert server.ask("scale", "5").refused == (
        "autoscaling goes up to 4 workers (workers = MIN:MAX)"
    )


def test_a_reload_says_which_generation_it_brings() -> None:
    server = Server()
    assert server.ask("reload").result == {"generation": 2, "workers": 2}
    # Asked again meanwhile, another follows.
    assert server.ask("reload").result["generation"] == 3
    server.tell(events.ConfigChecked(2, "it is bad"))
    assert server.supervisor.reload is not None
    assert server.supervisor.reload.generation == 3
    happened = [
        action for action in server.actions if isinstance(action, actions.RecordLifecycleEvent)
    ]
    (rolled_back,) = (each for each in happened if each.name == "reload_rolled_back")
    assert (rolled_back.generation, rolled_back.reason) == (
        2,
        "the configuration is bad: it is bad",
    )


def test_a_roll_back_has_the_traceback() -> None:
    server = Server()
    server.ask("reload")
    server.tell(events.ConfigChecked(2))
    server.tell(events.ConfigLoaded(2, server.supervisor.policy))
    assert server.supervisor.reload is not None
    canary = server.supervisor.reload.canary
    assert canary is not None
    server.says(canary, Booting())
    server.says(canary, BootFailed("app", "it raised\nTraceback (most recent call last): …"))
    (event,) = (
        action
        for action in server.actions
        if isinstance(action, actions.RecordLifecycleEvent) and action.name == "reload_rolled_back"
    )
    assert event.reason == "its first worker failed: it raised"
    assert "Traceback" in event.details


@pytest.mark.parametrize("by", ["servoctl", "dashboard"])
def test_events_name_the_sender(by: str) -> None:
    server = Server()
    server.tell(events.CommandReceived(7, "scale", "3", by))
    server.boot()
    server.tell(events.CommandReceived(8, "restart-worker", 1, by))
    server.boot()
    server.tell(events.CommandReceived(9, "reload", None, by))
    happened = {
        action.name: action
        for action in server.actions
        if isinstance(action, actions.RecordLifecycleEvent)
    }
    assert happened["scaled"].reason == happened["reload_started"].reason == by
    text = f"is draining: an operator asked for its restart ({by})"
    assert text in happened["draining"].text


def test_a_restart_is_new_first() -> None:
    server = Server()
    answer = server.ask("restart-worker", 2)
    assert answer.result["slot"] == 2
    assert sum(worker.ready for worker in server.supervisor.workers.live()) == 2
    server.boot()
    (old,) = server.supervisor.workers.draining()
    assert (old.serial, old.slot) == (answer.result["serial"], 2)
    happened = [
        action for action in server.actions if isinstance(action, actions.RecordLifecycleEvent)
    ]
    assert [(each.name, each.reason) for each in happened][-1] == ("draining", "restarted")
    assert server.ask("restart-worker", 2).refused == ""


def test_a_restart_refused() -> None:
    server = Server()
    assert (
        server.ask("restart-worker", 9).refused == "no worker serves in slot 9; the slots are 1, 2"
    )
    assert server.ask("restart-worker", 1).refused == ""
    assert "is being replaced already" in server.ask("restart-worker", 1).refused


def test_stop_and_what_comes_after_it() -> None:
    server = Server()
    assert server.ask("stop", False).refused == ""
    assert server.supervisor.stopping is not None
    assert not server.supervisor.stopping.quick
    for command, argument in (("reload", None), ("scale", "3"), ("restart-worker", 1)):
        assert server.ask(command, argument).refused == "the server is stopping"
    server.ask("stop", True)
    assert server.supervisor.stopping.quick
    server.drain()
    assert isinstance(server.actions[-1], actions.Exit)


def test_every_transition_is_one_event() -> None:
    server = Server(workers=1)
    server.ask("scale", "2")
    server.boot()
    server.ask("scale", "1")
    server.drain()
    assert server.recorded() == [
        "spawned",
        "booting",
        "ready",
        "scaled",
        "spawned",
        "booting",
        "ready",
        "scaled",
        "draining",
        "exited",
    ]


def test_reopening_tells_every_worker_that_reads_its_channel() -> None:
    server = Server(workers=3)
    server.tell(events.ChannelLost(2))
    done = server.tell(events.CommandReceived(7, "reopen", None))
    kinds = [type(action) for action in done]
    # The driver has reopened its own files before it answers.
    assert kinds.index(actions.ReopenLogFiles) < kinds.index(actions.CommandAnswered)
    told = [action.serial for action in done if isinstance(action, actions.SendMessage)]
    assert told == [1, 3]
    (answer,) = (action for action in done if isinstance(action, actions.CommandAnswered))
    assert answer.result == {"workers": 2}
    assert actions.Log("info", "servoctl: the log files are reopened") in done


def logged(server: Server) -> str:
    return "\n".join(action.text for action in server.actions if isinstance(action, actions.Log))


def test_an_application_reloads_and_scales() -> None:
    server = Server(app_may_control=True)
    server.says(1, AppCommand("scale", "3"))
    server.boot()
    assert server.supervisor.count.target == 3
    server.says(1, AppCommand("reload"))
    assert server.supervisor.reload is not None
    assert "the application in worker 1" in logged(server)


@pytest.mark.parametrize("argument", ["0", "7", "-9", "x", "", "9" * 100_000, "1\n2"])
def test_an_application_may_not_ask_for_everything(argument: str) -> None:
    server = Server(app_may_control=True)
    server.says(1, AppCommand("scale", argument))
    assert server.supervisor.count.target == 2
    assert "scale, asked for by the application in worker 1, is refused: " in logged(server)


@pytest.mark.parametrize("command", ["reload", "scale", "stop", "upgrade"])
def test_commands_of_applications_are_ignored_unless_allowed(command: str) -> None:
    server = Server(app_may_control=command in ("stop", "upgrade"))
    server.says(1, AppCommand(command, "1"))
    assert server.supervisor.reload is None
    assert server.supervisor.stopping is None
    assert server.supervisor.upgrade is None
    assert server.supervisor.count.target == 2
    assert "has sent a command that it may not: ignored" in logged(server)
