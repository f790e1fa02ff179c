"""What was measured, as Markdown: a table for each workload, and the aims beside what came out."""

from __future__ import annotations

import statistics
from typing import Any

from goals import OWN, Own, goals
from measure import Sample
from servers import SERVERS
from workloads import WORKLOADS

# Of a record's JSON; one with another number is not compared with.
FORMAT = 2

# The columns of each `Workload.how`: figure, heading, format. The first is what ratios are of.
_LATENCIES = [
    ("p50_ms", "p50 ms", ".2f"),
    ("p99_ms", "p99 ms", ".2f"),
    ("p999_ms", "p99.9 ms", ".2f"),
]
_PSS = ("pss_mb", "peak PSS MB", ".1f")
_CPU = ("cpu_us", "CPU µs/request", ".1f")
_LOAD = [_CPU, ("rps", "requests/s", ",.0f"), *_LATENCIES, _PSS]
COLUMNS: dict[str, list[tuple[str, str, str]]] = {
    **dict.fromkeys(("closed", "beside_idle", "echo", "http2"), _LOAD),
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
        ("pss_mb", "PSS MB", ".1f"),
    ],
    "reload": [
        ("reload_s", "seconds", ".2f"),
        ("lost", "requests lost", ".0f"),
        ("asked", "requests asked", ".0f"),
    ],
    "idle": [
        ("idle_cpu_ms", "CPU ms/s", ".2f"),
        ("pss_mb", "PSS MB", ".1f"),
    ],
}
KINDS = {"wsgi": "WSGI", "asgi": "ASGI", "websocket": "WebSocket", "http2": "HTTP/2"}

# workload -> server -> its samples, one for each round
Results = dict[str, dict[str, list[Sample]]]
# (workload, Servo's name, the peer's name) -> median, least and greatest ratio of the rounds
Ratios = dict[tuple[str, str, str], tuple[float, float, float]]


def ratios(results: Results) -> Ratios:
    """Servo's first figure over the peer's, round by round: both met the same moment's machine."""
    found: Ratios = {}
    for workload, servers in results.items():
        for servo in (name for name in servers if SERVERS[name].is_servo):
            for peer in servers:
                if SERVERS[peer].is_servo or SERVERS[peer].kind != SERVERS[servo].kind:
                    continue
                if each := paired(workload, servers[servo], servers[peer]):
                    found[workload, servo, peer] = (statistics.median(each), min(each), max(each))
    return found


def paired(workload: str, ours: list[Sample], theirs: list[Sample]) -> list[float]:
    first = COLUMNS[WORKLOADS[workload].how][0][0]
    pairs = [
        (a[first], b[first]) for a, b in zip(ours, theirs, strict=True) if first in a and first in b
    ]
    return [float(a) / float(b) for a, b in pairs if float(b)]


def medians(samples: list[Sample]) -> dict[str, float]:
    """Of the rounds that went well; empty if none did."""
    good = [sample for sample in samples if "error" not in sample]
    return {key: statistics.median(float(s[key]) for s in good) for key in good[0]} if good else {}


def record(
    name: str, machine: dict[str, object], results: Results, rounds: int, seconds: float
) -> dict[str, Any]:
    """What is kept of one run, as JSON."""
    return {
        "format": FORMAT,
        "name": name,
        **machine,
        "rounds": rounds,
        "seconds": seconds,
        "medians": {
            workload: {server: medians(samples) for server, samples in servers.items()}
            for workload, servers in results.items()
        },
        "ratios": [[*key, *value] for key, value in ratios(results).items()],
        "results": results,
    }


def recorded_ratios(record: dict[str, Any]) -> Ratios:
    """A record's ratios, by whatever names servers and workloads had then."""
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
    results = record["results"]
    if aims := goal_rows(recorded_ratios(record)):
        lines += ["", "## Aims", "", *aims]
    for workload, servers in results.items():
        title = WORKLOADS[workload].title
        for kind, heading in KINDS.items():
            rows = {name: s for name, s in servers.items() if SERVERS[name].kind == kind}
            if rows:
                lines += ["", f"## {heading}: {title} (`{workload}`)", ""]
                lines += table(workload, rows, ratios({workload: rows}))
    return "\n".join(lines) + "\n"


def table(workload: str, rows: dict[str, list[Sample]], found: Ratios) -> list[str]:
    """One workload, the servers of one kind; the best first, and who could not last."""
    how = WORKLOADS[workload].how
    first = COLUMNS[how][0][0]
    servos = [name for name in rows if SERVERS[name].is_servo]
    middles = {name: medians(samples) for name, samples in rows.items()}
    heads = ["server", COLUMNS[how][0][1], "least–greatest", *(f"{name}/this" for name in servos)]
    heads += [heading for _, heading, _ in COLUMNS[how][1:]]
    lines = [f"| {' | '.join(heads)} |", "|---|" + "--:|" * (len(heads) - 1)]
    notes = []
    for name in sorted(rows, key=lambda name: middles[name].get(first, float("inf"))):
        good = [float(s[first]) for s in rows[name] if first in s]
        wrong = [str(s["error"]) for s in rows[name] if "error" in s]
        if not good:
            lines.append(f"| {name} | {wrong[0]} |" + " |" * (len(heads) - 2))
            continue
        if wrong:
            notes.append(f"{name} failed in {len(wrong)} of {len(rows[name])} rounds: {wrong[0]}.")
        figures = [format(middles[name][key], style) for key, _, style in COLUMNS[how]]
        style = COLUMNS[how][0][2]
        spread = f"{min(good):{style}}–{max(good):{style}}"
        beside = [ratio_cell(found.get((workload, servo, name))) for servo in servos]
        lines.append(f"| {' | '.join([name, figures[0], spread, *beside, *figures[1:]])} |")
    return [*lines, *(["", *notes] if notes else [])]


def ratio_cell(ratio: tuple[float, float, float] | None) -> str:
    return f"{ratio[0]:.2f} ({ratio[1]:.2f}–{ratio[2]:.2f})" if ratio else ""


def goal_rows(found: Ratios) -> list[str]:
    """The aims for which there are figures: what was wanted, what came out, whether it is met."""
    rows = []
    for (workload, servo, peer), aim in goals().items():
        if (ratio := found.get((workload, servo, peer))) is not None:
            verdict = "met" if ratio[0] <= aim else "**not met**"
            spread = f"{ratio[1]:.2f}–{ratio[2]:.2f}"
            cells = [f"{servo} / {peer}", workload, f"{aim:.2f}", f"{ratio[0]:.2f}", spread]
            rows.append(f"| {' | '.join([*cells, verdict])} |")
    if not rows:
        return []
    heads = "| CPU a request | workload | aim | median ratio | least–greatest | |"
    return [heads, "|---|---|--:|--:|--:|---|", *rows]


def own_rows(results: Results) -> list[str]:
    """As `goal_rows`, of the aims that name no peer."""
    rows = []
    for own in OWN:
        for servo in (n for n in results.get(own.figure[0], {}) if SERVERS[n].is_servo):
            if values := own_values(results, own, servo):
                middle = statistics.median(values)
                verdict = "met" if middle <= own.most else "**not met**"
                spread = f"{min(values):.2f}–{max(values):.2f}"
                cells = [own.title, servo, f"{own.most:g}", f"{middle:.2f}", spread, verdict]
                rows.append(f"| {' | '.join(cells)} |")
    heads = "| | server | aim | median | least–greatest | |"
    return [heads, "|---|---|--:|--:|--:|---|", *rows] if rows else []


def own_values(results: Results, own: Own, servo: str) -> list[float]:
    """One for each round that went well."""
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
    """One page with every aim, from the records of several groups."""
    found: Ratios = {}
    results: Results = {}
    for each in records:
        found |= recorded_ratios(each)
        results |= each["results"]
    measured = ", ".join(f"{each['name']} {each['date']}" for each in records)
    wanted = {(workload, servo, peer) for workload, servo, peer in goals()}
    lines = ["---", "orphan: true", "---", "", "# What Servo aims at, and where it is", ""]
    lines += [f"Measured: {measured}. [How to read this](README.md).", "", *goal_rows(found)]
    lines += ["", *own_rows(results)]
    if missing := sorted(wanted - set(found)):
        lines += ["", "Not measured: " + ", ".join(f"{s} / {p} ({w})" for w, s, p in missing) + "."]
    return "\n".join(lines) + "\n"
