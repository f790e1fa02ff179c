"""The text of `servoctl report`: Markdown that can be pasted into a bug report."""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING, Any

import click

from servo import __version__
from servo.arbiter.operator.report import facts
from servo.cli import show
from servo.cli.tables import Column, format_mebibytes, plain_table
from servo.control.redaction import redact, with_texts
from servo.printable import printable

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_INTRO = """\
Passwords, tokens, keys and cookies have been removed as far as `servoctl` recognises them. Read the
report before you publish it: host names, paths, addresses and the app's own log lines are in it."""


def as_json(result: dict[str, Any], problem: str) -> Any:
    """The report as a JSON value.

    result    the server's answer to "report"; {} if there is none
    problem   why there is none
    """
    return with_texts({"servoctl": facts(os.environ), "error": problem, **result}, redact)


def as_markdown(result: dict[str, Any], problem: str) -> str:
    """The report as Markdown. The arguments are those of `as_json`."""
    sections = _server(result) if result else []
    if problem:
        sections.append(("Server", f"servoctl could not ask the server: {problem}"))
        sections += _system(facts(os.environ))
    parts = [f"# Report by servoctl {__version__}\n\n{_INTRO}"]
    for title, text in sections:
        clean = printable(redact(click.unstyle(text)))
        # A line of the log may contain backticks, so the fence has more of them.
        fence = "`" * (1 + max(map(len, re.findall(r"`{2,}", clean)), default=2))
        parts.append(f"## {title}\n\n{fence}text\n{clean}\n{fence}")
    return "\n\n".join(parts)


def _server(result: dict[str, Any]) -> list[tuple[str, str]]:
    """The sections about a server: their titles and texts."""
    lines = "\n".join(show.status_lines(result["status"]))
    events = "\n".join(map(show.event_line, result["events"]))
    logs = "\n".join(map(show.log_text, result["logs"]))
    return [
        ("Status", lines),
        *_system(result["facts"]),
        ("Settings", _settings(result["settings"])),
        ("Workers", plain_table(*show.workers_table(result))),
        ("Events", events or "none"),
        ("Log", logs or "none"),
    ]


def _system(values: dict[str, Any]) -> list[tuple[str, str]]:
    """The sections about a process and its machine, from `facts`."""
    quota, memory = values["cpu_quota"], values["memory_limit"]
    about = {
        "Servo": f"{values['servo']}, {'compiled' if values['compiled'] else 'plain Python'}",
        "Python": f"{values['python']} ({values['implementation']})",
        "executable": values["executable"],
        "system": values["system"],
        "distribution": ", ".join(filter(None, (values["distribution"], values["libc"]))),
        "user": f"uid {values['uid']}",
        "CPUs": f"{values['cpus']}" + (f", {quota:g} by the cgroup" if quota is not None else ""),
        "memory": f"{format_mebibytes(memory)}, {format_mebibytes(values['memory_left'])} left",
    }
    limits = {name: " / ".join(map(_limit, pair)) for name, pair in values["limits"].items()}
    return [
        ("Versions and system", _pairs(about)),
        ("Libraries", _pairs(values["libraries"])),
        ("Limits (soft / hard)", _pairs(limits)),
        ("Control group", _pairs(values["cgroup"])),
        ("Environment", _assignments(values["environment"])),
    ]


def _settings(rows: Sequence[dict[str, Any]]) -> str:
    given = [row for row in rows if row["source"] != "default"]
    cells = [[row["name"], row["value"], row["source"]] for row in given]
    table = plain_table([Column("setting"), Column("value"), Column("source")], cells)
    return f"{table}\n\n{len(rows) - len(given)} other settings have their defaults."


def _pairs(values: Mapping[str, str]) -> str:
    width = max(map(len, values), default=0) + 2
    return "\n".join(f"{name:{width}}{value}" for name, value in values.items() if value) or "none"


def _assignments(values: Mapping[str, str]) -> str:
    return "\n".join(f"{name}={value}" for name, value in values.items()) or "none"


def _limit(value: int | None) -> str:
    return "unlimited" if value is None else str(value)
