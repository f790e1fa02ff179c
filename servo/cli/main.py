"""The `servo` command: reads the settings, then prints or checks them or runs the server."""

from __future__ import annotations

import importlib.util
import os
import shlex
import signal
import sys
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from servo import __version__
from servo.arbiter.reexec import (
    Command,
    Inheritance,
    PreflightFile,
    answer_preflight,
    take_upgrade,
)
from servo.cli import render
from servo.errors import INTERNAL_ERROR, AppImportError, ConfigError, ServoError, UsageError
from servo.net.tls_switch import wants_tls
from servo.settings.flags import flag_parameters, parse_flags
from servo.settings.sources import Settings, drop_config_modules, load_settings, take_secrets
from servo.settings.workdir import started_in

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code: that of a ServoError, or the server's.

    arguments   the command line without the program's name; None: that of sys.argv
    """
    try:
        return _run(sys.argv[1:] if arguments is None else arguments)
    except click.exceptions.Exit as exit_:  # --help and --version
        return exit_.exit_code
    except AppImportError as error:
        render.print_error(str(error), error.details)
        return error.exit_code
    except UsageError as error:
        render.print_error(f"{error}\nTry 'servo --help'.")
        return error.exit_code
    except ServoError as error:
        render.print_error(str(error))
        return error.exit_code
    except KeyboardInterrupt:
        return 128 + signal.SIGINT  # a shell's exit code for a command that SIGINT has ended
    except BrokenPipeError:
        # The reader of our output has closed the pipe (`servo --help | head`). Redirect stdout,
        # because Python would report the error again when it flushes stdout at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception:  # noqa: BLE001  print the same as Python, but exit with another code
        traceback.print_exc()
        return INTERNAL_ERROR


def _run(arguments: Sequence[str]) -> int:
    if arguments[:1] == ["migrate"]:
        from servo.cli.migrate import run

        return run(arguments[1:])
    # Do this first: programs that the configuration starts must not inherit the variable.
    upgrade = take_upgrade(os.environ)
    if isinstance(upgrade, Inheritance):
        with upgrade.given_back_on_error():
            return _start(arguments, upgrade)
    return _start(arguments, upgrade)


def _start(arguments: Sequence[str], upgrade: Inheritance | PreflightFile | None) -> int:
    flags = parse_flags(arguments, command())
    try:
        start = started_in(os.environ)
    except FileNotFoundError as error:
        raise ConfigError("the current directory no longer exists") from error
    # `python -m servo` puts the real path of the current directory into sys.path. Replace it by the
    # path with symbolic links, so that a reload finds the release to which a link points at that
    # time.
    here = os.getcwd()
    sys.path[:] = [str(start) if entry == here else entry for entry in sys.path]
    environ = take_secrets(os.environ)
    settings, reload_settings = _load(flags, environ, start)
    _check_addresses(settings)
    if settings.print_config:
        click.echo(render.config_table(settings))
    if settings.print_config and not settings.check_config:
        return 0
    _require_app(settings)
    _change_directory(settings)
    if settings.check_config:
        from servo.cli.check_config import check

        check(settings)
        if isinstance(upgrade, PreflightFile):
            answer_preflight(upgrade.fd, secure=wants_tls(settings))
        click.echo("configuration OK")
        return 0
    # Imported here because --help and --check-config don't need it.
    from servo.arbiter.start import run_server

    start_again = Command.of_process(arguments, str(start), environ)
    inheritance = upgrade if isinstance(upgrade, Inheritance) else None
    return run_server(settings, reload_settings, start_again, inheritance)


def _load(
    flags: Mapping[str, Any], environ: Mapping[str, str], start: Path
) -> tuple[Settings, Callable[[], Settings]]:
    """Load the settings, and make the function with which a reload loads them again.

    flags     the command line's flags
    environ   a copy of the environment at the start, secrets included
    start     the directory that the server was started in
    """
    at_terminal = os.isatty(1)
    current = load_settings(flags, environ, start, at_terminal=at_terminal)

    def reload_settings() -> Settings:
        nonlocal current
        # Make the configuration file import its modules again: they may have changed on disk.
        drop_config_modules(current)
        settings = load_settings(flags, environ, start, at_terminal=at_terminal)
        _require_app(settings)
        current = settings
        return settings

    return current, reload_settings


def _require_app(settings: Settings) -> None:
    if settings.app is None:
        from servo.apps.discovery import likely_app
        from servo.apps.loader import FORMS

        app = likely_app(Path(settings.chdir))
        suggestion = f" (perhaps: servo {shlex.quote(app)})" if app is not None else ""
        # uvicorn's --server-header is a switch, so the next word may have been the app.
        taken = settings.source("server_header") == "flag --server-header"
        hint = f"; --server-header takes a text, and has got {settings.server_header!r}"
        raise UsageError(
            f"no app was given; run servo APP{suggestion}, where APP is {FORMS}"
            f"{hint if taken else ''}"
        )


def _change_directory(settings: Settings) -> None:
    """Change to the directory of `chdir`, where relative paths start. Raises ConfigError."""
    try:
        os.chdir(settings.directory)
    except OSError as error:
        raise ConfigError(
            f"can't change to the directory {settings.chdir}: {error.strerror} "
            f"({settings.source('chdir')})"
        ) from error


def _check_addresses(settings: Settings) -> None:
    from servo.net.address import parse_address

    name = "bind"
    try:
        for address in settings.bind:
            parse_address(address)
        name = "metrics_bind"
        if settings.metrics_bind is not None:
            parse_address(settings.metrics_bind)
    except ServoError as error:
        source = settings.source(name)
        kind = UsageError if source.startswith("flag ") else ConfigError
        raise kind(f"{error} ({source})") from error


def command() -> click.Command:
    """The click command that parses the command line and prints help; `main` does the work."""
    return render.GroupedCommand(
        "servo",
        params=[
            *flag_parameters(),
            click.Option(
                ["-v", "--version"],
                is_flag=True,
                is_eager=True,
                expose_value=False,
                callback=_show_version,
            ),
        ],
        context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    )


def _show_version(context: click.Context, _parameter: click.Parameter, value: bool | None) -> None:
    if value:
        import platform  # only needed here

        python = f"{platform.python_implementation()} {platform.python_version()}"
        # find_spec doesn't import the module, so --version stays fast.
        spec = importlib.util.find_spec("servo.http.h1.connection")
        plain = spec is None or str(spec.origin).endswith(".py")
        click.echo(f"servo {__version__} ({python}, {'plain' if plain else 'compiled'})")
        context.exit()
