"""The output of `servoctl` for people."""

from __future__ import annotations

import json
import os
import pwd
import re
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import click

from servo.cli.pools_view import show_tasks
from servo.cli.tables import (
    Column,
    format_mebibytes,
    format_number,
    format_seconds,
    show_table,
    styled,
)
from servo.cli.target import Target, print_json
from servo.control.client import ControlClient, ControlError
from servo.control.stacks import stack_lines
from servo.metrics import saturation
from servo.metrics.procfs import children_of, cpu_of, cpu_with_children, memory_of
from servo.printable import printable_line

if TYPE_CHECKING:
    from servo.control.instances import Instance

# Seconds between the two readings of the CPU time from which the CPU usage is computed.
CPU_SAMPLE_S = 0.25
# Characters that JSON allows, but that a terminal obeys (servo.printable) or that have no UTF-8.
_UNPRINTABLE = re.compile("[\\x7f-\\x9f\\u202a-\\u202e\\u2066-\\u2069\\ud800-\\udfff]")
_NO_ANSWER = "does not answer"


def done(target: Target, result: dict[str, Any], text: str) -> None:
    """Print the last line of a command that has succeeded.

    target   has the option for JSON
    result   the command's result, for JSON
    text     the line for people
    """
    if target.json:
        print_json({"ok": True, "result": result})
    else:
        click.echo(text)


# --- the servers ------------------------------------------------------------------------------


def query_all(
    found: list[Instance], timeout_s: float, *, with_usage: bool = True
) -> list[dict[str, Any]]:
    """The status of each server, asked in parallel so that a silent one delays no other.

    found        the servers
    timeout_s    how long to wait for each answer, in seconds
    with_usage   whether to add the use of CPU and memory, which takes CPU_SAMPLE_S seconds
    """
    if not found:
        return []
    with ThreadPoolExecutor(min(16, len(found))) as pool:
        return list(pool.map(lambda instance: _query(instance, timeout_s, with_usage), found))


def _query(instance: Instance, timeout_s: float, with_usage: bool) -> dict[str, Any]:
    uid = os.geteuid() if instance.owner is None else instance.owner
    values = {"name": instance.name, "pid": instance.pid, "socket": instance.socket, "uid": uid}
    try:
        with ControlClient(instance.socket, timeout_s, instance.owner) as client:
            status = client.request("status")
            # Otherwise the server is in another pid namespace, see `add_usage`.
            is_here = status["pid"] == client.server_pid
            used = _usage(client.server_pid) if with_usage and is_here else {}
            return {**values, **status, **used, "error": ""}
    except ControlError as error:
        return {**values, "state": _NO_ANSWER, "error": str(error)}


def _usage(pid: int) -> dict[str, Any]:
    """The CPU usage and the memory of a server's arbiter and its children."""
    began, before = time.monotonic(), cpu_with_children(pid)
    time.sleep(CPU_SAMPLE_S)
    after, seconds = cpu_with_children(pid), time.monotonic() - began
    memory = [memory_of(each) for each in (pid, *children_of(pid))]
    known = before is not None and after is not None
    return {
        "cpu_percent": round(100 * (sum(after or ()) - sum(before or ())) / seconds, 1)
        if known
        else None,
        # Without permission to read the PSS, the sum counts shared pages more than once.
        "memory_bytes": sum(
            each.resident if each.proportional is None else each.proportional
            for each in memory
            if each is not None
        ),
    }


def servers(rows: list[dict[str, Any]]) -> None:
    """`servoctl list`."""
    columns = [
        Column("name"),
        Column("pid", True),
        Column("state"),
        Column("workers", True),
        Column("restarts", True, drop_rank=4),
        Column("CPU", True, drop_rank=2),
        Column("memory", True, drop_rank=3),
        Column("req/s", True, drop_rank=5),
        Column("requests", True, drop_rank=6),
        Column("uptime", True, drop_rank=1),
        Column("version", drop_rank=7),
        Column("listening on"),
    ]
    cells = [_server(row) for row in rows]
    if len({row.get("uid") for row in rows}) > 1:
        columns.insert(1, Column("user"))
        for row, line in zip(rows, cells, strict=True):
            line.insert(1, _user(row["uid"]))
    show_table(columns, cells)


def _user(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def _server(row: dict[str, Any]) -> list[str]:
    workers, cpu = row.get("workers"), row.get("cpu_percent")
    return [
        row["name"],
        str(row["pid"]),
        row["state"],
        f"{workers['ready']}/{workers['target']}" if workers else "",
        format_number(row.get("restarts")),
        f"{cpu:.0f}%" if cpu is not None else "",
        format_mebibytes(row.get("memory_bytes")),
        format_number(row.get("requests_per_s")),
        format_number(row.get("requests")),
        format_seconds(row.get("uptime_s")),
        row.get("version", ""),
        ", ".join(row.get("listeners", [])),
    ]


def _counts(workers: dict[str, Any]) -> str:
    text = f"{workers['ready']} of {workers['target']} ready, {workers['total']} in all"
    if workers.get("blocked"):
        text += f", {styled(str(workers['blocked']) + ' blocked', 'blocked')}"
    least, most = workers.get("least"), workers.get("most")
    return text if least == most else f"{text}; {least} to {most} by load"


def status(row: dict[str, Any]) -> None:
    """`servoctl status`."""
    for line in status_lines(row):
        click.echo(line)


def status_lines(row: dict[str, Any]) -> list[str]:
    """The lines of `servoctl status`."""
    workers = row["workers"]
    state = styled(row["state"], row["state"])
    statuses = ", ".join(f"{name} {count}" for name, count in row["statuses"].items() if count)
    last = row["last_reload"]
    lines = [
        ("name", row["name"]),
        ("app", row["app"]),
        ("state", f"{state}: {row['phase']}" if row["phase"] else state),
        ("pid", str(row["pid"])),
        ("uptime", format_seconds(row["uptime_s"])),
        ("version", f"servo {row['version']}, Python {row['python']}"),
        ("listening on", ", ".join(row["listeners"])),
        ("workers", _counts(workers)),
        ("utilisation", _percent(row.get("utilisation"))),
        ("threads", _threads(row.get("threads"))),
        (
            "restarts",
            f"{row['restarts']} (workers that ended unexpectedly)" if row.get("restarts") else "",
        ),
        ("generation", str(row["generation"])),
        ("requests", f"{row['requests']}, {format_number(row['requests_per_s'])} a second"),
        ("statuses", statuses),
        ("latency", _quantiles(row["p50_s"], row["p99_s"])),
        ("thread wait", _quantiles(row.get("thread_wait_p50_s"), row.get("thread_wait_p99_s"))),
        ("accept queue", _waiting(row.get("accept_queue"))),
        ("queue time", _quantiles(row.get("queue_p50_s"), row.get("queue_p99_s"))),
        ("in flight", f"{row['in_flight']} requests, {row['connections']} connections"),
        ("last reload", f"{format_time(last['time'])} {last['text']}" if last else ""),
        ("directory", row["directory"]),
    ]
    return [f"{name:14}{value.splitlines()[0]}" for name, value in lines if value]


def _quantiles(p50_s: float | None, p99_s: float | None) -> str:
    if p50_s is None:
        return ""
    return f"p50 {format_seconds(p50_s)}, p99 {format_seconds(p99_s)}"


# --- the workers ------------------------------------------------------------------------------


def add_usage(result: dict[str, Any], server_pid: int) -> None:
    """Add each worker's CPU usage and memory, from /proc, to its row.

    `servoctl` reads them, not the arbiter, because reading the memory is slow: the kernel walks the
    page tables. If the server is in another pid namespace, its workers get no values, because here
    their pids belong to other processes. Such a server is recognised by its pid, which differs
    between the namespaces.

    result       the server's answer to "workers"
    server_pid   the server's pid as this process sees it
    """
    rows = result["workers"]
    here = result["server_pid"] == server_pid
    began = time.monotonic()
    before = {row["pid"]: cpu_of(row["pid"]) if here and row["pid"] else None for row in rows}
    if any(before.values()):
        time.sleep(CPU_SAMPLE_S)
    for row in rows:
        first, second = before[row["pid"]], cpu_of(row["pid"]) if before[row["pid"]] else None
        memory = memory_of(row["pid"]) if first is not None else None
        percent = None
        if first is not None and second is not None:
            percent = round(100 * (sum(second) - sum(first)) / (time.monotonic() - began), 1)
        row["cpu_percent"] = percent
        row["rss_bytes"] = memory.resident if memory is not None else None
        row["pss_bytes"] = memory.proportional if memory is not None else None


def workers(result: dict[str, Any]) -> None:
    """`servoctl workers`."""
    show_table(*workers_table(result))


def workers_table(result: dict[str, Any]) -> tuple[list[Column], list[list[str]]]:
    """The columns and the rows of `servoctl workers`."""
    columns = [
        Column("slot", True),
        Column("pid", True),
        Column("gen", True, drop_rank=4),
        Column("state"),
        Column("age", True),
        Column("use", True),
        Column("requests", True, drop_rank=2),
        Column("busy", True),
        Column("threads", True, drop_rank=8),
        Column("req/s", True),
        Column("p50", True, drop_rank=3),
        Column("p99", True),
        Column("lag", True, drop_rank=5),
        Column("CPU", True, drop_rank=1),
        Column("RSS", True, drop_rank=7),
        Column("PSS", True, drop_rank=6),
        Column("last exit", keep=False),
    ]
    return columns, [_worker(row) for row in result["workers"]]


def _worker(row: dict[str, Any]) -> list[str]:
    cpu = row.get("cpu_percent")
    return [
        str(row["slot"]),
        str(row["pid"]),
        str(row["generation"]),
        worker_state(row),
        format_seconds(row["age_s"]),
        _percent(row.get("utilisation")),
        format_number(row.get("requests")),
        format_number(row.get("in_flight")),
        _busy_of(row.get("threads")),
        format_number(row.get("requests_per_s")),
        format_seconds(row.get("p50_s")),
        format_seconds(row.get("p99_s")),
        format_seconds(row.get("lag_s")),
        f"{cpu:.0f}%" if cpu is not None else "",
        format_mebibytes(row.get("rss_bytes")),
        format_mebibytes(row.get("pss_bytes")),
        row["last_exit"].replace("_", " "),
    ]


def _percent(share: float | None) -> str:
    return f"{share:.0%}" if share is not None else ""


def _busy_of(threads: dict[str, int] | None) -> str:
    return f"{threads['busy']}/{threads['busy'] + threads['idle']}" if threads else ""


def _threads(threads: dict[str, int] | None) -> str:
    if threads is None:
        return ""
    text = f"{threads['busy']} of {threads['busy'] + threads['idle']} busy"
    return f"{text}, {threads['waiting']} requests wait" if threads["waiting"] else text


def _waiting(queue: dict[str, int] | None) -> str:
    return f"{queue['waiting']} of {queue['limit']} connections wait" if queue else ""


def worker_state(row: dict[str, Any]) -> str:
    """A worker's state; if it is blocked, also for how long."""
    state: str = row["state"]
    seconds = row.get("blocked_s", 0.0)
    if seconds < saturation.SHOWN_S:
        return state
    blocked = f"blocked {format_seconds(seconds)}"
    return blocked if state == "ready" else f"{state}, {blocked}"


def requests(result: dict[str, Any]) -> None:
    """`servoctl requests`."""
    columns = [
        Column("slot", True),
        Column("pid", True),
        Column("for", True),
        Column("client"),
        Column("method"),
        Column("target", keep=False),
    ]
    rows = []
    for worker in result["workers"]:
        process = [str(worker["slot"]), str(worker["pid"])]
        for request in worker["requests"]:
            # These texts come from a client, so escape control characters.
            texts = [printable_line(request[name]) for name in ("client", "method", "target")]
            rows.append([*process, format_seconds(request["seconds"]), *texts])
        if not worker["answered"]:
            text = f"{worker['in_flight']} in flight; the worker is blocked and can't list them"
            rows.append([*process, format_seconds(worker["oldest_s"]), "", "", text])
    tasks = result.get("tasks", [])  # older servers lack it
    if rows:
        show_table(columns, rows)
    elif not tasks:
        click.echo("no request is being served")
    if tasks:
        show_tasks(tasks)


def stack(result: dict[str, Any]) -> None:
    """`servoctl stack`."""
    click.echo("\n".join(stack_lines(result)))


def config(result: dict[str, Any]) -> None:
    """`servoctl config`."""
    columns = [
        Column("setting"),
        Column("value", keep=False),
        Column("unit", drop_rank=1),
        Column("source"),
    ]
    rows = [[row["name"], row["value"], row["unit"], row["source"]] for row in result["settings"]]
    show_table(columns, rows)


def log_path(result: dict[str, Any]) -> str:
    """The path of the error log's file, from a server's answer to "config".

    Raises ControlError if the log doesn't go to a file.
    """
    values = {row["name"]: row["value"] for row in result["settings"]}
    path = os.path.join(str(values.get("chdir", "")), str(values["errorlog"]))
    if not os.path.isfile(path):
        raise ControlError(f"the log goes to {values['errorlog']!r}, which isn't a file (errorlog)")
    return path


# --- lines ------------------------------------------------------------------------------------


def reloaded(result: dict[str, Any]) -> str:
    """The last line of a reload, from the server's result."""
    text = f"reloaded: {plural(result['replaced'])} replaced in {result['seconds']:.2f} s"
    return f"{text}, generation {result['generation']}"


def scaled(result: dict[str, Any]) -> str:
    """The last line of "scale", from the server's result."""
    if "most" in result:  # autoscaling
        return (
            f"at least {plural(result['workers'])} instead of {result['before']}, "
            f"at most {result['most']}; {result['now']} now"
        )
    return f"scaled from {result['before']} to {plural(result['workers'])}"


def restarted(result: dict[str, Any]) -> str:
    """The last line of "restart-worker", from the server's result."""
    trouble: str = result["trouble"]
    return trouble or (
        f"worker {result['slot']} replaced: pid {result['old_pid']} -> {result['pid']}"
    )


def step(note: dict[str, Any]) -> None:
    """Print a step of a long answer."""
    if "text" in note:
        click.echo(note["text"].splitlines()[0])


def reload_step(note: dict[str, Any]) -> None:
    """Print a step of a reload: its start, or a worker that has been replaced."""
    if note["step"] == "accepted":
        click.echo(f"reloading {plural(note['workers'])}: reading the configuration")
    elif note["step"] in ("started", "replaced"):
        click.echo(note["text"].splitlines()[0])


def upgrade_step(note: dict[str, Any]) -> None:
    """Print a step of an upgrade: a note of the old program, or an event of the new one."""
    if note.get("step") == "accepted":
        click.echo("upgrading: a child process tries the new program")
    else:
        click.echo(note["text"].splitlines()[0])


def event(note: dict[str, Any]) -> None:
    """Print a lifecycle event."""
    click.echo(event_line(note))


def event_line(note: dict[str, Any]) -> str:
    """A lifecycle event as a line."""
    return f"{format_time(note['time'])}  {note['name']:<18}  {note['text'].splitlines()[0]}"


def log_line(record: dict[str, Any]) -> None:
    """Print a record of the log, which may have several lines."""
    if "line" not in record:
        click.echo(log_text(record))
        return
    level = record["level"].upper()
    line = record["line"].replace(f"[{level}]", f"[{styled(level, record['level'])}]", 1)
    click.echo(_highlighted(line))


def log_text(record: dict[str, Any]) -> str:
    """A record of the log as text, which may have several lines."""
    level = record["level"]
    start = f"{format_time(record['time'])} {process_of(record)} [{record.get('pid')}]"
    stream = record.get("stream", "")
    if stream == "access":
        return f"{start} {styled(record['text'], level)}"
    label = styled((stream or level).upper(), level)
    return f"{start} {label} {_highlighted(record['text'])}"


def process_of(record: dict[str, Any]) -> str:
    """The name of the process that wrote a record, such as "worker 1"."""
    if "slot" in record:
        return f"worker {record['slot']}"
    return f"mold {record['mold']}" if "mold" in record else "arbiter"


def _highlighted(text: str) -> str:
    """Make the frames of tracebacks pale, and the lines that name exceptions red."""
    if "Traceback (most recent call last):" not in text:
        return text
    lines = text.split("\n")
    inside = False
    for number, line in enumerate(lines):
        is_frame = line.startswith((" ", "\t"))
        if line.endswith("Traceback (most recent call last):"):
            inside = True
            lines[number] = styled(line, "frame") if number else line
        elif inside and is_frame:
            lines[number] = styled(line, "frame")
        elif inside and line:
            inside = False
            lines[number] = styled(line, "exception")
    return "\n".join(lines)


def json_text(value: Any) -> str:
    """A JSON value as indented text, without characters that could change the terminal's output."""
    text = json.dumps(value, indent=2, ensure_ascii=False)
    return _UNPRINTABLE.sub(lambda match: f"\\u{ord(match[0]):04x}", text)


def plural(workers: int) -> str:
    """A number of workers as text: "1 worker", "2 workers"."""
    return f"{workers} worker{'s' if workers != 1 else ''}"


def format_time(seconds: float) -> str:
    """A point in time (Unix seconds) as local date and time."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))
