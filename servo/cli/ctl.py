"""The `servoctl` command: inspect and control running servers.

Exit codes: 0 success, 1 refused or rolled back, 2 wrong usage, 3 no such server.
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
from servo.cli.target import Target, print_json, running_servers, target_of, target_options
from servo.control.client import ConnectionEnded, ControlClient, RequestFailed
from servo.errors import ServoError, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

EXIT_DONE = 0
EXIT_REFUSED = 1
EXIT_USAGE = 2

_LEVELS = ("debug", "info", "warning", "error", "critical")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code.

    arguments   the command line without the program's name; None: that of sys.argv
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
        return 128 + signal.SIGINT  # a shell's exit code for a command that SIGINT has ended
    except BrokenPipeError:
        # The reader of our output has closed it (`servoctl logs | head`). Python would report the
        # error once more when it flushes stdout at exit.
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
    """Inspect and control a running Servo.

    If several servers run, choose one with --name, --pid or --socket.
    """
    context.obj = target_of(options)
    if context.invoked_subcommand is None:
        click.echo(context.get_help(), err=True)
        context.exit(EXIT_USAGE)


def command(
    name: str, **attributes: Any
) -> Callable[[Callable[..., int | None]], Callable[..., int | None]]:
    """Make a function a command of `servoctl`.

    The function gets a Target as its first argument. Its ServoErrors become messages and exit
    codes.

    name         the command's name
    attributes   further arguments for `click.Group.command`
    """

    def decorate(function: Callable[..., int | None]) -> Callable[..., int | None]:
        @servoctl.command(name, **attributes)
        @target_options
        @functools.wraps(function)
        def run(**options: Any) -> int:
            target = target_of(options)
            try:
                return function(target, **options) or EXIT_DONE
            except ServoError as error:
                _print_failure(target, error)
                return error.exit_code

        return function

    return decorate


def _print_failure(target: Target, error: ServoError) -> None:
    kind = error.kind if isinstance(error, RequestFailed) else ""
    details = error.details if isinstance(error, RequestFailed) else ""
    if target.json:
        print_json({"ok": False, "error": str(error), "kind": kind, "details": details})
        return
    if details:
        click.echo(details.rstrip() + "\n", err=True)
    before = "rolled back: " if kind == "rolled back" else ""
    click.echo(f"servoctl: error: {before}{error}", err=True)


# --- inspecting -------------------------------------------------------------------------------


@command("list")
def list_servers(target: Target) -> None:
    """List all servers of this user on this machine."""
    rows = show.query_all(running_servers(), target.timeout_s)
    if target.json:
        print_json(rows)
    elif rows:
        show.servers(rows)
    else:
        click.echo("no server of this user is running", err=True)


@command("status")
def status(target: Target) -> None:
    """Show a server's state and its totals."""
    with target.connect() as client:
        result = client.request("status")
    print_json(result) if target.json else show.status(result)


@command("workers")
def workers(target: Target) -> None:
    """Show each worker's state, requests, latency, CPU and memory."""
    with target.connect() as client:
        result = client.request("workers")
        show.add_usage(result, client.server_pid)
    print_json(result) if target.json else show.workers(result)


@command("requests")
def requests(target: Target) -> None:
    """Show the requests that workers are serving, and for how long."""
    with target.connect() as client:
        result = client.request("requests")
    print_json(result) if target.json else show.requests(result)


@command("stack")
@click.argument("slot", type=int)
def stack(target: Target, slot: int) -> None:
    """Show the Python stacks and asyncio tasks of the worker in SLOT, without stopping it."""
    with target.connect() as client:
        result = client.request("stack", {"slot": slot})
    print_json(result) if target.json else show.stack(result)


@command("config")
def config(target: Target) -> None:
    """Show each setting's value and its source."""
    with target.connect() as client:
        result = client.request("config")
    print_json(result) if target.json else show.config(result)


@command("events")
@click.option("-f", "--follow", is_flag=True, help="Also show new events as they happen.")
@click.option(
    "--lines", type=click.IntRange(min=0), default=50, help="How many past events to show.  [50]"
)
def events(target: Target, follow: bool, lines: int) -> None:
    """Show what has happened to the server and its workers."""
    with target.connect() as client:
        print_event = print_json if target.json else show.event
        _show_ring(client, "events", follow, lines, lambda _event: True, print_event)


@command("logs")
@click.option("-f", "--follow", is_flag=True, help="Also show new lines as they are written.")
@click.option(
    "--lines", type=click.IntRange(min=0), default=100, help="How many past lines to show.  [100]"
)
@click.option("--worker", type=int, metavar="SLOT", help="Show only this worker's lines.")
@click.option(
    "--level",
    type=click.Choice(_LEVELS),
    default="debug",
    help="Show only lines of this level and above.",
)
@click.option("--grep", metavar="REGEX", help="Show only lines that match.")
@click.option(
    "--file", "from_file", is_flag=True, help="Read the log's file, which has older lines."
)
def logs(
    target: Target,
    follow: bool,
    lines: int,
    worker: int | None,
    level: str,
    grep: str | None,
    from_file: bool,
) -> None:
    """Show the server's log: about the last 1000 lines, which the arbiter keeps in memory."""
    try:
        pattern = re.compile(grep or "")
    except re.error as error:
        raise UsageError(f"--grep: {error}") from error
    wanted = LogFilter(worker, _LEVELS[_LEVELS.index(level) :], pattern)
    print_record = print_json if target.json else show.log_line
    with target.connect() as client:
        if not from_file:
            _show_ring(client, "logs", follow, lines, wanted.matches, print_record)
            return
        path = show.log_path(client.request("config"))
        wanted.set_workers(client.request("workers")["workers"])
    for record in tail_file(path, lines, wanted):
        print_record(record)
    if follow:
        for record in follow_file(path, wanted):
            print_record(record)


def _show_ring(
    client: ControlClient,
    name: str,
    follow: bool,
    lines: int,
    is_wanted: Callable[[dict[str, Any]], bool],
    print_note: Callable[[dict[str, Any]], None],
) -> None:
    """Print the last notes of one of the arbiter's rings and, with `follow`, new ones.

    name         the ring's command: "logs" or "events"
    follow       whether to go on with new notes
    lines        how many past notes to print
    is_wanted    whether to print a note
    print_note   prints a note
    """
    past: list[dict[str, Any]] = []
    client.request(name, {}, lambda note: past.append(note) if is_wanted(note) else None)
    for note in past[len(past) - min(lines, len(past)) :]:
        print_note(note)
    if not follow:
        return
    seen = _SeenFilter(past)

    def on_note(note: dict[str, Any]) -> None:
        if is_wanted(note) and seen.is_new(note):
            print_note(note)

    def on_lost(count: int) -> None:
        click.echo(f"servoctl: {count} lines were lost: this terminal is too slow", err=True)

    try:
        client.request(name, {"follow": True}, on_note, on_lost)
    except ConnectionEnded:
        click.echo("servoctl: the server has ended", err=True)


class _SeenFilter:
    """Removes notes that a first request has returned from those of a second one.

    seen   the notes of the first request
    """

    def __init__(self, seen: list[dict[str, Any]]) -> None:
        self._seen = list(seen)

    def is_new(self, note: dict[str, Any]) -> bool:
        """Whether a note was not among those seen. Each of these counts once."""
        if note in self._seen:
            self._seen.remove(note)
            return False
        return True


# --- controlling ------------------------------------------------------------------------------


@command("reload")
@click.option("--no-wait", is_flag=True, help="Don't wait for the reload to finish.")
def reload(target: Target, no_wait: bool) -> None:
    """Load new code and configuration without losing a request.

    Exits with 0 once all workers are replaced. If the new release can't serve, the old one keeps
    serving, and the command shows the reason and a traceback and exits with 1.
    """
    result = _execute(target, "reload", {"wait": not no_wait}, show.reload_step)
    if no_wait:
        show.done(target, result, "the reload has started")
    else:
        text = f"reloaded: {show.plural(result['replaced'])} replaced in {result['seconds']:.2f} s"
        show.done(target, result, f"{text}, generation {result['generation']}")


@command("scale", context_settings={"ignore_unknown_options": True})
@click.argument("to", metavar="N|+N|-N")
def scale(target: Target, to: str) -> None:
    """Run N workers, or N more or fewer than now."""
    if not re.fullmatch(r"[+-]?\d{1,6}", to, re.ASCII):
        raise UsageError(f"{to!r} is not a number of workers: use N, +N or -N")
    result = _execute(target, "scale", {"to": to})
    show.done(target, result, f"scaled from {result['before']} to {show.plural(result['workers'])}")


@command("restart-worker")
@click.argument("slot", type=int)
@click.option("--no-wait", is_flag=True, help="Don't wait for the worker to be replaced.")
def restart_worker(target: Target, slot: int, no_wait: bool) -> None:
    """Replace the worker in SLOT; it ends once its successor is ready."""
    result = _execute(target, "restart-worker", {"slot": slot, "wait": not no_wait}, show.step)
    if no_wait:
        show.done(target, result, f"worker {slot} (pid {result['pid']}) will be replaced")
    else:
        old, new = result["old_pid"], result["pid"]
        text = f"worker {slot} replaced: pid {old} -> {new}"
        show.done(target, result, result["trouble"] or text)


@command("send")
@click.argument("arguments", nargs=-1, required=True, metavar="[SLOT] JSON")
@click.option("--all", "to_all", is_flag=True, help="Send to all workers, in place of SLOT.")
@click.option("--topic", default="", help="The topic of the app's handlers that get the message.")
def send(target: Target, arguments: tuple[str, ...], to_all: bool, topic: str) -> None:
    """Send a message, a JSON value, to the app in one worker or in all.

    The app's `servo.cluster.on_message` handlers for the topic get it.
    """
    if len(arguments) != 2 - to_all:
        raise UsageError("give a slot and a message, or --all and a message")
    slot = "0" if to_all else arguments[0]
    if not re.fullmatch(r"\d{1,9}", slot, re.ASCII) or (int(slot) == 0) != to_all:
        raise UsageError(f"{slot!r} is not a worker's slot")
    try:
        json.loads(arguments[-1])
    except (ValueError, RecursionError) as error:
        raise UsageError(f"the message is not valid JSON: {error}") from error
    args = {"message": arguments[-1], "slot": int(slot), "topic": topic}
    result = _execute(target, "send", args)
    show.done(target, result, f"sent to {show.plural(result['workers'])}")


@command("stop")
@click.option("--now", is_flag=True, help="Abort the requests in flight.")
@click.option("--no-wait", is_flag=True, help="Don't wait for the server to end.")
def stop(target: Target, now: bool, no_wait: bool) -> None:
    """Stop the server after it has finished the requests in flight."""
    try:
        result = _execute(target, "stop", {"now": now, "wait": not no_wait}, show.step)
    except ConnectionEnded:
        result = {}  # the server has ended, as requested
    show.done(target, result, "the server is stopping" if no_wait else "the server has ended")


@servoctl.command("completion")
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print a script for the shell's completion: eval "$(servoctl completion bash)"."""
    kind = get_completion_class(shell)
    assert kind is not None
    click.echo(kind(servoctl, {}, "servoctl", "_SERVOCTL_COMPLETE").source())


def _execute(
    target: Target,
    name: str,
    args: dict[str, Any],
    on_step: Callable[[dict[str, Any]], None] | None = None,
) -> dict[str, Any]:
    """Send a command to the server and return its result.

    name      the command's name in the protocol
    args      its arguments
    on_step   prints a step of the answer as it arrives; with --json, steps are printed as JSON
    """

    def on_note(note: dict[str, Any]) -> None:
        if target.json:
            print_json(note)
        elif on_step is not None:
            on_step(note)

    with target.connect() as client:
        return client.request(name, args, on_note)


if __name__ == "__main__":
    sys.exit(main())
