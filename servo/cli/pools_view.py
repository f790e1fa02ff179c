"""The output of `servoctl pools`, and the tasks in that of `servoctl requests`, for people."""

from __future__ import annotations

from typing import Any

import click

from servo.cli.tables import Column, format_mebibytes, format_number, format_seconds, show_table
from servo.printable import printable_line


def show_pools(result: dict[str, Any]) -> None:
    """`servoctl pools`: for each pool a line, and a table of its processes."""
    if not result["pools"]:
        click.echo("this server has no pools")
    for pool in result["pools"]:
        click.echo(_summary(pool))
        if pool["failure"]:
            click.echo(f"  new processes can't boot: {printable_line(pool['failure'])}")
        if pool["processes"]:
            show_table(_COLUMNS, [_process(each) for each in pool["processes"]])


def show_tasks(tasks: list[dict[str, Any]]) -> None:
    """The running tasks, for `servoctl requests`."""
    columns = [
        Column("pool"),
        Column("slot", True),
        Column("pid", True),
        Column("for", True),
        Column("task", keep=False),
    ]
    rows = [
        [
            task["pool"],
            str(task["slot"]),
            str(task["pid"]),
            format_seconds(task["seconds"]),
            printable_line(task["task"]),
        ]
        for task in tasks
    ]
    show_table(columns, rows)


_COLUMNS = [
    Column("slot", True),
    Column("pid", True),
    Column("gen", True, drop_rank=2),
    Column("state"),
    Column("age", True),
    Column("tasks", True),
    Column("failed", True, drop_rank=1),
    Column("RSS", True, drop_rank=3),
    Column("for", True),
    Column("task", keep=False),
]


def _summary(pool: dict[str, Any]) -> str:
    tasks, queue = pool["tasks"], pool["queue"]
    parts = [f"{tasks['done']} done", f"{tasks['failed']} failed"]
    parts += [f"{tasks[name]} {name}" for name in ("abandoned", "lost") if tasks[name]]
    waiting = "" if queue is None else f"; {queue['waiting']} of {queue['limit']} wait"
    restarts = f"; {pool['restarts']} processes have failed" if pool["restarts"] else ""
    return f"pool {pool['name']}: tasks: {', '.join(parts)}{waiting}{restarts}"


def _process(row: dict[str, Any]) -> list[str]:
    return [
        str(row["slot"]),
        str(row["pid"]),
        str(row["generation"]),
        row["state"] + (" (stale)" if row["stale"] else ""),
        format_seconds(row["age_s"]),
        format_number(row["tasks"]),
        format_number(row["failed"]),
        format_mebibytes(row["rss"]),
        format_seconds(row["seconds"]),
        printable_line(row["task"] or ""),
    ]
