"""The `servoctl` command: ask a running server anything, and change it.

Exit codes: 0 done, 1 refused or rolled back, 2 usage, 3 no such server.
"""

from __future__ import annotations

import functools
import json
import os
import re
import signal
import sys
from typing import TYPE_CHECKING, Any

import click
from click.shell_completion import get_completion_class

from servo import __version__
from servo.cli import show
from servo.cli.log_reader import LogFilter, follow_file, tail_file
from servo.cli.target import Target, running, say_json, target_of, target_options
from servo.control.client import ConnectionEnded, ControlClient, RequestFailed
from servo.errors import ServoError, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

EXIT_DONE = 0
EXIT_REFUSED = 1
EXIT_USAGE = 2

_LEVELS = ("debug", "info", "warning", "error", "critical")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; its exit code.

    arguments   without the program's name; sys.argv's by default
    """
    try:
        code = servoctl.main(
            None if arguments is None else list(arguments),
            prog_name="servoctl",
            standalone_mode=False,
        )
    except click.exceptions.Exit as exit_:  # --help and --version
        return exit_.exit_code
    except click.UsageError as error:
        path = error.ctx.command_path if error.ctx is not None else "servoctl"
        click.echo(f"servoctl: error: {error.format_message()}\nTry '{path} --help'.", err=True)
        return EXIT_USAGE
    except (KeyboardInterrupt, click.Abort):
        return 128 + signal.SIGINT  # as a shell says it
    except BrokenPipeError:
        # Whoever read our output has seen enough. Python would complain while it flushes.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_REFUSED
    return code if isinstance(code, int) else EXIT_DONE


@click.group(
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    invoke_without_command=True,
)
@click.version_option(__version__, "-v", "--version", message="servoctl %(version)s")
@target_options
@click.pass_context
def servoctl(context: click.Context, /, **options: Any) -> None:
    """Ask a running Servo anything, and change it.

    With one server running, it need not be named; else say which by --name, --pid or --socket.
    """
    context.obj = target_of(options)
    if context.invoked_subcommand is None:
        click.echo(context.get_help(), err=True)
        context.exit(EXIT_USAGE)


def command(
    name: str, **attributes: Any
) -> Callable[[Callable[..., int | None]], Callable[..., int | None]]:
    """A command of `servoctl`: it gets a Target first, and its errors become exit codes."""

    def decorate(function: Callable[..., int | None]) -> Callable[..., int | None]:
        @servoctl.command(name, **attributes)
        @target_options
        @functools.wraps(function)
        def run(**options: Any) -> int:
            target = target_of(options)
            try:
                return function(target, **options) or EXIT_DONE
            except ServoError as error:
                _tell_failure(target, error)
                return error.exit_code

        return function

    return decorate


def _tell_failure(target: Target, error: ServoError) -> None:
    kind = error.kind if isinstance(error, RequestFailed) else ""
    details = error.details if isinstance(error, RequestFailed) else ""
    if target.json:
        say_json({"ok": False, "error": str(error), "kind": kind, "details": details})
        return
    if details:
        click.echo(details.rstrip() + "\n", err=True)
    before = "rolled back: " if kind == "rolled back" else ""
    click.echo(f"servoctl: error: {before}{error}", err=True)


# --- looking ----------------------------------------------------------------------------------


@command("list")
def list_servers(target: Target) -> None:
    """Every server of this user on this machine."""
    rows = show.ask_all(running(), target.timeout_s)
    if target.json:
        say_json(rows)
    elif rows:
        show.servers(rows)
    else:
        click.echo("no server of this user runs", err=True)


@command("status")
def status(target: Target) -> None:
    """A server as a whole."""
    with target.connect() as client:
        result = client.request("status")
    say_json(result) if target.json else show.status(result)


@command("workers")
def workers(target: Target) -> None:
    """Each worker: what it does, how fast, and what it costs."""
    with target.connect() as client:
        result = client.request("workers")
        show.add_usage(result, client.server_pid)
    say_json(result) if target.json else show.workers(result)


@command("requests")
def requests(target: Target) -> None:
    """What every worker is serving right now, and for how long."""
    with target.connect() as client:
        result = client.request("requests")
    say_json(result) if target.json else show.requests(result)


@command("stack")
@click.argument("slot", type=int)
def stack(target: Target, slot: int) -> None:
    """The Python stacks and asyncio tasks of the worker in SLOT, which goes on working."""
    with target.connect() as client:
        result = client.request("stack", {"slot": slot})
    say_json(result) if target.json else show.stack(result)


@command("config")
def config(target: Target) -> None:
    """Each setting: its value, and where it came from."""
    with target.connect() as client:
        result = client.request("config")
    say_json(result) if target.json else show.config(result)


@command("events")
@click.option("-f", "--follow", is_flag=True, help="Go on with what happens next.")
@click.option("--lines", type=click.IntRange(min=0), default=50, help="Past events.  [50]")
def events(target: Target, follow: bool, lines: int) -> None:
    """What happened to the server and its workers."""
    with target.connect() as client:
        say = say_json if target.json else show.event
        _show_ring(client, "events", follow, lines, lambda _event: True, say)


@command("logs")
@click.option("-f", "--follow", is_flag=True, help="Go on with what is written next.")
@click.option("--lines", type=click.IntRange(min=0), default=100, help="Past lines.  [100]")
@click.option("--worker", type=int, metavar="SLOT", help="Only this worker's.")
@click.option("--level", type=click.Choice(_LEVELS), default="debug", help="Only from this one on.")
@click.option("--grep", metavar="REGEX", help="Only lines that this matches.")
@click.option("--file", "from_file", is_flag=True, help="Read the log's file: older lines, too.")
def logs(
    target: Target,
    follow: bool,
    lines: int,
    worker: int | None,
    level: str,
    grep: str | None,
    from_file: bool,
) -> None:
    """The server's log, from what the arbiter remembers (about the last 1000 lines)."""
    try:
        pattern = re.compile(grep or "")
    except re.error as error:
        raise UsageError(f"--grep: {error}") from error
    wanted = LogFilter(worker, _LEVELS[_LEVELS.index(level) :], pattern)
    say = say_json if target.json else show.log_line
    with target.connect() as client:
        if not from_file:
            _show_ring(client, "logs", follow, lines, wanted.takes, say)
            return
        path = show.log_path(client.request("config"))
        wanted.learn(client.request("workers")["workers"])
    for record in tail_file(path, lines, wanted):
        say(record)
    if follow:
        for record in follow_file(path, wanted):
            say(record)


def _show_ring(
    client: ControlClient,
    what: str,
    follow: bool,
    lines: int,
    wanted: Callable[[dict[str, Any]], bool],
    say: Callable[[dict[str, Any]], None],
) -> None:
    """Show the last of what the arbiter remembers, and what comes after it."""
    past: list[dict[str, Any]] = []
    client.request(what, {}, lambda note: past.append(note) if wanted(note) else None)
    for note in past[len(past) - min(lines, len(past)) :]:
        say(note)
    if not follow:
        return
    skip = _Skipper(past)

    def on_note(note: dict[str, Any]) -> None:
        if wanted(note) and skip.is_new(note):
            say(note)

    def on_lost(count: int) -> None:
        click.echo(f"servoctl: {count} lines were lost: this terminal is too slow", err=True)

    try:
        client.request(what, {"follow": True}, on_note, on_lost)
    except ConnectionEnded:
        click.echo("servoctl: the server has ended", err=True)


class _Skipper:
    """The second request begins with what the first has brought."""

    def __init__(self, seen: list[dict[str, Any]]) -> None:
        self._seen = list(seen)

    def is_new(self, note: dict[str, Any]) -> bool:
        """Whether it was not shown before. Records come in one order, always."""
        if note in self._seen:
            self._seen.remove(note)
            return False
        return True


# --- changing ---------------------------------------------------------------------------------


@command("reload")
@click.option("--no-wait", is_flag=True, help="Only ask for it.")
def reload(target: Target, no_wait: bool) -> None:
    """New code and configuration, without losing a request.

    Ends with 0 when every worker was replaced; with 1, the reason and the traceback when the new
    release can't serve: the old one goes on.
    """
    result = _ask(target, "reload", {"wait": not no_wait}, show.reload_step)
    if no_wait:
        show.done(target, result, "the reload is under way")
    else:
        text = f"reloaded: {show.plural(result['replaced'])} replaced in {result['seconds']:.2f} s"
        show.done(target, result, f"{text}, generation {result['generation']}")


@command("scale", context_settings={"ignore_unknown_options": True})
@click.argument("to", metavar="N|+N|-N")
def scale(target: Target, to: str) -> None:
    """Run N workers, or N more or less than now."""
    if not re.fullmatch(r"[+-]?\d{1,6}", to, re.ASCII):
        raise UsageError(f"{to!r} is no number of workers: N, +N or -N")
    result = _ask(target, "scale", {"to": to})
    show.done(
        target, result, f"scaled: {show.plural(result['workers'])}, before {result['before']}"
    )


@command("restart-worker")
@click.argument("slot", type=int)
@click.option("--no-wait", is_flag=True, help="Only ask for it.")
def restart_worker(target: Target, slot: int, no_wait: bool) -> None:
    """Replace the worker in SLOT: its successor is ready before it goes."""
    result = _ask(target, "restart-worker", {"slot": slot, "wait": not no_wait}, show.step)
    if no_wait:
        show.done(target, result, f"worker {slot} (pid {result['pid']}) is to be replaced")
    else:
        old, new = result["old_pid"], result["pid"]
        text = f"worker {slot} replaced: pid {old} -> {new}"
        show.done(target, result, result["trouble"] or text)


@command("send")
@click.argument("words", nargs=-1, required=True, metavar="[SLOT] JSON")
@click.option("--all", "to_all", is_flag=True, help="To every worker, in place of SLOT.")
@click.option("--topic", default="", help="Which of the application's handlers get it.")
def send(target: Target, words: tuple[str, ...], to_all: bool, topic: str) -> None:
    """Send a message to the application in a worker, or in all: a value in JSON.

    It is what `servo.cluster.on_message` handlers of that topic get.
    """
    if len(words) != 2 - to_all:
        raise UsageError("a slot and a message are needed, or --all and a message")
    slot = "0" if to_all else words[0]
    if not re.fullmatch(r"\d{1,9}", slot, re.ASCII) or (int(slot) == 0) != to_all:
        raise UsageError(f"{slot!r} is no worker's slot")
    try:
        json.loads(words[-1])
    except (ValueError, RecursionError) as error:
        raise UsageError(f"the message is no JSON: {error}") from error
    args = {"message": words[-1], "slot": int(slot), "topic": topic}
    result = _ask(target, "send", args)
    show.done(target, result, f"sent to {show.plural(result['workers'])}")


@command("stop")
@click.option("--now", is_flag=True, help="Cut the requests that are under way.")
@click.option("--no-wait", is_flag=True, help="Only ask for it.")
def stop(target: Target, now: bool, no_wait: bool) -> None:
    """End the server, when it has answered what is under way."""
    try:
        result = _ask(target, "stop", {"now": now, "wait": not no_wait}, show.step)
    except ConnectionEnded:
        result = {}  # which is what was asked for
    show.done(target, result, "the server is stopping" if no_wait else "the server has ended")


@servoctl.command("completion")
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """A script for the shell's completion: eval "$(servoctl completion bash)"."""
    kind = get_completion_class(shell)
    assert kind is not None
    click.echo(kind(servoctl, {}, "servoctl", "_SERVOCTL_COMPLETE").source())


def _ask(
    target: Target,
    name: str,
    args: dict[str, Any],
    on_step: Callable[[dict[str, Any]], None] | None = None,
) -> dict[str, Any]:
    """Send a command; its steps are told as they come."""

    def on_note(note: dict[str, Any]) -> None:
        if target.json:
            say_json(note)
        elif on_step is not None:
            on_step(note)

    with target.connect() as client:
        return client.request(name, args, on_note)


if __name__ == "__main__":
    sys.exit(main())
