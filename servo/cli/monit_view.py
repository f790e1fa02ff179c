"""Draws the screens of `servoctl monit` as lines of rich's Text. Pure: the size is an argument.

Each line is cut to the width, and there are exactly as many as the terminal has. So a screen of the
next second overwrites the old one in place, without a blank screen between them.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, NamedTuple

from rich.text import Text

from servo.cli.monit_state import (
    METRICS,
    MIN_HEIGHT,
    MIN_WIDTH,
    SAMPLES,
    History,
    Mode,
    ServerList,
    ServerScreen,
    Worker,
    fits,
)
from servo.cli.show import process_of, worker_state
from servo.cli.tables import MIB, format_number, format_seconds, style_of
from servo.metrics import saturation
from servo.printable import printable_line

if TYPE_CHECKING:
    from collections.abc import Sequence

# An answer that is older than this many seconds is late: there is one a second.
_LATE_S = 3.0

_BLOCKS = " ▁▂▃▄▅▆▇█"
_ASCII_BLOCKS = " _.-:=+*#"
_MAX_SPARK = SAMPLES
_MAX_NAME = 20
# The indent of the further lines of a line that is too long.
_FOLD_INDENT = 8
# The heights of the workers' and of the events' part, as a share of the lines for all parts.
_WORKERS_SHARE = 0.45
_EVENTS_SHARE = 0.4
# Loads from these shares on are yellow and red.
_HIGH = 0.7
_FULL = 0.9

_KEYS = "↑↓  +- scale  r reload  k restart  s stack  p profile  / filter  ? help  q quit"
_LIST_KEYS = "↑↓ select  Enter open  q quit"
_STACK_KEYS = "↑↓ PgUp PgDn scroll  any other key: back  q quit"
_ARROWS = str.maketrans({"↑": "^", "↓": "v", "…": "~", "─": "-"})

_HELP = """\
↑ ↓     select a worker
+       run one worker more
-       run one worker fewer (asks)
r       reload: load new code and configuration, without losing a request (asks)
k       restart the selected worker: a new one takes its place (asks)
s       show the Python stacks of the selected worker, without stopping it
p       profile the selected worker for 5 s, and write a flame graph
/       show only the log lines that match a regular expression
Esc     remove the filter and the message
l       the list of all servers
q       quit; so does Ctrl-C

Each curve shows the last minute; req/s, p99 and use cover the last 5 s. The
curves of a column have one scale. Only those of memory have their own, which
starts at the least value of the minute.

use      the share of the worker's capacity that was in use
CPU      100% is one core
memory   the RSS: it counts the pages that workers share once for each worker

A worker that hangs in one call for more than 1 s is shown as blocked: press s
to see where it hangs."""


class _Metric(NamedTuple):
    title: str
    width: int  # of its value


_METRICS = {
    "rate": _Metric("req/s", 5),
    "p99": _Metric("p99", 5),
    "cpu": _Metric("CPU", 4),
    "memory": _Metric("memory", 6),
    "use": _Metric("use", 4),
}


class _Part(NamedTuple):
    """The lines of each part of the screen."""

    workers: int
    events: int
    logs: int


def draw(
    screen: ServerScreen | ServerList, width: int, height: int, now: float, *, ascii_only: bool
) -> Text:
    """A screen as one text of `height` lines.

    screen       the screen's state
    width        the terminal's width in characters
    height       its height
    now          the driver's seconds
    ascii_only   whether the terminal shows only ASCII
    """
    if not fits(width, height):
        lines = _too_small(width, height)
    elif isinstance(screen, ServerList):
        lines = _list(screen, width, height)
    elif screen.mode is Mode.HELP:
        lines = [_title(screen, now), Text(), *map(Text, _HELP.split("\n"))]
    elif screen.mode is Mode.STACK:
        lines = _stack(screen, width, height, now)
    else:
        lines = _server(screen, width, height, now, _ASCII_BLOCKS if ascii_only else _BLOCKS)
    lines = [*lines[:height], *(Text() for _ in range(height - len(lines)))]
    for line in lines:
        if ascii_only:
            line.plain = line.plain.translate(_ARROWS).encode("ascii", "replace").decode()
        line.no_wrap = True
        line.truncate(width, overflow="crop" if ascii_only else "ellipsis", pad=False)
    whole = Text("\n", no_wrap=True, end="").join(lines)
    whole.no_wrap, whole.end = True, ""
    return whole


def _too_small(width: int, height: int) -> list[Text]:
    text = (
        f"This terminal has {width}x{height} characters. servoctl monit needs "
        f"{MIN_WIDTH}x{MIN_HEIGHT}. Enlarge it, or press q to quit."
    )
    lines = [""]
    for word in text.split():
        if lines[-1] and len(lines[-1]) + 1 + len(word) > width:
            lines.append("")
        lines[-1] = f"{lines[-1]} {word}".strip()
    return [Text(line) for line in lines]


# --- the list of servers --------------------------------------------------------------------------


def _list(screen: ServerList, width: int, height: int) -> list[Text]:
    lines = [_bar(" servoctl monit: choose a server", width), Text()]
    rows = screen.rows
    room = height - 5
    if rows is None:
        lines.append(Text("looking for servers"))
    elif not rows:
        lines.append(Text("no server of this user is running; waiting for one"))
    else:
        titles = f"  {'name':<{_MAX_NAME}} {'pid':>8}  {'state':<15} {'workers':>7}"
        titles += f" {'req/s':>7} {'uptime':>8}  listening on"
        lines.append(Text(titles, style="bold"))
        first = max(0, screen.selected - room + 1)
        for i, row in list(enumerate(rows))[first : first + room]:
            lines.append(_server_row(row, selected=i == screen.selected))
    lines += [Text() for _ in range(height - 1 - len(lines))]
    return [*lines, Text(_LIST_KEYS, style="dim")]


def _server_row(row: dict[str, Any], *, selected: bool) -> Text:
    counts = row.get("workers")
    ready = f"{counts['ready']}/{counts['target']}" if counts else ""
    text = Text("> " if selected else "  ", style="reverse" if selected else "")
    text.append(f"{_cut(printable_line(row['name']), _MAX_NAME):<{_MAX_NAME}} {row['pid']:>8}  ")
    text.append(f"{row['state']:<15}", style=style_of(row["state"]))
    rate, uptime = format_number(row.get("requests_per_s")), format_seconds(row.get("uptime_s"))
    text.append(f" {ready:>7} {rate:>7} {uptime:>8}  {', '.join(row.get('listeners', []))}")
    return text


# --- one server -----------------------------------------------------------------------------------


def _server(screen: ServerScreen, width: int, height: int, now: float, blocks: str) -> list[Text]:
    # The other lines: title, three of totals, the heading of each part, message and keys.
    part = _divide(height - 9, len(screen.workers))
    lines = [_title(screen, now), *_totals(screen, width, blocks)]
    lines += _workers(screen, part.workers, width, blocks)
    lines.append(_heading("events", width))
    lines += _events(screen, part.events)
    filtered = f"log lines that match /{screen.filter.pattern}/" if screen.filter else "log"
    lines.append(_heading(filtered, width))
    lines += _logs(screen, part.logs)
    return [*lines, _prompt(screen), Text(_KEYS, style="dim")]


def _divide(lines: int, workers: int) -> _Part:
    """Divide the lines among the parts. The log gets those that remain.

    lines     the lines for all parts
    workers   the number of workers
    """
    first = min(max(workers, 1), round(lines * _WORKERS_SHARE))
    second = round((lines - first) * _EVENTS_SHARE)
    return _Part(first, second, lines - first - second)


def _title(screen: ServerScreen, now: float) -> Text:
    status = screen.status
    text = Text(no_wrap=True)
    name = _cut(printable_line(screen.name), _MAX_NAME)
    text.append(f" {name} ", style="bold reverse")
    if not status:
        problem = f" {screen.problem}; trying again" if screen.problem else " connecting"
        return text.append(problem, style=style_of("error") if screen.problem else "")
    late = now - screen.seen_at
    if screen.problem:
        text.append(f" lost for {late:.0f} s, reconnecting: {screen.problem}", style="bold red")
        return text
    if late > _LATE_S:
        text.append(f" no answer for {late:.0f} s: it may be stopped (SIGSTOP)", style="bold red")
        return text
    counts = status["workers"]
    text.append(f" {status['state']}", style=style_of(status["state"]))
    if status["phase"]:
        text.append(f": {status['phase']}")
    text.append(f"  {counts['ready']}/{counts['target']} ready")
    if counts.get("blocked"):
        text.append(f", {counts['blocked']} blocked", style=style_of("blocked"))
    text.append(f"  generation {status['generation']}  up {format_seconds(status['uptime_s'])}")
    return text.append(f"  {', '.join(status['listeners'])}", style="dim")


def _totals(screen: ServerScreen, width: int, blocks: str) -> list[Text]:
    """The history of the server, in three lines of two curves."""
    totals = screen.totals
    errors = sum(totals["errors"].known)
    values = {name: _value(name, totals[name].last) for name in METRICS}
    column = width // 2
    cells = [
        ("req/s", values["rate"], "rate", ""),
        ("CPU", values["cpu"], "cpu", ""),
        ("p99", values["p99"], "p99", ""),
        ("memory", values["memory"], "memory", ""),
        ("use", values["use"], "use", _load_style(totals["use"].last)),
        ("5xx/min", format_number(int(errors)), "errors", "red" if errors else ""),
    ]
    lines = [Text(), Text(), Text()]
    for i, (title, value, metric, style) in enumerate(cells):
        line = lines[i // 2]
        line.append(f" {title:<8}", style="dim")
        line.append(f"{value or '-':>7} ", style=style)
        history = totals[metric]
        room = min(_MAX_SPARK, column - 18)
        curve = spark(history, room, *_scale(metric, [history]), blocks)
        line.append(curve, style=style or "cyan")
        line.append(" " * (column - 17 - len(curve)))
    return lines


def _workers(screen: ServerScreen, room: int, width: int, blocks: str) -> list[Text]:
    pids = max([3, *(len(str(worker.row["pid"])) for worker in screen.workers)])
    used = 4 + pids + 1 + 13 + sum(metric.width + 2 for metric in _METRICS.values())
    curve = max(2, min(_MAX_SPARK, (width - used) // len(_METRICS) - 1))
    heading = f"  {'#':>2} {'pid':>{pids}} {'state':<13}"
    for metric in _METRICS.values():
        heading += f" {metric.title:>{metric.width}} {'':{curve}}"
    scales = {
        name: _scale(name, [worker.history[name] for worker in screen.workers]) for name in METRICS
    }
    index = screen.selected_index
    shown, first = room, 0
    if len(screen.workers) > room:
        shown = room - 1  # the last line has the number of the others
        first = max(0, min(index - shown // 2, len(screen.workers) - shown))
    lines = [_bar(heading, width)]
    for i, worker in enumerate(screen.workers[first : first + shown], start=first):
        lines.append(_worker(worker, i == index, pids, curve, scales, blocks))
    if len(screen.workers) > room:
        lines.append(
            Text(f"    … {len(screen.workers) - shown} more workers: ↑↓ scroll", style="dim")
        )
    if not screen.workers:
        lines.append(Text("    no workers", style="dim"))
    return lines + [Text() for _ in range(room + 1 - len(lines))]


def _worker(
    worker: Worker,
    is_selected: bool,
    pids: int,
    curve: int,
    scales: dict[str, tuple[float, float]],
    blocks: str,
) -> Text:
    row = worker.row
    line = Text("> " if is_selected else "  ", style="bold" if is_selected else "")
    line.append(f"{row['slot']:>2} {row['pid'] or '':>{pids}} ")
    is_blocked = row.get("blocked_s", 0.0) >= saturation.SHOWN_S
    state = worker_state(row)
    if is_blocked:
        state = state.rpartition(", ")[2]  # "draining, blocked 2.1 s" has no room
    line.append(f"{state:<13}", style=style_of(state))
    for name, metric in _METRICS.items():
        history = worker.history[name]
        style = _load_style(history.last) if name == "use" else ""
        line.append(f" {_value(name, history.last) or '-':>{metric.width}} ", style=style)
        low, high = scales[name]
        if name == "memory":
            low, high = _scale(name, [history])
        line.append(spark(history, curve, low, high, blocks), style=style or "cyan")
    return line


def _value(metric: str, value: float | None) -> str:
    """A measurement in at most seven characters."""
    if value is None:
        return ""
    if metric == "rate":
        return format_number(value)
    if metric == "p99":
        return format_seconds(value).replace(" ", "")
    if metric == "memory":
        return f"{value / MIB:.0f}MB" if value < 10_000 * MIB else f"{value / MIB / 1024:.0f}GB"
    return f"{value:.0f}%" if metric == "cpu" else f"{value:.0%}"


def _load_style(share: float | None) -> str:
    if share is None or share < _HIGH:
        return ""
    return "red" if share >= _FULL else "yellow"


def _scale(metric: str, histories: Sequence[History]) -> tuple[float, float]:
    """The values at the foot and at the top of a curve.

    metric      the metric
    histories   the histories of the curves that have this scale
    """
    known = [value for history in histories for value in history.known]
    low, high = min(known, default=0.0), max(known, default=0.0)
    if metric == "memory":
        # Memory is never near 0. A growth by a tenth is worth seeing, noise is not.
        return low * 0.99, max(high, low * 1.1)
    least = {"use": 1.0, "cpu": 100.0, "errors": 1.0}.get(metric, 0.0)
    return 0.0, max(high, least)


def spark(history: History, width: int, low: float, high: float, blocks: str) -> str:
    """A minute of measurements as a curve; the latest is at the right.

    history   the measurements
    width     the width in characters, at most SAMPLES
    low       the value at the curve's foot
    high      the value at its top
    blocks    a blank, and then the characters from low to high
    """
    # A character stands for the highest of `each` measurements. The groups start at multiples of
    # `each`: so a curve only moves to the left, and a peak keeps its form.
    each = -(-SAMPLES // width)
    values = history.values
    first = history.count - len(values)
    groups: dict[int, float] = {}
    for i, value in enumerate(values, start=first):
        if value is not None:
            groups[i // each] = max(value, groups.get(i // each, value))
    last = (history.count - 1) // each
    top = len(blocks) - 1
    curve = ""
    for group in range(last - width + 1, last + 1):
        if group not in groups:
            curve += blocks[0]
        elif high <= low:
            curve += blocks[1]
        else:
            level = round((groups[group] - low) / (high - low) * (top - 1)) + 1
            curve += blocks[max(1, min(level, top))]
    return curve


# --- events, log, prompt --------------------------------------------------------------------------


def _events(screen: ServerScreen, room: int) -> list[Text]:
    lines = []
    for event in list(screen.events)[-room:] if room else []:
        text = printable_line(event["text"].partition("\n")[0])
        line = Text.assemble((f"{_clock(event['time'])} ", "dim"), (text, _event_style(event)))
        lines.append(line)
    return lines + [Text() for _ in range(room - len(lines))]


def _event_style(event: dict[str, Any]) -> str:
    name = event.get("name", "")
    if name.endswith(("rolled_back", "_failed")):
        return style_of("error")
    if name == "exited" and event.get("reason") in _TROUBLE:
        return style_of("error")
    return style_of(name)


_TROUBLE = (
    "crashed",
    "exited",
    "out_of_memory",
    "no_heartbeat",
    "request_timeout",
    "boot_failed",
    "boot_timeout",
    "unhealthy",
    "max_memory_hard",
    "row_overwritten",
)


def _logs(screen: ServerScreen, room: int) -> list[Text]:
    lines: list[Text] = []
    for record in reversed(screen.matching_logs()):
        if len(lines) >= room:
            break
        first, *rest = [printable_line(line) for line in record["text"].split("\n")]
        line = Text.assemble(
            (f"{_clock(record['time'])} {process_of(record)} ", "dim"),
            (record.get("stream", record["level"]).upper(), style_of(record["level"])),
            f" {first}",
        )
        lines += [Text(f"  {part}") for part in reversed(rest)]
        lines.append(line)
    lines = lines[:room][::-1]
    return lines + [Text() for _ in range(room - len(lines))]


def _prompt(screen: ServerScreen) -> Text:
    if screen.mode is Mode.CONFIRM:
        return Text(f"{screen.question} (y/n)", style="bold yellow")
    if screen.mode is Mode.FILTER:
        text = Text(f"/{printable_line(screen.typed)}")
        text.append(" ", style="reverse")  # the cursor
        problem = screen.filter_problem
        text.append(f" {problem}" if problem else "", style="red")
        return text.append("  Enter: apply, Esc: cancel", style="dim")
    message = screen.message
    return Text(message.text, style="bold red" if message.failed else "bold")


def _stack(screen: ServerScreen, width: int, height: int, now: float) -> list[Text]:
    lines = [_title(screen, now)]
    for line in screen.stack[screen.scrolled : screen.scrolled + height]:
        lines += _folded(line, width)
    lines = lines[: height - 1]
    lines += [Text() for _ in range(height - 1 - len(lines))]
    return [*lines, Text(_STACK_KEYS, style="dim")]


def _folded(line: str, width: int) -> list[Text]:
    """A line on as many lines of the screen as it needs: the end of a frame's line names it."""
    parts, rest = [line[:width]], line[width:]
    while rest:
        parts.append(" " * _FOLD_INDENT + rest[: width - _FOLD_INDENT])
        rest = rest[width - _FOLD_INDENT :]
    return [Text(part) for part in parts]


def _heading(title: str, width: int) -> Text:
    return Text(f"─ {title} {'─' * max(0, width - len(title) - 3)}", style="dim")


def _bar(text: str, width: int) -> Text:
    return Text(f"{text:<{width}}", style="bold reverse")


def _clock(seconds: float) -> str:
    return time.strftime("%H:%M:%S", time.localtime(seconds))


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else text[: width - 1] + "…"
