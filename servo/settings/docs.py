"""Makes the settings reference from the schema: `python -m servo.settings.docs [FILE]`."""

from __future__ import annotations

import itertools
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from servo.settings.config_hooks import HOOKS
from servo.settings.flags import all_flags
from servo.settings.gunicorn_compat import FOREIGN
from servo.settings.peer_flags import meaning, peer_flags
from servo.settings.schema import SETTINGS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from servo.settings.setting import Setting

_INTRO = """\
# Settings

<!-- Made from servo/settings/ by `python -m servo.settings.docs docs/reference/settings.md`. -->

Each setting has one name. Files use that name, the environment uses `SERVO_` and the name in
capitals, and the command line has a flag for it.

A later source overrides an earlier one:

1. the default; the variables `PORT`, `WEB_CONCURRENCY`, `FORWARDED_ALLOW_IPS` and `SENDFILE`, if
   set, replace the default of one setting each
2. one configuration file: the one that `--config` names; else the first that exists of
   `servo.toml`, `pyproject.toml` with a `[tool.servo]` table, `servo.conf.py` and
   `gunicorn.conf.py`, in the directory that the server is started in or that `--chdir` names
3. flags in the variable `SERVO_CMD_ARGS` or, if it is not set, `GUNICORN_CMD_ARGS`
4. `SERVO_<NAME>` variables
5. flags on the command line

A TOML file may have several apps, each in a table `[apps.NAME]` with its own settings. Those
outside the tables count for all. The name then stands for the app on the command line: `servo -c
apps.toml shop`. It is also the default of `proc_name`.

An invalid value is an error in every source. So is an unknown name, except in a Python file, which
may have its own variables: there, Servo only warns of names that look like a misspelt setting. In a
Python file, `None` means "not set". In text, an empty value means "not set" for each setting whose
default is none. In text, a list is separated by commas or is a JSON array.

In every source, a time is a number of seconds, or text with units: `500ms`, `30s`, `5m`, `2h`,
`1h30m`, `1d`. A size in bytes is a number, or text that ends in `K`, `M` or `G`. Servo ignores the
variables that Kubernetes sets for a service named `servo` or `servo-…`, such as
`SERVO_APP_SERVICE_HOST=10.0.0.1`. It also ignores `SERVO_COMPILE`, which is for [the
installation](../how-to/install.md).

One variable is set by Servo, for apps: each worker finds its slot in `SERVO_SLOT`, as `1`, `2` and
so on. A replacement has the same slot, and during a reload two workers have it. PM2's
`NODE_APP_INSTANCE` is the same, but counts from 0. With `--preload`, the app is imported before the
variable is set: read it in a worker. If an app itself starts Servo, that server ignores the
variable.

`servo --print-config` shows each value and its source. `servo --check-config APP` checks all values
and loads the app as a start would, but binds no address and writes no file.
"""

_HOOKS = """\
## Server hooks

A Python configuration file may define these functions. They get the same arguments as in gunicorn.

| hook | called |
|---|---|
"""

_FOREIGN = """\
## gunicorn's other settings

These settings have no counterpart. If one is given, Servo says so in its log and ignores it.

| setting | flags | instead |
|---|---|---|
"""

_PEERS = """
## Flags of uvicorn, hypercorn and granian

These flags work on Servo's command line, too; in files and in the environment, use the names above.
Flags that are called the same in Servo are not in the table. None of these flags makes Servo trust
a proxy: `--forwarded-allow-ips` and `--forwarded-fields` decide.

If a command line has ignored flags, one warning in the log names all of them and shows the command
line without them. In the same way, one error names all flags and values that can't be used.

| flag | here |
|---|---|
"""


def reference() -> str:
    """The reference page, in Markdown (MyST)."""
    parts = [_INTRO]
    sections = itertools.groupby(SETTINGS.values(), lambda setting: setting.section)
    for section, settings in sections:
        parts.append(f"## {section}\n")
        parts += ["\n".join(_entry(setting)) for setting in settings]
    hooks = [f"| `{name}({', '.join(args)})` | {when} |\n" for name, (args, when) in HOOKS.items()]
    parts.append(_HOOKS + "".join(hooks))
    rows = [
        f"| `{name}` | {' '.join(f'`{flag}`' for flag in foreign.flags)} | {foreign.advice} |\n"
        for name, foreign in sorted(FOREIGN.items())
    ]
    flags = [f"| `{flag}` | {meaning(flag)} |\n" for flag in sorted(peer_flags())]
    parts.append(_FOREIGN + "".join(rows) + _PEERS + "".join(flags))
    return "\n".join(parts)


def _entry(setting: Setting) -> Iterator[str]:
    yield f"(setting-{setting.name.replace('_', '-')})="
    yield f"### {setting.name}\n"
    yield f"{setting.help}\n"
    if setting.details:
        yield f"{setting.details}\n"
    flags = ", ".join(f"`{flag}`" for flag in all_flags(setting)) or (
        "none, because `ps` would show the value" if setting.secret else "the argument `APP`"
    )
    yield f"- Flags: {flags}"
    yield f"- Environment: `{setting.variable}`"
    if setting.alias:
        yield f"- gunicorn's name, also accepted: `{setting.alias}`"
    named = setting.unit and not setting.type.valid.startswith(setting.unit)
    unit = f" ({setting.unit})" if named else ""
    yield f"- Value: {setting.type.valid}{unit}"
    yield f"- Default: {_default(setting)}"
    if not setting.in_files:
        yield "- Not allowed in files"
    elif not setting.reloadable:
        yield "- A change needs a restart"
    yield ""


def _default(setting: Setting) -> str:
    text = setting.show(setting.default)
    default = f"`{text}`" if text not in ("", "none", "{}") else "none"
    if setting.default_from is None:
        return default
    return f"`{setting.default_from.shown}` if the variable is set, else {default}"


def main(arguments: list[str]) -> None:
    """Write the reference.

    arguments   the path of the file to write; empty for stdout
    """
    if arguments:
        Path(arguments[0]).write_text(reference(), encoding="utf-8")
    else:
        sys.stdout.write(reference())


if __name__ == "__main__":
    main(sys.argv[1:])
