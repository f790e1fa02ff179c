"""The settings reference, made from the schema: `python -m servo.settings.docs [FILE]`."""

from __future__ import annotations

import itertools
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from servo.settings.config_hooks import HOOKS
from servo.settings.flags import all_flags
from servo.settings.gunicorn_compat import FOREIGN
from servo.settings.schema import SETTINGS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from servo.settings.setting import Setting

_INTRO = """\
# Settings

<!-- Made from servo/settings/ by `python -m servo.settings.docs docs/reference/settings.md`. -->

Every setting has one name. In a file it is that name, in the environment `SERVO_` and the name in
capitals, on the command line a flag.

A later source wins over an earlier one:

1. the default (`PORT`, `WEB_CONCURRENCY`, `FORWARDED_ALLOW_IPS` and `SENDFILE` take part in some)
2. one file: the one that `--config` names; else the first of `servo.toml`, a `pyproject.toml` with
   `[tool.servo]`, `servo.conf.py` and `gunicorn.conf.py` in the directory that the server is
   started in, or in the one that `--chdir` names
3. flags in `SERVO_CMD_ARGS` (when it is absent, in `GUNICORN_CMD_ARGS`)
4. `SERVO_<NAME>` variables
5. flags on the command line

A bad value is an error wherever it stands. So is an unknown name, except in a Python file, where
only a near miss is warned of. In a Python file `None` means "not set"; in text, an empty value does
for every setting whose default is none. A list is, in text, separated by commas, or a JSON array.
Variables that Kubernetes sets for a service named `servo` or `servo-…`, such as
`SERVO_APP_SERVICE_HOST=10.0.0.1`, are no settings and are passed over.

`servo --print-config` shows each value and its source; `servo --check-config APP` checks them all
and loads the app: it does what a start would, but binds nothing and writes nothing.
"""

_HOOKS = """\
## Server hooks

Functions in a Python configuration file, called with gunicorn's arguments:

| hook | called |
|---|---|
"""

_FOREIGN = """\
## gunicorn's other settings

These have no counterpart. Wherever one appears it is reported in the log and left out.

| setting | flags | instead |
|---|---|---|
"""


def reference() -> str:
    """The page, in Markdown (MyST)."""
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
    parts.append(_FOREIGN + "".join(rows))
    return "\n".join(parts)


def _entry(setting: Setting) -> Iterator[str]:
    yield f"(setting-{setting.name.replace('_', '-')})="
    yield f"### {setting.name}\n"
    yield f"{setting.help}\n"
    if setting.details:
        yield f"{setting.details}\n"
    flags = ", ".join(f"`{flag}`" for flag in all_flags(setting)) or (
        "none, as `ps` would show it" if setting.secret else "the argument `APP`"
    )
    yield f"- Flags: {flags}"
    yield f"- Environment: `{setting.variable}`"
    if setting.alias:
        yield f"- gunicorn's name: `{setting.alias}` (read too)"
    unit = f" ({setting.unit})" if setting.unit else ""
    yield f"- Value: {setting.type.valid}{unit}"
    yield f"- Default: {_default(setting)}"
    if not setting.in_files:
        yield "- Not in files"
    elif not setting.reloadable:
        yield "- A change takes a restart"
    yield ""


def _default(setting: Setting) -> str:
    text = setting.show(setting.default)
    default = f"`{text}`" if text not in ("", "none", "{}") else "none"
    if setting.default_from is None:
        return default
    return f"`{setting.default_from.shown}` where that is set, else {default}"


def main(arguments: list[str]) -> None:
    """Write the page to the file that is named, or to stdout."""
    if arguments:
        Path(arguments[0]).write_text(reference(), encoding="utf-8")
    else:
        sys.stdout.write(reference())


if __name__ == "__main__":
    main(sys.argv[1:])
