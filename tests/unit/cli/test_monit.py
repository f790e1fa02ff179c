"""The loop of `servoctl monit`, with a pseudo-terminal and a server with prepared answers."""

from __future__ import annotations

import curses
import importlib.util
import os
import signal
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from servo.cli import ctl, monit, target
from servo.cli import monit_link as link
from servo.cli.monit import Monitor
from servo.cli.monit_state import Send, ServerList, ServerScreen
from servo.cli.target import Target
from servo.control.instances import Instance
from servo.errors import ServoError, UsageError

STATUS: dict[str, Any] = {
    "name": "shop",
    "pid": 7,
    "state": "running",
    "phase": "",
    "generation": 2,
    "uptime_s": 75.0,
    "listeners": [],
    "workers": {"target": 1, "ready": 1, "total": 1},
    "requests_per_s": 12.5,
    "utilisation": 0.25,
    "statuses": {"5xx": 0},
}
ROW = {"slot": 1, "serial": 1, "pid": 4711, "state": "ready"}
Shown = Callable[[], str]
SHOP = Instance("shop", 7, "/run/shop-7.sock")
BLOG = Instance("blog", 9, "/run/blog-9.sock")


class Terminal:
    """A terminal with prepared keys: one entry for each `wait`. It ends with Ctrl-C.

    An entry is a list of keys, or a function that is called instead.
    """

    def __init__(self, *waits: list[str] | Callable[[], None]) -> None:
        self.waits = list(waits)
        self.size = (80, 24)
        self.ended: int | None = None
        self.suspended = False
        self.calls: list[str] = []

    def wait(self, _timeout_s: float) -> list[str]:
        if not self.waits:
            return ["ctrl-c"]
        entry = self.waits.pop(0)
        if callable(entry):
            entry()
            return []
        return entry

    def wake(self) -> None:
        self.calls.append("wake")

    def take_suspension(self) -> bool:
        wanted, self.suspended = self.suspended, False
        return wanted

    def restore(self) -> None:
        self.calls.append("restore")

    def take_keys(self) -> None:
        self.calls.append("take_keys")


class Link:
    """A link without connections: records its calls, and lets the test put items."""

    opened: list[Link] = []

    def __init__(self, of: Any, on_item: Callable[[link.Item], None]) -> None:
        self.of = of
        self.put = on_item
        self.sent: list[Send] = []
        self.is_closed = False
        self.opened.append(self)

    def start(self) -> None:
        return

    def send(self, send: Send) -> None:
        self.sent.append(send)

    def close(self) -> None:
        self.is_closed = True


class ServerLink(Link):
    pass


class ListLink(Link):
    pass


@pytest.fixture
def shown(capsys: pytest.CaptureFixture[str]) -> Callable[[], str]:
    """Returns all that was written to the terminal so far."""
    parts: list[str] = []

    def shown() -> str:
        parts.append(capsys.readouterr().out)
        return "".join(parts)

    return shown


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Link]]:
    """The links that the loop has opened."""
    monkeypatch.setattr(link, "ServerLink", ServerLink)
    monkeypatch.setattr(link, "ListLink", ListLink)
    monkeypatch.setattr(link, "all_servers", list)
    monkeypatch.setattr(monit, "_has_colours", lambda _term: True)
    monkeypatch.setenv("TERM", "xterm")
    Link.opened.clear()
    yield Link.opened
    assert all(each.is_closed for each in Link.opened)


def run(*waits: list[str] | Callable[[], None], instance: Instance | None = SHOP) -> Monitor:
    monitor = Monitor(Target())
    terminal: Any = Terminal(*waits)
    assert monitor.run(terminal, instance) == 0
    return monitor


def test_items_reach_the_screen(opened: list[Link]) -> None:
    def answer() -> None:
        put = opened[0].put
        put(link.Snapshot(STATUS, [dict(ROW)]))
        put(link.Note("events", {"time": 1.0, "name": "ready", "text": "it is ready"}))
        put(link.Note("logs", {"time": 1.0, "level": "info", "text": "a line"}))
        put(link.Progress("a step"))
        put(link.Lost("it is silent"))

    screen = run(answer, [])._screen
    assert isinstance(screen, ServerScreen)
    assert [each.row["pid"] for each in screen.workers] == [4711]
    assert (len(screen.events), len(screen.logs)) == (1, 1)
    assert screen.message.text == "a step"
    assert screen.problem == "it is silent"


def test_the_screen_is_drawn_and_left(opened: list[Link], shown: Shown) -> None:
    run(lambda: opened[0].put(link.Snapshot(STATUS, [dict(ROW)])), ["?"], ["x"], ["q"])
    text = shown()
    assert text.startswith("\x1b[?1049h")
    assert "select a worker" in text
    assert text.endswith("\x1b[?1049l")
    assert "\x1b[?25h" in text


def test_keys_send_commands_and_results_are_shown(opened: list[Link]) -> None:
    reload = Send("reload", {})

    def answer() -> None:
        result = {"replaced": 1, "seconds": 1.0, "generation": 3}
        opened[0].put(link.Result(reload, result))
        opened[0].put(link.Failure(Send("scale", {"to": "+1"}), "refused"))
        opened[0].put(link.NotesRestarted("logs"))

    monitor = run(["r", "y", "+"], answer, [])
    assert opened[0].sent == [reload, Send("scale", {"to": "+1"})]
    assert isinstance(monitor._screen, ServerScreen)
    assert monitor._screen.message.text == "scale: refused"


def test_a_terminal_that_is_too_small_takes_no_commands(opened: list[Link], shown: Shown) -> None:
    monitor = Monitor(Target())
    terminal: Any = Terminal(["+"], ["r", "y"], ["q"], ["+"])
    terminal.size = (40, 10)
    assert monitor.run(terminal, SHOP) == 0
    assert opened[0].sent == []
    assert terminal.waits == [["+"]]
    assert "needs 80x24" in shown().replace("\n", " ")


def test_the_list_opens_a_server_and_the_server_the_list(opened: list[Link]) -> None:
    def find() -> None:
        opened[-1].put(link.Servers([SHOP], [{**STATUS, "error": ""}]))

    monitor = run(find, [], ["enter"], ["l"], [], instance=None)
    assert [type(each) for each in opened] == [ListLink, ServerLink, ListLink]
    assert isinstance(monitor._screen, ServerList)
    assert [each.is_closed for each in opened] == [True, True, True]


def test_items_of_a_screen_that_was_left_are_dropped(opened: list[Link]) -> None:
    def late() -> None:
        opened[0].put(link.Snapshot(STATUS, []))
        opened[1].put(link.Lost("for a list, this has no meaning"))

    monitor = run(["l"], late, [])
    assert isinstance(monitor._screen, ServerList)
    assert monitor._screen.rows is None


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 0), (signal.SIGTERM, 143), (signal.SIGHUP, 129)]
)
@pytest.mark.usefixtures("opened")
def test_signals_end_it(shown: Shown, number: int, code: int) -> None:
    monitor = Monitor(Target())
    terminal: Any = Terminal([])
    terminal.waits = [lambda: setattr(terminal, "ended", number)]
    assert monitor.run(terminal, SHOP) == code
    assert shown().endswith("\x1b[?1049l")


@pytest.mark.usefixtures("opened")
def test_ctrl_z_stops_it_with_the_terminal_restored(
    monkeypatch: pytest.MonkeyPatch, shown: Shown
) -> None:
    terminal: Any = Terminal()
    sent: list[int] = []

    def kill(pid: int, number: int) -> None:
        assert pid == os.getpid()
        assert terminal.calls == ["restore"]
        assert shown().endswith("\x1b[?1049l")
        sent.append(number)

    monkeypatch.setattr(os, "kill", kill)
    terminal.waits = [lambda: setattr(terminal, "suspended", True)]
    Monitor(Target()).run(terminal, SHOP)
    assert sent == [signal.SIGSTOP]
    assert terminal.calls == ["restore", "take_keys"]
    assert shown().count("\x1b[?1049h") == 2


@pytest.mark.usefixtures("opened")
def test_an_error_leaves_the_screen(shown: Shown) -> None:
    def fail() -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run(fail)
    assert shown().endswith("\x1b[?1049l")


# --- the start ------------------------------------------------------------------------------------


@pytest.fixture
def at_terminal(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert capsys.readouterr().out == ""  # it has replaced stdout
    monkeypatch.setattr(type(sys.stdin), "isatty", lambda _self: True)
    monkeypatch.setattr(type(sys.stdout), "isatty", lambda _self: True, raising=False)
    monkeypatch.setenv("TERM", "xterm")


def test_json_is_refused() -> None:
    with pytest.raises(UsageError, match="servoctl workers --json"):
        monit.run(Target(json=True))


def test_a_pipe_is_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    assert ctl.main(["monit"]) == 2
    assert "monit needs a terminal" in capsys.readouterr().err


@pytest.mark.usefixtures("at_terminal")
@pytest.mark.parametrize("term", ["dumb", "unknown", ""])
def test_a_dumb_terminal(monkeypatch: pytest.MonkeyPatch, term: str) -> None:
    monkeypatch.setenv("TERM", term)
    with pytest.raises(UsageError, match=f"TERM={term}"):
        monit.run(Target())


@pytest.mark.usefixtures("at_terminal")
def test_without_rich(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)
    with pytest.raises(ServoError, match=r"^monit needs rich: pip install 'rich>=13'$"):
        monit.run(Target())


@pytest.mark.usefixtures("at_terminal")
def test_a_dead_server_is_reported_before_the_screen(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(monit, "running_servers", list)
    assert ctl.main(["monit", "--socket", "/nowhere"]) == 3
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "/nowhere does not exist" in captured.err


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[Instance | None]:
    """What `run` shows first, instead of showing it; the running servers are SHOP and BLOG."""
    shown: list[Instance | None] = []

    class Connection:
        def __enter__(self) -> Connection:
            return self

        def __exit__(self, *_: object) -> None:
            return

        def request(self, command: str) -> dict[str, Any]:
            return {"command": command}

    def show(_self: Monitor, _terminal: Any, instance: Instance | None) -> int:
        shown.append(instance)
        return 5

    class NoTerminal(Terminal):
        def __init__(self, *_fds: int) -> None:
            super().__init__()

        def __enter__(self) -> NoTerminal:
            return self

        def __exit__(self, *_: object) -> None:
            return

    for module in (monit, target):
        monkeypatch.setattr(module, "running_servers", lambda: [SHOP, BLOG])
    for stream in (sys.stdin, sys.stdout):
        monkeypatch.setattr(type(stream), "fileno", lambda _self: -1)
    monkeypatch.setattr(Target, "connect_to", lambda _self, _instance: Connection())
    monkeypatch.setattr(Monitor, "run", show)
    monkeypatch.setattr(monit, "Terminal", NoTerminal)
    return shown


@pytest.mark.usefixtures("at_terminal")
@pytest.mark.parametrize(
    ("options", "first"),
    [
        ({"name": "shop"}, SHOP),
        ({"pid": 9}, BLOG),
        ({}, None),
        ({"name": "shop", "every": True}, None),
        ({"socket": "/run/x.sock"}, Instance("", 0, "/run/x.sock")),
    ],
)
def test_several_servers_are_listed_first(
    started: list[Instance | None], options: dict[str, Any], first: Instance | None
) -> None:
    assert monit.run(Target(**options)) == 5
    assert started == [first]


@pytest.mark.usefixtures("at_terminal")
def test_with_all_the_list_is_shown_once(started: list[Instance | None]) -> None:
    assert ctl.main(["--all", "monit"]) == 5
    assert started == [None]


@pytest.mark.parametrize(
    ("no_color", "colours", "coloured"),
    [("", 256, True), ("", 8, True), ("1", 256, False), ("", -1, False)],
)
def test_colours(
    monkeypatch: pytest.MonkeyPatch, no_color: str, colours: int, coloured: bool
) -> None:
    monkeypatch.setattr(curses, "setupterm", lambda _term, _fd: None)
    monkeypatch.setattr(curses, "tigetnum", lambda _name: colours)
    monkeypatch.setattr(sys.stdout, "fileno", lambda: 1)
    live = monit.make_live({"TERM": "xterm", "NO_COLOR": no_color})
    assert live.console.no_color is not coloured


def test_an_unknown_terminal_has_colours(monkeypatch: pytest.MonkeyPatch) -> None:
    def setupterm(_term: str, _fd: int) -> None:
        raise curses.error

    monkeypatch.setattr(curses, "setupterm", setupterm)
    monkeypatch.setattr(sys.stdout, "fileno", lambda: 1)
    assert not monit.make_live({"TERM": "no-such-terminal"}).console.no_color
