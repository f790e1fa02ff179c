"""What `servoctl` prints for people."""

from __future__ import annotations

import os
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import click

from servo.cli.tables import Column, mebibytes, number, show_table, span, styled
from servo.cli.target import Target, say_json
from servo.control.client import ControlClient, ControlError
from servo.metrics.procfs import cpu_of, memory_of
from servo.printable import printable_line

if TYPE_CHECKING:
    from servo.control.instances import Instance

# How long CPU time is watched for its percentage, as `top` does between two screens.
CPU_SAMPLE_S = 0.25
_NO_ANSWER = "does not answer"


def done(target: Target, result: dict[str, Any], text: str) -> None:
    """The last line of a command that was followed."""
    if target.json:
        say_json({"ok": True, "result": result})
    else:
        click.echo(text)


# --- the servers ------------------------------------------------------------------------------


def ask_all(found: list[Instance], timeout_s: float) -> list[dict[str, Any]]:
    """The status of each server; one that does not answer holds up nobody."""
    if not found:
        return []
    with ThreadPoolExecutor(min(16, len(found))) as pool:
        return list(pool.map(lambda instance: _ask(instance, timeout_s), found))


def _ask(instance: Instance, timeout_s: float) -> dict[str, Any]:
    values = {"name": instance.name, "pid": instance.pid, "socket": instance.socket}
    try:
        with ControlClient(instance.socket, timeout_s) as client:
            return {**values, **client.request("status"), "error": ""}
    except ControlError as error:
        return {**values, "state": _NO_ANSWER, "error": str(error)}


def servers(rows: list[dict[str, Any]]) -> None:
    """`servoctl list`."""
    columns = [
        Column("name"),
        Column("pid", True),
        Column("state"),
        Column("workers", True),
        Column("req/s", True, spare=2),
        Column("requests", True, spare=3),
        Column("uptime", True, spare=1),
        Column("version", spare=4),
        Column("listening on"),
    ]
    show_table(columns, [_server(row) for row in rows])


def _server(row: dict[str, Any]) -> list[str]:
    workers = row.get("workers")
    return [
        row["name"],
        str(row["pid"]),
        row["state"],
        f"{workers['ready']}/{workers['target']}" if workers else "",
        number(row.get("requests_per_s")),
        number(row.get("requests")),
        span(row.get("uptime_s")),
        row.get("version", ""),
        ", ".join(row.get("listeners", [])),
    ]


def status(row: dict[str, Any]) -> None:
    """`servoctl status`."""
    workers = row["workers"]
    state = styled(row["state"], row["state"])
    statuses = ", ".join(f"{name} {count}" for name, count in row["statuses"].items() if count)
    last = row["last_reload"]
    lines = [
        ("name", row["name"]),
        ("app", row["app"]),
        ("state", f"{state}: {row['phase']}" if row["phase"] else state),
        ("pid", str(row["pid"])),
        ("uptime", span(row["uptime_s"])),
        ("version", f"servo {row['version']}, Python {row['python']}"),
        ("listening on", ", ".join(row["listeners"])),
        ("workers", f"{workers['ready']} of {workers['target']} ready, {workers['total']} in all"),
        ("generation", str(row["generation"])),
        ("requests", f"{row['requests']}, {number(row['requests_per_s'])} a second"),
        ("statuses", statuses),
        ("latency", _latency(row)),
        ("in flight", f"{row['in_flight']} requests, {row['connections']} connections"),
        ("last reload", f"{moment(last['time'])} {last['text']}" if last else ""),
        ("directory", row["directory"]),
    ]
    for name, value in lines:
        if value:
            click.echo(f"{name:14}{value.splitlines()[0]}")


def _latency(row: dict[str, Any]) -> str:
    if row["p50_s"] is None:
        return ""
    return f"p50 {span(row['p50_s'])}, p99 {span(row['p99_s'])}"


# --- the workers ------------------------------------------------------------------------------


def add_usage(result: dict[str, Any], server_pid: int) -> None:
    """Add what the kernel tells of each worker: CPU and memory.

    Read here and not by the arbiter: the kernel walks page tables for it. A server in another pid
    namespace, whose `server_pid` is not the one it goes by itself, has none.
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
    columns = [
        Column("slot", True),
        Column("pid", True),
        Column("gen", True, spare=4),
        Column("state"),
        Column("age", True),
        Column("requests", True, spare=2),
        Column("busy", True),
        Column("req/s", True),
        Column("p50", True, spare=3),
        Column("p99", True),
        Column("lag", True, spare=5),
        Column("CPU", True, spare=1),
        Column("RSS", True, spare=7),
        Column("PSS", True, spare=6),
        Column("last exit", keep=False),
    ]
    show_table(columns, [_worker(row) for row in result["workers"]])


def _worker(row: dict[str, Any]) -> list[str]:
    cpu = row.get("cpu_percent")
    return [
        str(row["slot"]),
        str(row["pid"]),
        str(row["generation"]),
        row["state"],
        span(row["age_s"]),
        number(row.get("requests")),
        number(row.get("in_flight")),
        number(row.get("requests_per_s")),
        span(row.get("p50_s")),
        span(row.get("p99_s")),
        span(row.get("lag_s")),
        f"{cpu:.0f}%" if cpu is not None else "",
        mebibytes(row.get("rss_bytes")),
        mebibytes(row.get("pss_bytes")),
        row["last_exit"].replace("_", " "),
    ]


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
        who = [str(worker["slot"]), str(worker["pid"])]
        for request in worker["requests"]:
            # A client has chosen these words: none of them may speak to the terminal.
            words = [printable_line(request[name]) for name in ("client", "method", "target")]
            rows.append([*who, span(request["seconds"]), *words])
        if not worker["answered"]:
            text = f"{worker['in_flight']} in flight; the worker is blocked and does not say which"
            rows.append([*who, span(worker["oldest_s"]), "", "", text])
    if rows:
        show_table(columns, rows)
    else:
        click.echo("no request is being served")


def stack(result: dict[str, Any]) -> None:
    """`servoctl stack`."""
    click.echo(f"worker {result['slot']} (pid {result['pid']}), {result['state']}")
    if "text" in result:
        click.echo("\nIt is busy and does not answer; its threads, most recent call first:\n")
        # What is below is how the worker came up.
        for part in result["text"].rstrip().split("\n\n"):
            click.echo(part.partition(" in run_worker\n")[0].rpartition("\n")[0] or part)
        return
    for thread in result["threads"]:
        click.echo(f"\nthread {thread['name']}, most recent call last:")
        click.echo(thread["stack"].rstrip("\n"))
    for task in result["tasks"]:
        click.echo(f"\ntask {task['name']}, where it waits last:")
        click.echo(task["stack"].rstrip("\n") or "  (it runs right now, or has not begun)")
    if result["left_out"]:
        click.echo(f"\n{result['left_out']} more stacks are left out")


def config(result: dict[str, Any]) -> None:
    """`servoctl config`."""
    columns = [Column("setting"), Column("value", keep=False), Column("unit"), Column("source")]
    rows = [[row["name"], row["value"], row["unit"], row["source"]] for row in result["settings"]]
    show_table(columns, rows)


def log_path(result: dict[str, Any]) -> str:
    """The file of the error log. Raises ControlError where there is none."""
    values = {row["name"]: row["value"] for row in result["settings"]}
    path = os.path.join(str(values.get("chdir", "")), str(values["errorlog"]))
    if not os.path.isfile(path):
        raise ControlError(f"the log goes to {values['errorlog']!r}, which is no file (errorlog)")
    return path


# --- lines ------------------------------------------------------------------------------------


def step(note: dict[str, Any]) -> None:
    """A step of a long answer."""
    if "text" in note:
        click.echo(note["text"].splitlines()[0])


def reload_step(note: dict[str, Any]) -> None:
    """A step of a reload: a line for each worker that is replaced."""
    if note["step"] == "accepted":
        click.echo(f"reloading {plural(note['workers'])}: reading the configuration")
    elif note["step"] in ("started", "replaced"):
        click.echo(note["text"].splitlines()[0])


def event(note: dict[str, Any]) -> None:
    """A lifecycle event."""
    click.echo(f"{moment(note['time'])}  {note['name']:<18}  {note['text'].splitlines()[0]}")


def log_line(record: dict[str, Any]) -> None:
    """A line of the log, with the lines that belong to it."""
    if "line" in record:
        click.echo(record["line"])
        return
    level = record["level"]
    who = f"worker {record['slot']}" if "slot" in record else "arbiter"
    shown = styled(level.upper(), level)
    click.echo(f"{moment(record['time'])} {who} [{record.get('pid')}] {shown} {record['text']}")


def plural(workers: int) -> str:
    """1 worker, 2 workers."""
    return f"{workers} worker{'s' if workers != 1 else ''}"


def moment(seconds: float) -> str:
    """A time of day, with its date."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))
