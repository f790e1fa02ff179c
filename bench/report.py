"""Write the results as Markdown: a table for each workload, and the aims with their results."""

from __future__ import annotations

import json
import statistics
from typing import Any

from goals import OWN, Own, goals
from measure import Sample
from servers import FLOOR, SERVERS
from workloads import WORKLOADS

# The format of a record. `--check` ignores records of another format.
FORMAT = 3

# The columns of each `Workload.how`: figure, heading, format. Ratios are those of the first.
_LATENCIES = [
    ("p50_ms", "p50 ms", ".2f"),
    ("p99_ms", "p99 ms", ".2f"),
    ("p999_ms", "p99.9 ms", ".2f"),
]
_PSS = ("pss_mb", "peak PSS MB", ".1f")
_PSS_NOW = ("pss_mb", "PSS MB", ".1f")
_CPU = ("cpu_us", "CPU µs/request", ".1f")
_LOAD = [_CPU, ("rps", "requests/s", ",.0f"), *_LATENCIES, _PSS]
COLUMNS: dict[str, list[tuple[str, str, str]]] = {
    **dict.fromkeys(("closed", "beside_idle", "echo", "http2"), _LOAD),
    "behind_nginx": [_CPU, ("nginx_us", "nginx's CPU µs/request", ".1f"), *_LOAD[1:]],
    "resumed": [
        ("cpu_us", "CPU µs/connection", ".1f"),
        ("full_percent", "handshakes not resumed, %", ".1f"),
        ("rps", "connections/s", ",.0f"),
        *_LATENCIES,
        _PSS,
    ],
    "paced": [_LATENCIES[1], _LATENCIES[0], _LATENCIES[2], _CPU, ("rps", "requests/s", ",.0f")],
    "mixed": [
        ("p90_ms", "p90 ms of the fast", ".2f"),
        ("p90_alone_ms", "p90 ms without slow ones", ".2f"),
        ("p99_ms", "p99 ms of the fast", ".2f"),
        ("p99_alone_ms", "p99 ms without slow ones", ".2f"),
        _CPU,
    ],
    "start_up": [
        ("start_ms", "ms over the app's import", ".0f"),
        ("total_ms", "ms in all", ".0f"),
        _PSS_NOW,
    ],
    "start_all": [
        ("all_ms", "ms until all have answered", ".0f"),
        _PSS_NOW,
    ],
    "reload": [
        ("reload_s", "seconds", ".2f"),
        ("lost", "requests lost", ".0f"),
        ("asked", "requests asked", ".0f"),
    ],
    "memory_under_load": [_PSS, *_LOAD[:-1]],
    "memory": [
        ("pss_mb", "PSS MB of all processes", ".0f"),
    ],
    "respawn": [
        ("successor_ms", "ms from SIGKILL to the successor's answer", ".0f"),
    ],
    "idle": [
        ("idle_cpu_ms", "CPU ms/s", ".2f"),
        _PSS_NOW,
    ],
}
KINDS = {
    "wsgi": "WSGI",
    "asgi": "ASGI",
    "websocket": "WebSocket",
    "http2": "HTTP/2",
    "memory": "Memory",
}

# workload -> server -> its samples, one for each round
Results = dict[str, dict[str, list[Sample]]]
# Median, least, greatest and upper quartile of the rounds, in the unit of the figure. Records of
# November 2026 and before have no quartile.
Spread = tuple[float, ...]
# (workload, Servo's name, the peer's name) -> the ratio
Ratios = dict[tuple[str, str, str], Spread]


def ratios(results: Results) -> Ratios:
    """Servo's first figure divided by the peer's, within each round: they ran close together in
    time, so a slow machine affected both."""
    found: Ratios = {}
    for workload, servers in results.items():
        for servo in (name for name in servers if SERVERS[name].is_servo):
            for peer in servers:
                if peer == servo or SERVERS[peer].kind not in (SERVERS[servo].kind, FLOOR):
                    continue
                if SERVERS[peer].is_servo and SERVERS[peer].kind != "memory":
                    continue
                if each := paired(workload, servers[servo], servers[peer]):
                    found[workload, servo, peer] = spread(each)
    return found


def spread(values: list[float]) -> Spread:
    """All four, to eight digits, which is more than any page shows.

    Fewer than five rounds have no meaningful quartile: the greatest stands for it.
    """
    enough = len(values) >= 5
    quartile = statistics.quantiles(values, method="inclusive")[2] if enough else max(values)
    found = (statistics.median(values), min(values), max(values), quartile)
    return tuple(float(f"{value:.8g}") for value in found)


def paired(workload: str, ours: list[Sample], theirs: list[Sample]) -> list[float]:
    first = COLUMNS[WORKLOADS[workload].how][0][0]
    pairs = [
        (a[first], b[first]) for a, b in zip(ours, theirs, strict=True) if first in a and first in b
    ]
    return [float(a) / float(b) for a, b in pairs if float(b)]


def summary(samples: list[Sample]) -> dict[str, Any]:
    """The spread of each figure, and how many rounds failed, with the first error."""
    good = [sample for sample in samples if "error" not in sample]
    found: dict[str, Any] = {}
    if good:
        found = {key: list(spread([float(sample[key]) for sample in good])) for key in good[0]}
    if wrong := [str(sample["error"]) for sample in samples if "error" in sample]:
        found["failed"] = [len(wrong), len(samples), wrong[0]]
    return found


def record(
    name: str, machine: dict[str, object], results: Results, rounds: int, seconds: float
) -> dict[str, Any]:
    """The record of one run: the figures that the pages show, without those of single rounds."""
    return {
        "format": FORMAT,
        "name": name,
        **machine,
        "rounds": rounds,
        "seconds": seconds,
        "figures": {
            workload: {server: summary(samples) for server, samples in servers.items()}
            for workload, servers in results.items()
        },
        "ratios": [[*key, *value] for key, value in ratios(results).items()],
        "aims": [[*key, *value] for key, value in own_aims(results).items()],
    }


def as_json(record: dict[str, Any]) -> str:
    """A record as JSON, with a line for each server and each ratio: small, with readable diffs."""
    parts = []
    for key, value in record.items():
        if key == "figures":
            workloads = (
                f" {json.dumps(workload)}: {{\n"
                + ",\n".join(f"  {json.dumps(n)}: {json.dumps(f)}" for n, f in servers.items())
                + "}"
                for workload, servers in value.items()
            )
            text = "{\n" + ",\n".join(workloads) + "}"
        elif key in ("ratios", "aims") and value:
            text = "[\n" + ",\n".join(f" {json.dumps(row)}" for row in value) + "]"
        else:
            text = json.dumps(value)
        parts.append(f"{json.dumps(key)}: {text}")
    return "{\n" + ",\n".join(parts) + "}\n"


def recorded_ratios(record: dict[str, Any]) -> Ratios:
    """A record's ratios, under the names that servers and workloads had at that time."""
    return {tuple(row[:3]): tuple(row[3:]) for row in record["ratios"]}


def markdown(record: dict[str, Any]) -> str:
    lines = [
        "---",
        "orphan: true",
        "---",
        "",
        f"# Servo and its peers: {record['name'] or 'a trial'}",
        "",
    ]
    lines += [
        f"Measured {record['date']} on {record['python']}; {record['cpu']}; Linux"
        f" {record['kernel']}; load average {record['load_average']} at the start; medians of"
        f" {record['rounds']} rounds of {record['seconds']:g} s. [How to read this](README.md).",
        "",
        ", ".join(f"{name} {version}" for name, version in record["versions"].items()) + ".",
    ]
    if absent := record.get("missing"):
        reasons = "; ".join(f"{name} ({reason})" for name, reason in absent.items())
        lines += ["", f"Not installed: {reasons}."]
    found = recorded_ratios(record)
    if aims := goal_rows(found):
        lines += ["", "## Aims", "", *aims]
    for workload, servers in record["figures"].items():
        title = WORKLOADS[workload].title
        for kind, heading in KINDS.items():
            rows = {n: found for n, found in servers.items() if SERVERS[n].kind in (kind, FLOOR)}
            if any(SERVERS[n].kind == kind for n in rows):
                lines += ["", f"## {heading}: {title} (`{workload}`)", ""]
                lines += table(workload, rows, found)
    return "\n".join(lines) + "\n"


def table(workload: str, rows: dict[str, dict[str, Any]], found: Ratios) -> list[str]:
    """The table of one workload and one kind of server: the best first, failed ones last."""
    how = WORKLOADS[workload].how
    first = COLUMNS[how][0][0]
    servos = [name for name in rows if SERVERS[name].is_servo]
    heads = ["server", COLUMNS[how][0][1], "least–greatest", *(f"{name}/this" for name in servos)]
    heads += [heading for _, heading, _ in COLUMNS[how][1:]]
    lines = [f"| {' | '.join(heads)} |", "|---|" + "--:|" * (len(heads) - 1)]
    notes = []
    for name in sorted(rows, key=lambda name: rows[name].get(first, [float("inf")])[0]):
        found_here = rows[name]
        count, rounds, error = found_here.get("failed", (0, 0, ""))
        if first not in found_here:
            lines.append(f"| {name} | {error} |" + " |" * (len(heads) - 2))
            continue
        if count:
            notes.append(f"{name} failed in {count} of {rounds} rounds: {error}.")
        figures = [format(found_here[key][0], style) for key, _, style in COLUMNS[how]]
        style = COLUMNS[how][0][2]
        least, greatest = found_here[first][1:3]
        between = f"{least:{style}}–{greatest:{style}}"
        beside = [ratio_cell(found.get((workload, servo, name))) for servo in servos]
        lines.append(f"| {' | '.join([name, figures[0], between, *beside, *figures[1:]])} |")
    return [*lines, *(["", *notes] if notes else [])]


def ratio_cell(ratio: Spread | None) -> str:
    return f"{ratio[0]:.2f} ({ratio[1]:.2f}–{ratio[2]:.2f})" if ratio else ""


def goal_rows(found: Ratios) -> list[str]:
    """A row for each aim that has figures: the aim, the result, and whether it is met."""
    rows = []
    for (workload, servo, peer), aim in goals().items():
        if (ratio := found.get((workload, servo, peer))) is not None:
            spread = f"{ratio[1]:.2f}–{ratio[2]:.2f}"
            cells = [f"{servo} / {peer}", workload, f"{aim:.2f}", f"{ratio[0]:.2f}", spread]
            rows.append(f"| {' | '.join([*cells, verdict(ratio, aim)])} |")
    if not rows:
        return []
    heads = "| CPU a request, or memory | workload | aim | median ratio | least–greatest | |"
    return [heads, "|---|---|--:|--:|--:|---|", *rows]


def verdict(found: Spread, aim: float) -> str:
    """Whether the upper quartile meets the aim: one or two lucky rounds are not enough."""
    if found[-1] <= aim:
        return "met"
    return "only the median meets it" if found[0] <= aim else "**not met**"


def own_aims(results: Results) -> dict[tuple[str, str], Spread]:
    """(title, Servo's name) -> the figure, for each aim that names no peer."""
    return {
        (own.title, servo): spread(values)
        for own in OWN
        for servo in results.get(own.figure[0], {})
        if SERVERS[servo].is_servo
        and own.only in ("", servo)
        and (values := own_values(results, own, servo))
    }


def own_rows(found: dict[tuple[str, str], Spread]) -> list[str]:
    """Like `goal_rows`, for the aims that name no peer."""
    rows = []
    for own in OWN:
        for (title, servo), figure in found.items():
            if title == own.title:
                between = f"{figure[1]:.2f}–{figure[2]:.2f}"
                cells = [title, servo, f"{own.most:g}", f"{figure[0]:.2f}", between]
                rows.append(f"| {' | '.join([*cells, verdict(figure, own.most)])} |")
    heads = "| | server | aim | median | least–greatest | |"
    return [heads, "|---|---|--:|--:|--:|---|", *rows] if rows else []


def own_values(results: Results, own: Own, servo: str) -> list[float]:
    """The figure of each successful round."""
    samples = results[own.figure[0]][servo]
    values = [float(s[own.figure[1]]) if own.figure[1] in s else None for s in samples]
    if own.over is None:
        return [value for value in values if value is not None]
    others = results.get(own.over[0], {}).get(servo, [])
    return [
        value / float(other[own.over[1]])
        for value, other in zip(values, others, strict=False)
        if value is not None and own.over[1] in other
    ]


def all_goals(records: list[dict[str, Any]]) -> str:
    """The page with all aims, from the records of several groups."""
    found: Ratios = {}
    own: dict[tuple[str, str], Spread] = {}
    for each in records:
        found |= recorded_ratios(each)
        own |= {(title, servo): tuple(rest) for title, servo, *rest in each["aims"]}
    measured = ", ".join(f"{each['name']} {each['date']}" for each in records)
    wanted = {(workload, servo, peer) for workload, servo, peer in goals()}
    lines = ["---", "orphan: true", "---", "", "# What Servo aims at, and where it is", ""]
    lines += [f"Measured: {measured}. [How to read this](README.md).", "", *goal_rows(found)]
    lines += ["", *own_rows(own)]
    if missing := sorted(wanted - set(found)):
        lines += ["", "Not measured: " + ", ".join(f"{s} / {p} ({w})" for w, s, p in missing) + "."]
    return "\n".join(lines) + "\n"


def group_of(record: dict[str, Any]) -> str:
    """The group of a record. Records of November 2026 and before are named like their group."""
    return str(record.get("group", record["name"]))


def by_interpreter(records: list[dict[str, Any]]) -> str:
    """The page that sets the interpreters beside each other; "" if no group has several."""
    lines = ["---", "orphan: true", "---", "", "# Interpreters beside each other", ""]
    lines += [
        "Medians of each group's first figure, from the record of each interpreter."
        " [How to read this](README.md)."
    ]
    groups: dict[str, list[dict[str, Any]]] = {}
    for record in records:
        groups.setdefault(group_of(record), []).append(record)
    several = {group: found for group, found in groups.items() if len(found) > 1}
    for group, found in several.items():
        lines += ["", f"## {group}", "", *interpreter_rows(found)]
    return "\n".join(lines) + "\n" if several else ""


def interpreter_rows(records: list[dict[str, Any]]) -> list[str]:
    """A row for each workload and server; a column for each record, which is named by its file."""
    heads = [
        f"[{' '.join(record['python'].split()[:2])}]({record['name']}.md)" for record in records
    ]
    lines = [f"| workload | server | {' | '.join(heads)} |"]
    lines.append("|---|---|" + "--:|" * len(records))
    pairs = dict.fromkeys(
        (workload, server)
        for record in records
        for workload, servers in record["figures"].items()
        for server in servers
        if workload in WORKLOADS and server in SERVERS
    )
    for workload, server in pairs:
        key, unit, style = COLUMNS[WORKLOADS[workload].how][0]
        cells = []
        for record in records:
            found = record["figures"].get(workload, {}).get(server, {})
            cells.append(f"{found[key][0]:{style}}" if key in found else "—")
        lines.append(f"| {workload}, {unit} | {server} | {' | '.join(cells)} |")
    return lines
