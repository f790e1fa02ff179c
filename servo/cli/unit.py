"""`servoctl unit`: the systemd units for a server's command line."""

from __future__ import annotations

import ipaddress
import os
import pwd
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from servo.apps.discovery import likely_app
from servo.cli.unit_files import Unit
from servo.control.instances import safe_name
from servo.errors import UsageError
from servo.net.address import AbstractAddress, FdAddress, TCPAddress, UnixAddress, parse_address
from servo.settings.files import apps_of
from servo.settings.flags import parse_flags
from servo.settings.sources import load_settings

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from servo.settings.sources import Settings

# The first version with Type=notify-reload.
_NOTIFY_RELOAD = 253
_FIRST_FREE_PORT = 1024
# The directories that ProtectHome= hides (systemd.exec(5)).
_HOMES = ("/home/", "/root/", "/run/user/")


def make_unit(
    words: Sequence[str],
    *,
    start: Path,
    name: str = "",
    for_user: bool = False,
    with_socket: bool = False,
    hardened: bool = False,
    run_as: str = "",
    notify_reload: bool | None = None,
) -> Unit:
    """Make the units of a server.

    words          the server's command line, with or without `servo` in front
    start          the server's working directory, an absolute path
    name           the units' name; "": the name of the server or of its app
    for_user       whether the units are for a user's own manager
    with_socket    whether systemd opens the sockets
    hardened       whether to remove all rights that Servo does not need
    run_as         the user of the service; "": see `_account`
    notify_reload  whether systemd has Type=notify-reload; None: check the installed systemd

    Raises UsageError or ConfigError if the server could not start.
    """
    program, arguments = _split(words)
    settings = load_settings(parse_flags(arguments), {}, start)
    _check(settings, start, arguments)
    chosen = safe_name(name or settings.proc_name or str(settings.app).partition(":")[0])
    addresses = [parse_address(text) for text in settings.bind]
    ports = [each.port for each in addresses if isinstance(each, TCPAddress)]
    binds_low = not with_socket and any(0 < port < _FIRST_FREE_PORT for port in ports)
    if for_user and binds_low:
        raise UsageError(
            f"bind: a user's service can't bind port {min(ports)}; leave --user out, or bind a "
            f"port from {_FIRST_FREE_PORT} on"
        )
    account = "" if for_user else _account(settings, run_as, start)
    extra = ["--name", chosen] if settings.source("proc_name") == "default" else []
    if os.path.realpath(start) != str(start) and settings.source("chdir") == "default":
        # Servo takes the path with symbolic links from $PWD, but systemd does not set $PWD.
        extra += ["--chdir", str(start)]
    return Unit(
        name=chosen,
        command=(*program, *arguments, *extra),
        directory=str(start),
        for_user=for_user,
        run_as=account,
        hardened=hardened,
        streams=tuple(_streams(settings)) if with_socket else (),
        socket_mode=_socket_mode(settings),
        notify_reload=_has_notify_reload() if notify_reload is None else notify_reload,
        low_port=binds_low and bool(account),
        in_home=_is_in_home(program, start),
        writable=tuple(_writable(settings)),
    )


def make_all_units(
    source: Path, words: Sequence[str], *, start: Path, **options: Any
) -> list[Unit]:
    """Make the units of several servers, one for each app.

    source    a TOML file with tables [apps.NAME], or a directory of TOML files
    words     what all command lines have in common
    start     the servers' working directory, an absolute path
    options   the other arguments of `make_unit`

    Raises UsageError if there is no app, or two have the same name, and ConfigError.
    """
    if options.get("name"):
        raise UsageError("--name can't be used with --all: each app has a name of its own")
    if source.is_dir():
        lines = [[*words, "-c", str(path)] for path in sorted(source.glob("*.toml"))]
    else:
        lines = [[*words, "-c", str(source), name] for name in apps_of(source)]
    if not lines:
        what = "TOML files" if source.is_dir() else "tables [apps.NAME]"
        raise UsageError(f"{source} has no {what}")
    units = [make_unit(line, start=start, **options) for line in lines]
    names = [unit.name for unit in units]
    for name in names:
        if names.count(name) > 1:
            raise UsageError(f"{source} has two apps of the name {name}: set proc_name")
    return units


def made_by(words: Sequence[str], options: Mapping[str, Any]) -> list[str]:
    """The command that makes the units again, as a list.

    words     the server's command line
    options   the given options of `make_unit`, and the `source` of `make_all_units`
    """
    found = ["servoctl", "unit"]
    for name, flag in (("name", "--name"), ("source", "--all"), ("run_as", "--run-as")):
        found += [flag, str(options[name])] if options.get(name) else []
    switches = (("for_user", "--user"), ("with_socket", "--socket"), ("hardened", "--hardened"))
    found += [flag for name, flag in switches if options.get(name)]
    return [*found, "--", *words] if words else found


def write_units(
    files: Mapping[str, str], command: Sequence[str], directory: str | None, *, for_user: bool
) -> None:
    """Write unit files into a directory, or print them.

    files       the texts by file name
    command     the command that makes them, for a comment at their beginning
    directory   the directory to write into; None: print them
    for_user    whether the units are for a user's own manager

    Raises UsageError if a file with another text exists.
    """
    place = Path("~/.config/systemd/user" if for_user else "/etc/systemd/system")
    texts = {
        name: f"# {place / name}, made by:\n# {shlex.join(command)}\n\n{text}"
        for name, text in files.items()
    }
    if directory is None:
        click.echo("\n".join(texts.values()), nl=False)
    for name, text in texts.items() if directory is not None else ():
        _write(Path(directory or ".", name), text)
    manager = "systemctl --user" if for_user else "systemctl"
    units = " ".join(files)
    click.echo(f"next: {manager} daemon-reload && {manager} enable --now {units}", err=True)


def _write(path: Path, text: str) -> None:
    try:
        if path.exists() and path.read_text() != text:
            raise UsageError(f"{path} exists and differs; move it away first")
        path.write_text(text)
    except OSError as error:
        raise UsageError(f"can't write {path}: {error.strerror}") from error
    click.echo(f"wrote {path}")


def _split(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """The command that starts Servo, and its arguments."""
    arguments = list(words)
    if arguments and os.path.basename(arguments[0]) == "servo":
        program = arguments.pop(0)
        if os.path.isabs(program):
            return [program], arguments
    # pip installs it next to the interpreter. Don't resolve the path: in a venv it is a link.
    beside = Path(sys.executable).parent / "servo"
    return [str(beside)] if beside.exists() else [sys.executable, "-m", "servo"], arguments


def _check(settings: Settings, start: Path, arguments: list[str]) -> None:
    if settings.app is None:
        app = likely_app(start) or "myapp:app"
        raise UsageError(
            "give the server's command line, for example: "
            f"servoctl unit --hardened -- {app} {' '.join(arguments) or '-w auto'}"
        )
    if settings.daemon:
        raise UsageError("leave --daemon out: systemd runs the server in the background itself")


def _account(settings: Settings, run_as: str, start: Path) -> str:
    """The user of the service; "" if the server starts as root and gives up root itself."""
    if run_as:
        return run_as
    if settings.source("user") != "default":
        return ""
    for uid in (os.geteuid(), start.stat().st_uid if start.exists() else 0):
        if uid != 0:
            try:
                return pwd.getpwuid(uid).pw_name
            except KeyError:
                continue
    return "www-data"


def _streams(settings: Settings) -> list[str]:
    """The addresses of `bind`, in the form of ListenStream=. Raises UsageError."""
    found = []
    for text in settings.bind:
        address = parse_address(text)
        if isinstance(address, FdAddress):
            raise UsageError(f"bind {text}: a socket unit needs an address, not a descriptor")
        if isinstance(address, UnixAddress):
            found.append(str(Path(settings.chdir, address.path)))
        elif isinstance(address, AbstractAddress):
            found.append(f"@{address.name}")
        else:
            host = "127.0.0.1" if address.host == "localhost" else address.host
            try:
                ipaddress.ip_address(host)
            except ValueError:
                raise UsageError(
                    f"bind {text}: a socket unit needs an IP address, not a host's name"
                ) from None
            found.append(str(TCPAddress(host, address.port)))
    return found


def _socket_mode(settings: Settings) -> int | None:
    return None if settings.source("umask") == "default" else 0o666 & ~settings.umask


def _is_in_home(program: list[str], start: Path) -> bool:
    places = [str(start), program[0], sys.base_prefix]
    real = [os.path.realpath(each) for each in places]
    return any(f"{each}/".startswith(_HOMES) for each in [*places, *real])


def _writable(settings: Settings) -> list[str]:
    """The directories of the files that the server writes."""
    files: list[Any] = [
        settings.errorlog,
        settings.accesslog,
        settings.pidfile,
        settings.control_socket,
    ]
    for text in [*settings.bind, settings.metrics_bind]:
        address = parse_address(text) if text else None
        files.append(address.path if isinstance(address, UnixAddress) else None)
    named = [str(Path(settings.chdir, each).parent) for each in files if each not in (None, "-")]
    if settings.worker_tmp_dir:
        named.append(settings.worker_tmp_dir)
    return list(dict.fromkeys(named))


def _has_notify_reload() -> bool:
    """Whether the installed systemd has Type=notify-reload; False without systemd."""
    program = shutil.which("systemctl")
    if program is None:
        return False
    try:
        text = subprocess.run(  # noqa: S603  the program is systemctl
            [program, "--version"], capture_output=True, text=True, timeout=5, check=False
        ).stdout
    except (OSError, subprocess.TimeoutExpired):
        return False
    words = text.split()  # systemd 252 (252.38-1~deb12u1)
    number = words[1].partition(".")[0] if len(words) > 1 else ""
    return number.isdecimal() and int(number) >= _NOTIFY_RELOAD
