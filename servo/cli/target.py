"""The server that a `servoctl` command is for, and the options that choose it."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import click
from click.shell_completion import CompletionItem

from servo.cli.tables import Column, plain_table
from servo.control import instances
from servo.control.client import ControlClient, NoAnswer, NoSuchInstance
from servo.control.instances import Instance
from servo.errors import ServoError, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import TypeVar

    F = TypeVar("F", bound=Callable[..., Any])

TIMEOUT_S = 5.0
# How long the completion of a word may take, in seconds.
_COMPLETION_S = 1.0


@dataclass(frozen=True)
class Target:
    """The options that all commands have.

    name        the server's name; None: any
    pid         the server's pid; None: any
    socket      the path of its control socket; None: search for it
    json        whether to print JSON
    timeout_s   how long to wait for each answer, in seconds
    every       whether the command is for all servers
    instance    the server, if it is already known
    """

    name: str | None = None
    pid: int | None = None
    socket: str | None = None
    json: bool = False
    timeout_s: float = TIMEOUT_S
    every: bool = False
    instance: Instance | None = None

    def merged(self, other: Target) -> Target:
        """These options, overridden by those that were given after the command."""
        given = {name: value for name, value in vars(other).items() if value != _DEFAULTS[name]}
        return replace(self, **given)

    def find(self) -> Instance:
        """The one server that the options select.

        Raises NoSuchInstance if none matches, UsageError if several do.
        """
        if self.instance is not None:
            return self.instance
        if self.socket is not None:
            return Instance("", 0, self.socket)
        running = running_servers()
        matching = self.matching(running)
        if not matching:  # root may mean another user's server
            running = all_servers()
            matching = self.matching(running)
        if len(matching) == 1:
            return matching[0]
        if matching:
            problem, options = "several servers are running", "--name, --pid or --socket"
            if self.name is not None:
                problem, options = f"several servers are named {self.name}", "--pid or --socket"
            table = instance_table(matching)
            raise UsageError(f"{problem}; choose one with {options}:\n{table}")
        raise NoSuchInstance(self._no_such(running))

    def find_all(self) -> list[Instance]:
        """All servers, or those with the given name. Raises NoSuchInstance and UsageError."""
        if self.pid is not None or self.socket is not None:
            raise UsageError("--all is for all servers, or with --name for all of that name")
        running = all_servers()
        found = self.matching(running)
        if not found:
            raise NoSuchInstance(self._no_such(running))
        return found

    def matching(self, running: list[Instance]) -> list[Instance]:
        """The servers among `running` that the name and the pid select."""
        return [
            each
            for each in running
            if self.name in (None, each.name) and self.pid in (None, each.pid)
        ]

    def connect(self) -> ControlClient:
        """Connect to the server that the options select. Raises ControlError and UsageError."""
        return self.connect_to(self.find())

    def connect_to(self, instance: Instance) -> ControlClient:
        """Connect to a server. Raises ControlError."""
        try:
            return ControlClient(instance.socket, self.timeout_s, instance.owner)
        except NoSuchInstance as error:
            if instance not in all_servers():
                raise
            # The server still holds its lock, so it is running: only its socket is gone.
            raise NoAnswer(
                f"{instance.name} (pid {instance.pid}) does not answer at its socket "
                f"{instance.socket}; if the socket was removed, the server makes it again within "
                "a second"
            ) from error

    def _no_such(self, running: list[Instance]) -> str:
        if not running:
            return "no server of this user is running (or all run with --no-control-socket)"
        wanted = [
            f"named {self.name}" if self.name is not None else "",
            f"with pid {self.pid}" if self.pid is not None else "",
        ]
        table = instance_table(running)
        return f"no server {' '.join(filter(None, wanted))} is running; running are:\n{table}"


_DEFAULTS = vars(Target())


def running_servers() -> list[Instance]:
    """All running servers of this user on this machine; for root, those of services as well."""
    return instances.instances(instances.search_directories(os.environ, os.geteuid()))


def all_servers() -> list[Instance]:
    """All running servers of this user; for root, those of services and of other users as well."""
    return [*running_servers(), *instances.instances(instances.other_users_directories())]


def instance_table(found: list[Instance]) -> str:
    """A table of servers, as text."""
    rows = [(each.name, str(each.pid), each.socket) for each in found]
    return plain_table([Column("name"), Column("pid", True), Column("socket")], rows)


def target_options(function: F) -> F:
    """Add the options of `Target` to a command."""
    for option in reversed(
        [
            click.option(
                "-n",
                "--name",
                metavar="NAME",
                shell_complete=_completed_names,
                help="The server's name.",
            ),
            click.option(
                "-p",
                "--pid",
                type=int,
                metavar="PID",
                shell_complete=_completed_pids,
                help="The arbiter's process id.",
            ),
            click.option("-s", "--socket", metavar="PATH", help="The server's control socket."),
            click.option("--json", "as_json", is_flag=True, help="Print JSON, one value per line."),
            click.option(
                "--timeout",
                type=click.FloatRange(min=0.01),
                default=TIMEOUT_S,
                metavar="SECONDS",
                help=f"How long to wait for a sign of life.  [{TIMEOUT_S:g}]",
            ),
        ]
    ):
        function = option(function)
    return function


# --- completion by the shell ------------------------------------------------------------------


def _completed_names(
    _context: click.Context, _parameter: click.Parameter, word: str
) -> list[CompletionItem]:
    pids: dict[str, list[str]] = {}
    for each in all_servers():
        pids.setdefault(each.name, []).append(str(each.pid))
    return [
        CompletionItem(name, help=f"pid {', '.join(found)}")
        for name, found in pids.items()
        if name.startswith(word)
    ]


def _completed_pids(
    _context: click.Context, _parameter: click.Parameter, word: str
) -> list[CompletionItem]:
    return [
        CompletionItem(str(each.pid), help=each.name)
        for each in all_servers()
        if str(each.pid).startswith(word)
    ]


def completed_slots(
    context: click.Context, _parameter: click.Parameter, word: str
) -> list[CompletionItem]:
    """The slots of the server that the typed options select; none if it does not answer."""
    given: dict[str, Any] = {}
    for each in (context.parent, context):  # the options after the command win
        params = each.params if each is not None else {}
        given.update({k: params[k] for k in ("name", "pid", "socket") if params.get(k) is not None})
    try:
        with Target(**given, timeout_s=_COMPLETION_S).connect() as client:
            rows = client.request("workers")["workers"]
    except ServoError:  # an error would be printed into the line that the user types
        return []
    states = {str(row["slot"]): f"pid {row['pid']}, {row['state']}" for row in rows}
    return [
        CompletionItem(slot, help=state) for slot, state in states.items() if slot.startswith(word)
    ]


def target_of(options: dict[str, Any]) -> Target:
    """Make a Target from a command's options and from the options before the command.

    options   the command's options; those of the Target are removed
    """
    here = Target(
        options.pop("name"),
        options.pop("pid"),
        options.pop("socket"),
        options.pop("as_json"),
        options.pop("timeout"),
    )
    outer = click.get_current_context().find_object(Target)
    return here if outer is None else outer.merged(here)


def print_json(value: object) -> None:
    """Print a value as one line of JSON."""
    click.echo(json.dumps(value))
