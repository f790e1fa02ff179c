"""The state of `servoctl monit`: answers and keys in, actions out."""

from __future__ import annotations

from typing import Any

import pytest

from servo.cli.monit_state import (
    SAMPLES,
    Action,
    History,
    Message,
    Mode,
    OpenList,
    OpenServer,
    Quit,
    Send,
    ServerList,
    ServerScreen,
    fits,
)
from servo.control.instances import Instance
from servo.shared_memory.row_layout import LATENCY_BUCKETS

STATUS: dict[str, Any] = {
    "name": "shop",
    "pid": 7,
    "state": "running",
    "phase": "",
    "generation": 2,
    "uptime_s": 75.0,
    "listeners": ["http://127.0.0.1:8000"],
    "workers": {"target": 2, "ready": 2, "blocked": 0, "total": 2},
    "requests_per_s": 12.5,
    "utilisation": 0.25,
    "statuses": {"2xx": 100, "5xx": 3},
}


def row(slot: int, serial: int | None = None, **values: Any) -> dict[str, Any]:
    """A worker's row as `workers` answers it."""
    serial = slot if serial is None else serial
    base = {"slot": slot, "serial": serial, "pid": 1000 + serial, "state": "ready"}
    measures = {"requests_per_s": 6.0, "p99_s": 0.5, "utilisation": 0.2, "blocked_s": 0.0}
    usage = {"cpu_percent": 10.0, "rss_bytes": 50 << 20}
    return {**base, **measures, **usage, **values}


def status(**values: Any) -> dict[str, Any]:
    return {**STATUS, **values}


@pytest.fixture
def screen() -> ServerScreen:
    """A server with three workers; the first is selected."""
    made = ServerScreen("shop")
    made.on_snapshot(STATUS, [row(1), row(2), row(3)], 100.0)
    return made


def press(screen: ServerScreen | ServerList, *keys: str) -> list[Action]:
    """The actions that keys cause."""
    return [action for key in keys if (action := screen.on_key(key)) is not None]


@pytest.mark.parametrize(
    ("width", "height", "does"), [(80, 24, True), (79, 24, False), (80, 23, False)]
)
def test_the_smallest_terminal(width: int, height: int, does: bool) -> None:
    assert fits(width, height) is does


# --- history --------------------------------------------------------------------------------------


def test_a_history_keeps_a_minute() -> None:
    history = History()
    assert history.last is None
    for value in range(SAMPLES + 5):
        history.add(float(value))
    assert history.values == [float(value) for value in range(5, SAMPLES + 5)]
    assert (history.last, history.count) == (float(SAMPLES + 4), SAMPLES + 5)


def test_a_history_has_gaps_for_missed_seconds() -> None:
    history = History()
    history.add(1.0)
    history.add(2.0, missed=3)
    assert history.values == [1.0, None, None, None, 2.0]
    assert history.known == [1.0, 2.0]
    history.add(None, missed=10**6)
    assert history.values == [None] * SAMPLES


# --- answers --------------------------------------------------------------------------------------


def test_the_histories_of_workers_and_server(screen: ServerScreen) -> None:
    screen.on_snapshot(status(requests_per_s=3.0), [row(1, requests_per_s=1.0), row(2)], 101.0)
    first = screen.workers[0].history
    assert first["rate"].values == [6.0, 1.0]
    assert first["cpu"].values == [10.0, 10.0]
    assert screen.totals["rate"].values == [12.5, 3.0]
    assert screen.totals["cpu"].values == [30.0, 20.0]
    assert screen.totals["memory"].last == 100 << 20
    assert screen.totals["use"].last == 0.25


def test_a_silent_time_is_a_gap(screen: ServerScreen) -> None:
    screen.on_snapshot(STATUS, [row(1)], 104.2)
    assert screen.totals["rate"].values == [12.5, None, None, None, 12.5]
    assert screen.workers[0].history["rate"].values == [6.0, None, None, None, 6.0]


def test_a_worker_without_measurements_and_no_workers(screen: ServerScreen) -> None:
    spawned = {"slot": 1, "serial": 9, "pid": None, "state": "spawned"}
    screen.on_snapshot(STATUS, [spawned], 101.0)
    assert screen.workers[0].history["rate"].values == [None]
    assert screen.totals["cpu"].last is None
    screen.on_snapshot(STATUS, [], 102.0)
    assert screen.selected_slot is None
    assert press(screen, "up", "down") == []


def test_the_p99_covers_the_last_seconds(screen: ServerScreen) -> None:
    def counts(bucket: int, count: int) -> list[int]:
        return [count if i == bucket else 0 for i in range(LATENCY_BUCKETS)]

    slow = counts(12, 100)
    screen.on_snapshot(STATUS, [row(1, 11, latency=slow)], 101.0)
    # No request is known to be of the last seconds: these may be old.
    assert screen.workers[0].history["p99"].last is None
    fast = [count + more for count, more in zip(slow, counts(2, 10), strict=True)]
    screen.on_snapshot(STATUS, [row(1, 11, latency=fast)], 102.0)
    p99 = screen.workers[0].history["p99"].last
    assert p99 is not None
    assert p99 < 0.01
    assert screen.totals["p99"].last == p99
    for second in range(103, 110):
        screen.on_snapshot(STATUS, [row(1, 11, latency=fast)], float(second))
    assert screen.workers[0].history["p99"].last is None


def test_an_older_server_reports_only_its_own_p99(screen: ServerScreen) -> None:
    assert screen.workers[0].history["p99"].last == 0.5


def test_errors_are_counted_from_the_first_answer(screen: ServerScreen) -> None:
    assert screen.totals["errors"].last == 0
    screen.on_snapshot(status(statuses={"5xx": 8}), [], 101.0)
    assert screen.totals["errors"].last == 5


def test_a_new_server_starts_from_zero(screen: ServerScreen) -> None:
    screen.on_snapshot(status(pid=8, statuses={"5xx": 1}), [row(1, requests_per_s=2.0)], 101.0)
    assert screen.totals["errors"].last == 0
    assert screen.workers[0].history["rate"].values == [2.0]


def test_a_lost_server(screen: ServerScreen) -> None:
    screen.on_lost("it does\x1b not answer")
    assert screen.problem == "it does\\x1b not answer"
    screen.on_snapshot(STATUS, [row(1)], 101.0)
    assert screen.problem == ""


def test_notes_are_kept_and_replaced_by_a_new_connection(screen: ServerScreen) -> None:
    screen.on_note("events", {"time": 1.0, "name": "ready", "text": "worker 1 is ready"})
    screen.on_note("logs", {"time": 1.0, "level": "info", "text": "x" * 100_000})
    assert len(screen.logs[0]["text"]) == 20_000
    screen.on_notes_restarted("events")
    assert (len(screen.events), len(screen.logs)) == (0, 1)
    for i in range(2000):
        screen.on_note("logs", {"time": float(i), "level": "info", "text": "x"})
    assert len(screen.logs) == 1000


# --- the selection --------------------------------------------------------------------------------


def test_arrows_select_a_worker(screen: ServerScreen) -> None:
    assert screen.selected_slot == 1
    press(screen, "down", "down", "down")
    assert screen.selected_slot == 3
    press(screen, "up")
    assert screen.selected_slot == 2
    press(screen, "up", "up")
    assert screen.selected_slot == 1


def test_the_selection_moves_to_the_replacement(screen: ServerScreen) -> None:
    press(screen, "down")
    screen.on_snapshot(STATUS, [row(1), row(2), row(2, 8), row(3)], 101.0)
    assert screen.selected == 2
    screen.on_snapshot(STATUS, [row(1), row(2, 8), row(3)], 102.0)
    assert (screen.selected, screen.selected_slot) == (8, 2)
    screen.on_snapshot(STATUS, [row(1), row(3)], 103.0)
    assert screen.selected_slot == 1


# --- keys -----------------------------------------------------------------------------------------


def test_keys_that_act_at_once(screen: ServerScreen) -> None:
    press(screen, "down")
    assert press(screen, "+", "s", "l", "q", "x") == [
        Send("scale", {"to": "+1"}),
        Send("stack", {"slot": 2}),
        OpenList(),
        Quit(),
    ]


def test_one_profile_at_a_time(screen: ServerScreen) -> None:
    send = Send("profile", {"slot": 1})
    assert press(screen, "p") == [send]
    assert screen.message == Message("profiling worker 1 for 5 s")
    press(screen, "p")
    assert screen.message == Message("a worker is being profiled already", failed=True)
    screen.on_failure(Send("scale", {}), "no room")
    assert press(screen, "p") == []
    screen.on_failure(send, "it needs py-spy")
    assert screen.message == Message("profile: it needs py-spy", failed=True)
    assert press(screen, "p") == [send]
    screen.on_result(send, {"slot": 1, "pid": 5, "file": "/tmp/a.svg"})
    assert screen.message == Message("profile of worker 1 (pid 5): /tmp/a.svg")
    assert press(screen, "p") == [send]


@pytest.mark.parametrize(
    ("key", "send"),
    [
        ("-", Send("scale", {"to": "-1"})),
        ("r", Send("reload", {})),
        ("k", Send("restart-worker", {"slot": 1})),
    ],
)
def test_keys_that_ask_first(screen: ServerScreen, key: str, send: Send) -> None:
    assert press(screen, key) == []
    assert screen.mode is Mode.CONFIRM
    assert screen.question.endswith("?")
    # No other key is an answer, nor does it do anything else.
    assert press(screen, "r", "+", "down", "enter") == []
    assert screen.mode is Mode.CONFIRM
    assert press(screen, "y", "y") == [send]
    for no in ("n", "q", "escape"):
        assert press(screen, key, no, "y") == []
        assert screen.message == Message("not done")
        assert screen.mode is Mode.NORMAL


def test_no_worker_to_restart() -> None:
    screen = ServerScreen("shop")
    assert press(screen, "k", "s") == []
    assert screen.message == Message("there is no worker", failed=True)
    assert screen.mode is Mode.NORMAL


def test_help(screen: ServerScreen) -> None:
    press(screen, "?")
    assert screen.mode is Mode.HELP
    assert press(screen, "r") == []
    assert screen.mode is Mode.NORMAL
    assert press(screen, "?", "q") == [Quit()]


def test_results_of_commands(screen: ServerScreen) -> None:
    screen.on_progress("worker 1 replaced\nmore")
    assert screen.message == Message("worker 1 replaced")
    screen.on_result(Send("reload", {}), {"replaced": 2, "seconds": 1.0, "generation": 3})
    assert screen.message == Message("reloaded: 2 workers replaced in 1.00 s, generation 3")
    screen.on_result(Send("scale", {"to": "+1"}), {"before": 2, "workers": 3})
    assert screen.message == Message("scaled from 2 to 3 workers")
    result = {"slot": 1, "old_pid": 5, "pid": 6, "trouble": ""}
    screen.on_result(Send("restart-worker", {"slot": 1}), result)
    assert screen.message == Message("worker 1 replaced: pid 5 -> 6")
    screen.on_failure(Send("reload", {}), "its first worker failed\nTraceback")
    assert screen.message == Message("reload: its first worker failed", failed=True)
    press(screen, "escape")
    assert screen.message == Message()


def test_a_stack_can_be_scrolled(screen: ServerScreen) -> None:
    text = "\n".join(f"line {i}\x1b" for i in range(30))
    threads = [{"name": "MainThread", "stack": text}]
    result = {"slot": 1, "pid": 5, "state": "ready", "threads": threads, "tasks": []}
    screen.on_result(Send("stack", {"slot": 1}), {**result, "left_out": 0})
    assert screen.mode is Mode.STACK
    assert screen.stack[0] == "worker 1 (pid 5), ready"
    assert screen.stack[-1] == "line 29\\x1b"
    press(screen, "up")
    assert screen.scrolled == 0
    press(screen, "pagedown", "down", "up", "down")
    assert screen.scrolled == 11
    press(screen, *["pagedown"] * 10)
    assert screen.scrolled == len(screen.stack) - 1
    press(screen, "pageup")
    assert screen.mode is Mode.STACK
    press(screen, "escape")
    assert screen.mode is Mode.NORMAL
    assert press(screen, "q") == [Quit()]


# --- the filter -----------------------------------------------------------------------------------


def log(screen: ServerScreen) -> list[str]:
    return [record["text"] for record in screen.matching_logs()]


def test_the_filter(screen: ServerScreen) -> None:
    for text in ("a slow request", "an ERROR", "quit"):
        screen.on_note("logs", {"time": 1.0, "level": "info", "text": text})
    assert press(screen, "/", *"errq", "backspace", "enter") == []
    assert log(screen) == ["an ERROR"]
    assert screen.mode is Mode.NORMAL
    press(screen, "/")
    assert screen.typed == "err"
    press(screen, "x", "escape")
    assert log(screen) == ["an ERROR"]
    press(screen, "escape")
    assert len(log(screen)) == 3
    press(screen, "/", *"slow", "enter", "/", *["backspace"] * 9, "enter")
    assert len(log(screen)) == 3


def test_a_filter_that_is_no_expression_is_not_applied(screen: ServerScreen) -> None:
    press(screen, "/", *"a(", "enter")
    assert screen.mode is Mode.FILTER
    assert screen.filter_problem
    press(screen, ")", "enter")
    assert screen.mode is Mode.NORMAL
    assert not screen.filter_problem


def test_a_filter_has_a_limit(screen: ServerScreen) -> None:
    press(screen, "/", *["x"] * 1000, "up")
    assert screen.typed == "x" * 200


# --- the list -------------------------------------------------------------------------------------

SHOP = Instance("shop", 7, "/run/shop-7.sock")
BLOG = Instance("blog", 9, "/run/blog-9.sock")
MAIL = Instance("mail", 8, "/run/mail-8.sock")


def test_the_list_of_servers() -> None:
    servers = ServerList()
    assert press(servers, "enter", "down", "x") == []
    servers.on_servers([BLOG, SHOP], [{}, {}])
    assert press(servers, "down", "down", "enter") == [OpenServer(SHOP)]
    # The selected server stays selected if another one starts.
    servers.on_servers([BLOG, MAIL, SHOP], [{}, {}, {}])
    assert press(servers, "enter", "up", "enter", "q") == [
        OpenServer(SHOP),
        OpenServer(MAIL),
        Quit(),
    ]
    servers.on_servers([BLOG], [{}])
    assert press(servers, "enter") == [OpenServer(BLOG)]
    servers.on_servers([], [])
    assert press(servers, "enter") == []
