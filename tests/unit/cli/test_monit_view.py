"""The screens of `servoctl monit` as lines of text."""

from __future__ import annotations

import re
from typing import Any

import pytest
from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

from servo.cli import monit_view
from servo.cli.monit_state import SAMPLES, History, Send, ServerList, ServerScreen
from servo.control.instances import Instance

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
    "statuses": {"2xx": 100, "5xx": 0},
}
BLOCKS = " ▁▂▃▄▅▆▇█"


def row(slot: int, **values: Any) -> dict[str, Any]:
    base = {"slot": slot, "serial": slot, "pid": 4000 + slot, "state": "ready", "blocked_s": 0.0}
    measures = {"requests_per_s": 6.0, "p99_s": 0.5, "utilisation": 0.2}
    return {**base, **measures, "cpu_percent": 10.0, "rss_bytes": 50 << 20, **values}


def server(*rows: dict[str, Any], **values: Any) -> ServerScreen:
    screen = ServerScreen("shop")
    screen.on_snapshot({**STATUS, **values}, rows, 100.0)
    return screen


def text_of(
    screen: ServerScreen | ServerList,
    width: int = 80,
    height: int = 24,
    now: float = 100.0,
    ascii_only: bool = False,
) -> Text:
    return monit_view.draw(screen, width, height, now, ascii_only=ascii_only)


def draw(screen: ServerScreen | ServerList, *size: int, **options: Any) -> list[str]:
    """The lines on the screen, without the blanks at their ends."""
    return [line.rstrip() for line in text_of(screen, *size, **options).plain.split("\n")]


def style_at(text: Text, part: str) -> str:
    """The styles of a part of the screen."""
    start = text.plain.index(part)
    return " ".join(str(s.style) for s in text.spans if s.start <= start < s.end).strip()


@pytest.mark.parametrize("size", [(80, 24), (81, 25), (120, 40), (300, 100)])
@pytest.mark.parametrize("workers", [0, 1, 4, 60])
def test_a_screen_fills_the_terminal_and_not_more(size: tuple[int, int], workers: int) -> None:
    screen = server(*(row(slot) for slot in range(1, workers + 1)))
    wide = "漢字" * 200
    screen.on_note("events", {"time": 1.0, "name": "ready", "text": wide})
    screen.on_note("logs", {"time": 1.0, "level": "info", "pid": 7, "text": "x\n" * 300})
    for keys in ("", "?", "?/", "r"):
        for key in keys:
            screen.on_key(key)
        lines = text_of(screen, *size).plain.split("\n")
        assert len(lines) == size[1]
        assert max(map(cell_len, lines)) <= size[0]
        screen.on_key("escape")


def test_workers_and_totals_at_the_smallest_size() -> None:
    lines = draw(server(row(1), row(2, state="booting")))
    assert lines[0] == " shop  running  2/2 ready  generation 2  up 75 s  http://127.0.0.1:8000"
    assert re.match(r" req/s +12 .*CPU +20% ", lines[1])
    assert re.match(r" p99 +- .*memory +100MB ", lines[2])
    assert re.match(r" use +25% .*5xx/min +0 ", lines[3])
    assert lines[4].split() == ["#", "pid", "state", "req/s", "p99", "CPU", "memory", "use"]
    values = [part for part in lines[5].split() if part not in BLOCKS]
    assert values == [">", "1", "4001", "ready", "6", "500ms", "10%", "50MB", "20%"]
    assert lines[6].split()[:3] == ["2", "4002", "booting"]
    assert len([line for line in lines if line.startswith("─ ")]) == 2
    assert lines[-1].endswith("? help  q quit")


def test_a_worker_without_measurements() -> None:
    spawned = {"slot": 1, "serial": 1, "pid": None, "state": "spawned"}
    assert draw(server(spawned))[5].split() == [">", "1", "spawned", "-", "-", "-", "-", "-"]


@pytest.mark.parametrize("state", ["ready", "draining"])
def test_a_blocked_worker_is_red(state: str) -> None:
    counts = {"target": 2, "ready": 2, "blocked": 1, "total": 2}
    screen = server(row(1, state=state, blocked_s=2.13), row(2), workers=counts)
    text = text_of(screen)
    assert "blocked 2.1 s" in text.plain
    assert style_at(text, "blocked 2.1 s").endswith("bold red")
    assert "2/2 ready, 1 blocked" in text.plain
    assert style_at(text, "ready  ") == "green"


def test_the_selected_worker_is_marked_and_stays_in_view() -> None:
    screen = server(*(row(slot) for slot in range(1, 41)))
    for _ in range(20):
        screen.on_key("down")
    lines = draw(screen)
    marked = [line for line in lines if line.startswith("> ")]
    assert [line.split()[1] for line in marked] == ["21"]
    assert any("more workers" in line for line in lines)
    for _ in range(20):
        screen.on_key("down")
    assert any(line.startswith("> 40") for line in draw(screen))


def test_a_long_name_leaves_room_for_the_state() -> None:
    assert draw(server(row(1), name="x" * 200))[0].startswith(f" {'x' * 19}…  running  2/2 ready")


def test_a_reload_is_shown_with_its_phase() -> None:
    assert (
        "reloading: replacing the workers"
        in draw(server(row(1), state="reloading", phase="replacing the workers"))[0]
    )


def test_a_server_that_is_silent_or_lost() -> None:
    screen = server(row(1))
    assert "no answer for 4 s: it may be stopped (SIGSTOP)" in draw(screen, now=104.0)[0]
    screen.on_lost("it does not exist")
    text = text_of(screen, now=110.0)
    assert "lost for 10 s, reconnecting: it does not exist" in text.plain
    assert style_at(text, "lost for") == "bold red"


def test_a_server_that_has_not_answered_yet() -> None:
    screen = ServerScreen("shop")
    assert draw(screen)[0] == " shop  connecting"
    screen.on_lost("it does not exist")
    assert draw(screen)[0] == " shop  it does not exist; trying again"


def test_events_and_log() -> None:
    screen = server(row(1))
    for i in range(50):
        screen.on_note("events", {"time": 1.0, "name": "ready", "text": f"event {i}\nmore"})
    failed = {"time": 1.0, "name": "exited", "reason": "crashed", "text": "worker 1 ended"}
    screen.on_note("events", failed)
    screen.on_note("logs", {"time": 1.0, "level": "info", "slot": 1, "text": "a\x1b[2J"})
    screen.on_note("logs", {"time": 1.0, "level": "error", "pid": 7, "text": "b\n  trace"})
    printed = {"time": 1.0, "level": "info", "slot": 1, "stream": "stdout", "text": "printed"}
    screen.on_note("logs", printed)
    text = text_of(screen)
    lines = [line.rstrip() for line in text.plain.split("\n")]
    assert [line[9:] for line in lines if "event 49" in line] == ["event 49"]
    assert "event 10" not in text.plain
    assert style_at(text, "worker 1 ended") == "red"
    at = next(i for i, line in enumerate(lines) if line.startswith("─ log"))
    assert [lines[at + 1][9:], lines[at + 2][9:]] == [r"worker 1 INFO a\x1b[2J", "arbiter ERROR b"]
    assert [lines[at + 3], lines[at + 4][9:]] == ["    trace", "worker 1 STDOUT printed"]
    assert style_at(text, "ERROR") == "red"


def test_the_filter_and_its_prompt() -> None:
    screen = server(row(1))
    for text in ("a slow request", "quick"):
        screen.on_note("logs", {"time": 1.0, "level": "info", "text": text})
    for key in "/slo(":
        screen.on_key(key)
    prompt = draw(screen)[-2]
    assert prompt.startswith("/slo(")
    assert "missing )" in prompt
    for key in ("backspace", "enter"):
        screen.on_key(key)
    lines = draw(screen)
    assert any(line.startswith("─ log lines that match /slo/ ─") for line in lines)
    assert any("a slow request" in line for line in lines)
    assert not any("quick" in line for line in lines)


def test_the_question_and_the_message() -> None:
    screen = server(row(1))
    screen.on_key("k")
    assert draw(screen)[-2] == "Restart worker 1 (pid 4001)? (y/n)"
    screen.on_key("n")
    assert draw(screen)[-2] == "not done"
    screen.on_failure(Send("scale", {}), "no room")
    text = text_of(screen)
    assert style_at(text, "scale: no room") == "bold red"


def test_help_names_each_key_and_fits() -> None:
    screen = server(row(1))
    screen.on_key("?")
    lines = draw(screen)
    assert all(any(line.startswith(f"{key} ") for line in lines) for key in "+-rks/lq")
    assert not any(line.endswith("…") for line in lines)
    assert lines[-1] == "" or "q quit" not in lines[-1]


def test_a_stack_scrolls() -> None:
    screen = server(row(1))
    stack = "\n".join(f"line {i}" for i in range(100))
    threads = [{"name": "MainThread", "stack": stack}]
    result = {"slot": 1, "pid": 5, "state": "ready", "threads": threads, "tasks": []}
    screen.on_result(Send("stack", {"slot": 1}), {**result, "left_out": 0})
    assert draw(screen)[1] == "worker 1 (pid 5), ready"
    screen.on_key("pagedown")
    assert draw(screen)[1] == "line 7"
    assert draw(screen)[-1].startswith("↑↓ PgUp PgDn scroll")


def test_a_long_line_of_a_stack_is_folded() -> None:
    screen = server(row(1))
    stack = f'  File "/{"x" * 80}.py", line 7, in report\n    {"Y" * 300}'
    threads = [{"name": "MainThread", "stack": stack}]
    result = {"slot": 1, "pid": 5, "state": "ready", "threads": threads, "tasks": []}
    screen.on_result(Send("stack", {"slot": 1}), {**result, "left_out": 0})
    lines = draw(screen)
    assert lines[4] == f'  File "/{"x" * 71}'
    assert lines[5] == f'        {"x" * 9}.py", line 7, in report'
    assert sum(line.count("Y") for line in lines) == 300
    for _ in range(10):
        screen.on_key("down")
    assert len(draw(screen)) == 24


@pytest.mark.parametrize("size", [(40, 10), (79, 24), (80, 23), (10, 2), (1, 1)])
def test_a_terminal_that_is_too_small(size: tuple[int, int]) -> None:
    lines = text_of(server(row(1)), *size).plain.split("\n")
    assert len(lines) == size[1]
    assert max(map(len, lines)) <= size[0]
    if size == (40, 10):
        assert lines[:3] == [
            "This terminal has 40x10 characters.",
            "servoctl monit needs 80x24. Enlarge it,",
            "or press q to quit.",
        ]


def test_ascii() -> None:
    screen = server(row(1))
    screen.on_note("logs", {"time": 1.0, "level": "info", "text": "Grüße"})
    text = text_of(screen, ascii_only=True).plain
    assert text.isascii()
    assert "Gr??e" in text
    assert "^v  +- scale" in text


def test_without_colours_all_that_matters_is_still_there() -> None:
    console = Console(width=80, height=24, force_terminal=True, no_color=True, _environ={})
    with console.capture() as capture:
        console.print(text_of(server(row(1, blocked_s=2.0))))
    shown = capture.get()
    assert not re.search(r"\x1b\[[\d;]*3[0-7]", shown)
    assert "blocked 2.0 s" in shown
    assert "> " in shown


# --- the list -------------------------------------------------------------------------------------


def test_the_list_of_servers() -> None:
    servers = ServerList()
    assert draw(servers)[2] == "looking for servers"
    servers.on_servers([], [])
    assert draw(servers)[2].startswith("no server of this user is running")
    shop = {**STATUS, "error": ""}
    silent = {"name": "blog\x1b", "pid": 9, "state": "does not answer", "error": "silent"}
    found = [Instance("blog", 9, "/b"), Instance("shop", 7, "/s")]
    servers.on_servers(found, [silent, shop])
    servers.on_key("down")
    text = text_of(servers)
    lines = [line.rstrip() for line in text.plain.split("\n")]
    assert lines[3].split() == ["blog\\x1b", "9", "does", "not", "answer"]
    assert lines[4].split()[:5] == [">", "shop", "7", "running", "2/2"]
    assert style_at(text, "does not answer") == "bold red"
    assert lines[-1] == "↑↓ select  Enter open  q quit"


def test_a_long_list_scrolls() -> None:
    servers = ServerList()
    found = [Instance(f"shop{i}", i, f"/s{i}") for i in range(100)]
    rows = [{**STATUS, "name": each.name, "pid": each.pid} for each in found]
    servers.on_servers(found, rows)
    for _ in range(60):
        servers.on_key("down")
    lines = draw(servers)
    assert any(line.startswith("> shop60 ") for line in lines)
    assert len(lines) == 24


# --- curves ---------------------------------------------------------------------------------------


def spark(values: list[float | None], width: int, low: float = 0.0, high: float = 8.0) -> str:
    history = History()
    for value in values:
        history.add(value)
    return monit_view.spark(history, width, low, high, BLOCKS)


def test_a_curve_ends_at_the_right() -> None:
    assert spark([0.0, 4.0, 8.0], SAMPLES) == " " * 57 + "▁▅█"
    assert spark([], 10) == " " * 10
    assert spark([None, 8.0], SAMPLES).endswith("  █")


def test_a_narrow_curve_shows_the_peaks() -> None:
    values: list[float | None] = [0.0] * 60
    values[13] = 8.0
    assert spark(values, 6) == "▁█▁▁▁▁"


def test_a_curve_keeps_its_form_as_it_moves() -> None:
    values: list[float | None] = [8.0 if i % 7 == 0 else 0.0 for i in range(60)]
    curves = [spark(values[: 30 + i], 20).strip() for i in range(30)]
    for before, after in zip(curves, curves[1:], strict=False):
        assert after.startswith(before[:-1])


def test_a_curve_of_equal_or_too_high_values() -> None:
    assert spark([0.0, 0.0], 60, 0.0, 0.0).strip() == "▁▁"
    assert spark([100.0, -1.0], 60).strip() == "█▁"


@pytest.mark.parametrize(
    ("metric", "values", "low", "high"),
    [
        ("rate", [], 0.0, 0.0),
        ("rate", [3.0, 9.0], 0.0, 9.0),
        ("use", [0.2], 0.0, 1.0),
        ("cpu", [20.0], 0.0, 100.0),
        ("cpu", [180.0], 0.0, 180.0),
        ("memory", [100.0, 200.0], 99.0, 200.0),
        ("memory", [100.0], 99.0, 110.0),
    ],
)
def test_the_scale_of_a_curve(metric: str, values: list[float], low: float, high: float) -> None:
    history = History()
    for value in values:
        history.add(value)
    assert monit_view._scale(metric, [history]) == pytest.approx((low, high))


@pytest.mark.parametrize(
    ("metric", "value", "shown"),
    [
        ("rate", 1234.0, "1234"),
        ("p99", 0.0123, "12ms"),
        ("memory", float(9000 << 20), "9000MB"),
        ("memory", float(20 << 30), "20GB"),
        ("cpu", 101.4, "101%"),
        ("use", 0.5, "50%"),
        ("use", None, ""),
    ],
)
def test_values_are_short(metric: str, value: float | None, shown: str) -> None:
    assert monit_view._value(metric, value) == shown


@pytest.mark.parametrize(
    ("share", "style"), [(None, ""), (0.5, ""), (0.7, "yellow"), (0.95, "red")]
)
def test_a_high_load_has_a_colour(share: float | None, style: str) -> None:
    assert monit_view._load_style(share) == style
