"""Which server a `servoctl` command is about, and how it is talked to."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import click

from servo.cli.tables import Column, plain_table
from servo.control import instances
from servo.control.client import ControlClient, NoAnswer, NoSuchInstance
from servo.control.instances import Instance
from servo.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import TypeVar

    F = TypeVar("F", bound=Callable[..., Any])

TIMEOUT_S = 5.0


@dataclass(frozen=True)
class Target:
    """What the options say: which server, whether in JSON, and for how long to wait."""

    name: str | None = None
    pid: int | None = None
    socket: str | None = None
    json: bool = False
    timeout_s: float = TIMEOUT_S

    def merged(self, other: Target) -> Target:
        """These options with those that were given after the command."""
        given = {name: value for name, value in vars(other).items() if value != _DEFAULTS[name]}
        return replace(self, **given)

    def find(self) -> Instance:
        """The one server that is meant.

        Raises NoSuchInstance when there is none, UsageError when several fit.
        """
        if self.socket is not None:
            return Instance("", 0, self.socket)
        every = running()
        fits = [
            each
            for each in every
            if self.name in (None, each.name) and self.pid in (None, each.pid)
        ]
        if len(fits) == 1:
            return fits[0]
        if fits:
            what, how = "several servers run", "--name, --pid or --socket"
            if self.name is not None:
                what, how = f"several are called {self.name}", "--pid or --socket"
            raise UsageError(f"{what}; say which by {how}:\n{listed(fits)}")
        raise NoSuchInstance(self._no_such(every))

    def connect(self) -> ControlClient:
        """A connection to that server. Raises ControlError, UsageError."""
        instance = self.find()
        try:
            return ControlClient(instance.socket, self.timeout_s)
        except NoSuchInstance as error:
            if instance not in running():
                raise
            # It holds its lock: the socket is gone, not the server.
            raise NoAnswer(
                f"{instance.name} (pid {instance.pid}) does not answer: nobody is at its socket "
                f"{instance.socket}; a running server makes a removed one anew within a second"
            ) from error

    def _no_such(self, every: list[Instance]) -> str:
        if not every:
            return "no server of this user runs (or they run with --no-control-socket)"
        wanted = [
            f"called {self.name}" if self.name is not None else "",
            f"with pid {self.pid}" if self.pid is not None else "",
        ]
        return f"there is no server {' '.join(filter(None, wanted))}; there are:\n{listed(every)}"


_DEFAULTS = vars(Target())


def running() -> list[Instance]:
    """Every server of this user on this machine."""
    return instances.instances(instances.directories(os.environ, os.geteuid()))


def listed(found: list[Instance]) -> str:
    """Instances for people."""
    rows = [(each.name, str(each.pid), each.socket) for each in found]
    return plain_table([Column("name"), Column("pid", True), Column("socket")], rows)


def target_options(function: F) -> F:
    """Add the options that every command has."""
    for option in reversed(
        [
            click.option("-n", "--name", metavar="NAME", help="The server of this name."),
            click.option("-p", "--pid", type=int, metavar="PID", help="The server with this pid."),
            click.option("-s", "--socket", metavar="PATH", help="The server at this socket."),
            click.option("--json", "as_json", is_flag=True, help="JSON, for programs."),
            click.option(
                "--timeout",
                type=click.FloatRange(min=0.01),
                default=TIMEOUT_S,
                metavar="SECONDS",
                help=f"Give up after so long a silence.  [{TIMEOUT_S:g}]",
            ),
        ]
    ):
        function = option(function)
    return function


def target_of(options: dict[str, Any]) -> Target:
    """Take the target's options out of a command's, and join them with those of `servoctl`."""
    here = Target(
        options.pop("name"),
        options.pop("pid"),
        options.pop("socket"),
        options.pop("as_json"),
        options.pop("timeout"),
    )
    outer = click.get_current_context().find_object(Target)
    return here if outer is None else outer.merged(here)


def say_json(value: object) -> None:
    """One JSON value on a line of its own."""
    click.echo(json.dumps(value))
