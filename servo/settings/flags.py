"""The flags of the command line, made from the schema.

click parses the command line. This module gives it the options and turns its errors into ours. It
also knows the flags of gunicorn, uvicorn, hypercorn and granian that Servo does not have, and
whether they take an argument. `servo.settings.peer_flags` turns them into settings, or reports
them.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from servo.errors import UsageError
from servo.settings.gunicorn_compat import FOREIGN, Foreign
from servo.settings.peer_flags import parameter_name, peer_flags
from servo.settings.schema import SETTINGS, advise_flag

if TYPE_CHECKING:
    from collections.abc import Sequence

    from servo.settings.setting import Setting

_OFF = "__off"  # ends the parameter name of a flag such as --no-server-header (Setting.no_flag)


def parse_flags(arguments: Sequence[str], command: click.Command | None = None) -> dict[str, Any]:
    """Parse a command line into the given flags' texts, by the name of their setting.

    arguments   the command line without the program's name
    command     a command made of `flag_parameters` and others; its eager options run during parsing

    The names may also be those of gunicorn's other settings, which Servo does not have, and of
    other servers' flags (`peer_flags.parameter_name`). Raises UsageError for a flag that doesn't
    exist or lacks its argument, and for more arguments than one app.
    """
    command = command or _bare_command()
    try:
        context = command.make_context("servo", list(arguments))
    except click.NoSuchOption as error:
        raise UsageError(_no_such_flag(error.option_name)) from error
    except click.UsageError as error:
        if len(arguments) > 1 and "extra argument" in error.message:
            # hypercorn's --access-log takes a path; uvicorn's and granian's, and so ours, does not.
            hint = "; a path for the access log: --access-logfile FILE"
            raise UsageError(
                f"{error.message}: one app can be served"
                f"{hint if '--access-log' in arguments else ''}"
            ) from error
        raise UsageError(error.format_message().rstrip(".")) from error
    given = {
        name: value
        for name, value in context.params.items()
        if context.get_parameter_source(name) is ParameterSource.COMMANDLINE
    }
    for setting in SETTINGS.values():
        if setting.no_flag and given.pop(setting.name + _OFF, None):
            given[setting.name] = setting.no_flag[1]
    return {
        name: list(value) if isinstance(value, tuple) else value for name, value in given.items()
    }


def flag_parameters() -> list[click.Parameter]:
    """The parameters for click: the app, all settings' flags, and other servers' (hidden)."""
    parameters: list[click.Parameter] = [
        click.Argument(["app"], required=False, metavar="[APP]", type=click.UNPROCESSED)
    ]
    for setting in SETTINGS.values():
        if setting.name != "app" and not setting.secret:
            parameters += _options(setting)
    parameters += [_foreign_option(foreign) for foreign in FOREIGN.values() if foreign.flags]
    parameters += [_peer_option(flag, *form) for flag, form in peer_flags().items()]
    return parameters


def flag_names() -> list[str]:
    """All flags of all settings, in all their forms."""
    return [flag for setting in SETTINGS.values() for flag in all_flags(setting)]


def all_flags(setting: Setting) -> list[str]:
    """All flags of one setting: its own, `--<name>`, and those that turn it off."""
    if setting.name == "app" or setting.secret:
        return []
    flags = list(dict.fromkeys([*setting.flags, setting.plain_flag]))
    if setting.is_switch:
        flags += ["--no-" + flag[2:] for flag in flags if _is_negatable(flag)]
    if setting.no_flag:
        flags.append(setting.no_flag[0])
    return flags


@functools.cache
def _bare_command() -> click.Command:
    return click.Command("servo", params=flag_parameters(), add_help_option=False)


def _options(setting: Setting) -> list[click.Parameter]:
    flags = list(dict.fromkeys([*setting.flags, setting.plain_flag]))
    if setting.is_switch:
        pairs = [f"{flag}/--no-{flag[2:]}" if _is_negatable(flag) else flag for flag in flags]
        return [click.Option([*pairs, setting.name], is_flag=True, default=None)]
    if setting.bare is not None:
        option = click.Option(
            [*flags, setting.name], is_flag=False, flag_value=setting.bare, type=click.UNPROCESSED
        )
        return [option]
    options: list[click.Parameter] = [
        click.Option(
            [*flags, setting.name],
            type=click.UNPROCESSED,
            default=None,
            multiple=setting.type.many,
        )
    ]
    if setting.no_flag:
        options.append(
            click.Option([setting.no_flag[0], setting.name + _OFF], is_flag=True, default=None)
        )
    return options


def _is_negatable(flag: str) -> bool:
    return flag.startswith("--") and not flag.startswith("--no-")


def _foreign_option(foreign: Foreign) -> click.Option:
    make = functools.partial(click.Option, [*foreign.flags, foreign.name], hidden=True)
    if foreign.argument is None:
        # For click, a flag_value means that the argument may be left out.
        return make(is_flag=False, flag_value="auto", type=click.UNPROCESSED)
    return make(type=click.UNPROCESSED) if foreign.argument else make(is_flag=True, default=None)


def _peer_option(flag: str, takes_argument: bool, many: bool) -> click.Option:
    make = functools.partial(click.Option, [flag, parameter_name(flag)], hidden=True)
    if takes_argument:
        return make(type=click.UNPROCESSED, default=None, multiple=many)
    return make(is_flag=True, default=None)


def _no_such_flag(flag: str) -> str:
    return f"there is no flag {flag}{advise_flag(flag, flag_names())}"
