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
import time
from collections import deque
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.shell_completion import get_completion_class

from servo import __version__
from servo.cli import profile as profiling
from servo.cli import report as bug_report
from servo.cli import show
from servo.cli.json_argument import check_json
from servo.cli.log_reader import LogFilter, follow_file, tail_file
from servo.cli.pools_view import show_pools
from servo.cli.target import (
    Target,
    all_servers,
    completed_slots,
    print_json,
    target_of,
    target_options,
)
from servo.cli.unit import made_by, make_all_units, make_unit, write_units
from servo.control.client import ConnectionEnded, ControlClient, ControlError, RequestFailed
from servo.control.protocol import REFUSED, ROLLED_BACK
from servo.control.signal_names import signal_names, signal_number
from servo.control.stacks import mark_idle
from servo.errors import ServoError, UsageError
from servo.settings.workdir import started_in
from servo.shared_memory.output_rings import LEVELS

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

EXIT_DONE = 0
EXIT_REFUSED = 1
EXIT_USAGE = 2

# The events that `servoctl upgrade` shows after the new program has started.
_UPGRADE_EVENTS = (
    "upgraded",
    "upgrade_failed",
    "reload_started",
    "reload_finished",
    "reload_rolled_back",
)
# After an upgrade, wait this many seconds for an answer: the new program first reads its
# configuration.
_TAKEOVER_S = 60.0
_RETRY_S = 0.05
# The end of an upgrade whose new program can't read the old one's state.
_STATE_LOST = "state_lost"

# How many past events or log lines to remember; a server keeps no more.
_MOST_KEPT = 1000


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
        # The reader of our output has closed the pipe (`servoctl logs | head`). Redirect stdout,
        # because Python would report the error again when it flushes stdout at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_REFUSED
    return code if isinstance(code, int) else EXIT_DONE


@click.group(
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    invoke_without_command=True,
)
@click.version_option(__version__, "-v", "--version", message="servoctl %(version)s")
@target_options
@click.option("--all", "every", is_flag=True, help="Run the command for each server in turn.")
@click.pass_context
def servoctl(context: click.Context, /, every: bool, **options: Any) -> None:
    """Inspect and control a running Servo.

    If several servers run, choose one with --name, --pid or --socket, or all with --all.
    """
    if every and context.invoked_subcommand in ("unit", "completion"):
        raise click.UsageError(f"--all has no effect on {context.invoked_subcommand}")
    context.obj = replace(target_of(options), every=every)
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
            # `list` and `monit` show all servers themselves.
            in_turn = target.every and name not in ("list", "monit")
            run_command = _run_for_all if in_turn else _run
            return run_command(target, function, options)

        return function

    return decorate


def _run(target: Target, function: Callable[..., int | None], options: dict[str, Any]) -> int:
    try:
        return function(target, **options) or EXIT_DONE
    except ServoError as error:
        _print_failure(target, error)
        return error.exit_code


def _run_for_all(
    target: Target, function: Callable[..., int | None], options: dict[str, Any]
) -> int:
    """Run a command for each server in turn, also after a failure. Returns the highest exit code.

    target     selects the servers
    function   the command
    options    its options
    """
    try:
        if options.get("follow"):
            raise UsageError("--all would follow only the first server")
        found = target.find_all()
    except ServoError as error:
        _print_failure(target, error)
        return error.exit_code
    codes: list[int] = []
    for instance in found:
        if target.json:
            print_json({"server": {"name": instance.name, "pid": instance.pid}})
        else:
            gap = "\n" if codes else ""
            click.echo(f"{gap}{instance.name} (pid {instance.pid}):")
        codes.append(_run(replace(target, instance=instance, every=False), function, options))
    return max(codes)


def _print_failure(target: Target, error: ServoError) -> None:
    kind = error.kind if isinstance(error, RequestFailed) else ""
    details = error.details if isinstance(error, RequestFailed) else ""
    if target.json:
        print_json({"ok": False, "error": str(error), "kind": kind, "details": details})
        return
    if details:
        click.echo(details.rstrip() + "\n", err=True)
    before = "rolled back: " if kind == "rolled back" else ""
    server = f"{target.instance.name}: " if target.instance is not None else ""
    click.echo(f"servoctl: error: {server}{before}{error}", err=True)


# --- inspecting -------------------------------------------------------------------------------


@command("list")
def list_servers(target: Target) -> None:
    """List all servers of this user on this machine; for root, those of all users."""
    rows = show.query_all(all_servers(), target.timeout_s)
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


@command("monit")
def monit(target: Target) -> int:
    """Show a server on the whole screen: its workers, events and log; ? shows the keys."""
    from servo.cli.monit import run  # imported here, to keep the start of other commands fast

    return run(target)


@command("pools")
def pools(target: Target) -> None:
    """Show each pool's processes, tasks and queue."""
    with target.connect() as client:
        result = client.request("pools")
    print_json(result) if target.json else show_pools(result)


@command("requests")
def requests(target: Target) -> None:
    """Show the requests that workers are serving and the tasks of pools, and for how long."""
    with target.connect() as client:
        result = client.request("requests")
    print_json(result) if target.json else show.requests(result)


@command("stack")
@click.argument("slot", type=int, shell_complete=completed_slots)
def stack(target: Target, slot: int) -> None:
    """Show the Python stacks and asyncio tasks of the worker in SLOT, without stopping it.

    Busy threads come first; the others are marked as idle.
    """
    with target.connect() as client:
        result = client.request("stack", {"slot": slot})
        mark_idle(result)
    print_json(result) if target.json else show.stack(result)


@command("profile")
@click.argument("slot", type=click.IntRange(min=1), shell_complete=completed_slots)
@click.option(
    "--seconds", type=click.IntRange(1, 3600), default=10, help="For how long to sample.  [10]"
)
@click.option(
    "--format",
    "form",
    type=click.Choice(list(profiling.SUFFIXES)),
    default=profiling.SVG,
    help="A flame graph, or a file for https://www.speedscope.app.  [svg]",
)
@click.option(
    "-o", "--output", type=click.Path(dir_okay=False), default="", help="The file to write."
)
def profile(target: Target, slot: int, seconds: int, form: str, output: str) -> None:
    """Sample the stacks of the worker in SLOT, and write where it spends its time.

    This uses py-spy if it is installed, or else the sampler of Python 3.15 and later.
    """
    with target.connect() as client:
        result = profiling.profile(client, slot, seconds, form, output)
    show.done(target, result, f"wrote {result['file']}")


@command("config")
@click.option("--changed", is_flag=True, help="Show only settings that have been given a value.")
def config(target: Target, changed: bool) -> None:
    """Show each setting's value and its source."""
    with target.connect() as client:
        result = client.request("config")
    if changed:
        # By the source: a value that equals the default may have been given, too.
        rows = [row for row in result["settings"] if row["source"] != "default"]
        result["settings"] = rows
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
@click.option(
    "--worker",
    type=int,
    metavar="SLOT",
    shell_complete=completed_slots,
    help="Show only this worker's lines.",
)
@click.option(
    "--level",
    type=click.Choice(LEVELS),
    default="debug",
    help="Show only lines of this level and above.",
)
@click.option("--grep", metavar="REGEX", help="Show only lines that match.")
@click.option(
    "--file", "from_file", is_flag=True, help="Read the log's file, which has older lines."
)
@click.option("--access", is_flag=True, help="Show the access log instead.")
def logs(
    target: Target,
    follow: bool,
    lines: int,
    worker: int | None,
    level: str,
    grep: str | None,
    from_file: bool,
    access: bool,
) -> None:
    """Show the server's log, and what the app prints and logs: about the last 1000 lines."""
    if access and from_file:
        raise UsageError("--file is for the error log; leave out --access or --file")
    try:
        pattern = re.compile(grep or "")
    except re.error as error:
        raise UsageError(f"--grep: {error}") from error
    wanted = LogFilter(worker, LEVELS[LEVELS.index(level) :], pattern)
    print_record = print_json if target.json else show.log_line
    with target.connect() as client:
        if not from_file:
            # Servers of older versions don't have the argument.
            args = {"access": True} if access else {}
            _show_ring(client, "logs", follow, lines, wanted.matches, print_record, args)
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
    args: dict[str, Any] | None = None,
) -> None:
    """Print the notes (events or log lines) that the arbiter keeps and, with `follow`, new ones.

    name         the command: "logs" or "events"
    follow       whether to continue with new notes
    lines        how many past notes to print
    is_wanted    whether to print a note
    print_note   prints a note
    args         further arguments of the command
    """
    args = args or {}
    past: list[dict[str, Any]] = []
    client.request(name, args, lambda note: past.append(note) if is_wanted(note) else None)
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

    def follow_to_the_end(client: ControlClient) -> ControlClient | None:
        """Follow until the connection ends. Returns a new one if the server still runs."""
        with client, suppress(ConnectionEnded):
            client.request(name, {"follow": True, **args}, on_note, on_lost)
            return None
        seen.start_again()
        successor = _reconnect(client.path, pid)
        if successor is None:
            click.echo("servoctl: the server has ended", err=True)
        return successor

    pid = client.server_pid
    following: ControlClient | None = client
    while following is not None:
        following = follow_to_the_end(following)


def _reconnect(path: str, pid: int) -> ControlClient | None:
    """Connect again to a server that has closed a connection. Returns None if it has ended.

    path   the path of its control socket
    pid    its process id. If it differs now, another process has taken over the socket

    An upgrade closes all connections, but keeps the process. If the new program can't read the
    state of the old one, it also makes a new socket, so there is none for a moment.
    """
    end = time.monotonic() + _TAKEOVER_S
    while True:
        try:
            successor = ControlClient(path, _TAKEOVER_S)
            break
        except ControlError:
            if time.monotonic() >= end or not _is_running(pid):
                return None
        time.sleep(_RETRY_S)
    if successor.server_pid == pid:
        return successor
    successor.close()
    return None


def _is_running(pid: int) -> bool:
    """Whether a process exists and is no zombie; False if the system can't tell."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state not in "XZ"


class _SeenFilter:
    """Selects the notes that were not already returned by an earlier request.

    seen   the notes of the first request
    """

    def __init__(self, seen: list[dict[str, Any]]) -> None:
        # The server keeps no more notes than this.
        self._seen = deque(seen, maxlen=_MOST_KEPT)
        self._left = list(seen)

    def start_again(self) -> None:
        """Prepare for a new request, which will return seen notes again."""
        self._left = list(self._seen)

    def is_new(self, note: dict[str, Any]) -> bool:
        """Whether a note is new. Equal notes are counted: after two seen ones, a third is new."""
        if note in self._left:
            self._left.remove(note)
            return False
        self._seen.append(note)
        return True


@command("report")
@click.option(
    "--lines",
    type=click.IntRange(min=1),
    default=50,
    help="How many events and log lines to include.  [50]",
)
def report(target: Target, lines: int) -> int:
    """Print all that a bug report needs, without secrets.

    Versions, system, limits, settings and their sources, workers, the last events and log lines, in
    Markdown. Read the text before you publish it.
    """
    result: dict[str, Any] = {}
    failure: ServoError | None = None
    try:
        with target.connect() as client:
            result = client.request("report", {"lines": lines})
            show.add_usage(result, client.server_pid)
    except ControlError as error:  # a report of a server that does not answer is useful, too
        failure = error
    problem = str(failure or "")
    if target.json:
        print_json(bug_report.as_json(result, problem))
    else:
        click.echo(bug_report.as_markdown(result, problem))
    return failure.exit_code if failure is not None else EXIT_DONE


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
        show.done(target, result, show.reloaded(result))


@command("upgrade")
@click.option(
    "--python",
    default="",
    metavar="PATH",
    help="The interpreter to continue with.  [the one that runs the server]",
)
@click.option("--no-wait", is_flag=True, help="Don't wait for the upgrade to finish.")
def upgrade(target: Target, python: str, no_wait: bool) -> None:
    """Upgrade Servo, or its Python, without losing a request.

    Install the new Servo first. A child process checks that it can start; if not, nothing changes.
    The server keeps its pid and its sockets, and all workers are replaced.
    """
    args = {"python": os.path.abspath(python) if python else "", "wait": not no_wait}
    generation = -1

    def on_note(note: dict[str, Any]) -> None:
        nonlocal generation
        generation = max(generation, note.get("generation", -1))
        print_json(note) if target.json else show.upgrade_step(note)

    with target.connect() as client:
        path, pid = client.path, client.server_pid
        try:
            result = client.request("upgrade", args, on_note)
        except ConnectionEnded:
            if generation < 0:
                raise
        else:
            show.done(target, result, "the upgrade has started")
            return
    # The new program has closed the connection.
    end = _follow_upgrade(path, pid, generation, on_note)
    if end["name"] == "upgrade_failed":
        raise RequestFailed(REFUSED, end["reason"], end.get("details", ""))
    if end["name"] == "reload_rolled_back":
        text = f"{end['reason']}; the new program runs, and the old workers still serve"
        raise RequestFailed(ROLLED_BACK, text, end.get("details", ""))
    lost = "; the counters start at 0, because the new program can't read the old one's state"
    with ControlClient(path, target.timeout_s) as client:
        status = client.request("status")
    result = {name: status[name] for name in ("version", "python", "pid", "generation")}
    text = f"runs Servo {status['version']} on Python {status['python']}"
    text += lost if end["name"] == _STATE_LOST else ""
    show.done(target, result, f"upgraded: pid {status['pid']} {text}")


class _Found(Exception):  # noqa: N818
    """Raised with an event to end a request for events."""


def _follow_upgrade(
    path: str, pid: int, generation: int, on_note: Callable[[dict[str, Any]], None]
) -> dict[str, Any]:
    """Show the new program's events up to the end of its reload; return that last event.

    path         the path of the server's control socket
    pid          the server's process id
    generation   the number of the generation that the reload makes
    on_note      shows an event

    If the new program can't read the old one's state, it has no earlier events, and makes no
    reload. Then wait until its workers are ready, and return an event named _STATE_LOST.
    """
    while True:
        client = _reconnect(path, pid)
        if client is None:
            raise ConnectionEnded("the server has ended")
        with client, suppress(ConnectionEnded):  # this connection was for the old program
            past: list[dict[str, Any]] = []
            client.request("events", {}, past.append)
            starts = [each for each in past if each["name"] == "upgrade_started"]
            if any(each.get("generation") == generation for each in starts):
                return _follow_reload(client, generation, on_note)
            status = client.request("status")
            if status["workers"]["ready"] >= status["workers"]["target"]:
                return {"name": _STATE_LOST}
        time.sleep(_RETRY_S)


def _follow_reload(
    client: ControlClient, generation: int, on_note: Callable[[dict[str, Any]], None]
) -> dict[str, Any]:
    """Show the events of an upgrade up to the end of its reload; return that last event."""
    has_begun = False

    def on_event(event: dict[str, Any]) -> None:
        nonlocal has_begun
        # The server also keeps the events of earlier upgrades, with lower generations.
        name = event["name"]
        if name == "upgrade_started" and event.get("generation") == generation:
            has_begun = True
        elif has_begun and name in _UPGRADE_EVENTS:
            on_note(event)
            # If the event has no generation, the workers are paused, and no reload follows.
            is_paused = name == "upgraded" and "generation" not in event
            if is_paused or name in ("reload_finished", "reload_rolled_back", "upgrade_failed"):
                raise _Found(event)

    try:
        client.request("events", {"follow": True}, on_event)
    except _Found as found:
        event: dict[str, Any] = found.args[0]
        return event
    raise ConnectionEnded("the server has closed the connection")


@command("scale", context_settings={"ignore_unknown_options": True})
@click.argument("to", metavar="N|+N|-N")
def scale(target: Target, to: str) -> None:
    """Run N workers, or N more or fewer than now."""
    if not re.fullmatch(r"[+-]?\d{1,6}", to, re.ASCII):
        raise UsageError(f"{to!r} is not a number of workers: use N, +N or -N")
    result = _execute(target, "scale", {"to": to})
    show.done(target, result, show.scaled(result))


@command("restart-worker")
@click.argument("slot", type=int, shell_complete=completed_slots)
@click.option("--no-wait", is_flag=True, help="Don't wait for the worker to be replaced.")
def restart_worker(target: Target, slot: int, no_wait: bool) -> None:
    """Replace the worker in SLOT. It ends when the new worker is ready."""
    result = _execute(target, "restart-worker", {"slot": slot, "wait": not no_wait}, show.step)
    if no_wait:
        show.done(target, result, f"worker {slot} (pid {result['pid']}) will be replaced")
    else:
        show.done(target, result, show.restarted(result))


@command("rollback")
def rollback(target: Target) -> None:
    """Give up a reload in progress, or return to the previous release (see bake_time)."""
    result = _execute(target, "rollback", {})
    text = f"rolled back to generation {result['generation']}"
    if not result["code"]:
        text += "; new workers import the code that is on disk, because preload_app is off"
    show.done(target, result, text)


@command("reopen")
def reopen(target: Target) -> None:
    """Reopen the log files, after logrotate has renamed them."""
    result = _execute(target, "reopen", {})
    files = result["files"]
    text = "no log has a file: all go to standard output and error"
    show.done(target, result, "\n".join(f"reopened {path}" for path in files) or text)


def _checked_signal(context: click.Context, parameter: click.Parameter, value: str) -> str:
    try:
        signal_number(value)
    except ValueError as error:
        raise click.BadParameter(str(error), context, parameter) from error
    return value


def _completed_signal(_context: click.Context, _parameter: click.Parameter, word: str) -> list[str]:
    word = word.upper()
    prefix = "SIG" if word.startswith("SIG") else ""
    return [prefix + name for name in signal_names() if (prefix + name).startswith(word)]


# As for `kill`, the signal may begin with a dash: `-9`, `-TERM`.
@command("signal", context_settings={"ignore_unknown_options": True})
@click.argument("slot", type=int, shell_complete=completed_slots)
@click.argument(
    "signal_name", metavar="SIGNAL", callback=_checked_signal, shell_complete=_completed_signal
)
def send_signal(target: Target, slot: int, signal_name: str) -> None:
    """Send a SIGNAL, a name or a number, to the worker in SLOT, and show what it will do.

    Other workers are not affected. To replace a worker without losing a request, use
    restart-worker.
    """
    result = _execute(target, "signal", {"slot": slot, "name": signal_name})
    text = f"sent {result['signal']} to worker {slot} (pid {result['pid']}): {result['effect']}"
    show.done(target, result, text)


@command("send")
@click.argument("arguments", nargs=-1, required=True, metavar="[SLOT] JSON")
@click.option("--all", "to_all", is_flag=True, help="Send to all workers instead of one SLOT.")
@click.option("--topic", default="", help="The topic that selects the app's handlers.")
def send(target: Target, arguments: tuple[str, ...], to_all: bool, topic: str) -> None:
    """Send a message, a JSON value, to the app in one worker or in all.

    The app's `servo.cluster.on_message` handlers for the topic get the message.
    """
    if len(arguments) != 2 - to_all:
        raise UsageError("give a slot and a message, or --all and a message")
    slot = "0" if to_all else arguments[0]
    if not re.fullmatch(r"\d{1,9}", slot, re.ASCII) or (int(slot) == 0) != to_all:
        raise UsageError(f"{slot!r} is not a worker's slot")
    check_json(arguments[-1])
    args = {"message": arguments[-1], "slot": int(slot), "topic": topic}
    result = _execute(target, "send", args)
    show.done(target, result, f"sent to {show.plural(result['workers'])}")


@command("call")
@click.argument("slot", type=click.IntRange(min=1), shell_complete=completed_slots)
@click.argument("topic")
@click.argument("message", metavar="JSON")
@click.option(
    "--wait",
    "wait_s",
    type=click.FloatRange(min=0.001, max=86_400),
    default=5.0,
    metavar="SECONDS",
    help="How long to wait for the handler.  [5]",
)
def call(target: Target, slot: int, topic: str, message: str, wait_s: float) -> None:
    """Send a request, a JSON value, to the app in the worker in SLOT, and print the answer as JSON.

    The app's first `servo.cluster.on_message` handler for TOPIC returns the answer. For messages
    without a topic, give "".
    """
    check_json(message)
    args = {"slot": slot, "topic": topic, "message": message, "timeout_ms": round(wait_s * 1000)}
    result = _execute(target, "call", args)
    try:
        result["answer"] = json.loads(result["answer"])
    except (ValueError, RecursionError) as error:
        raise ControlError(f"can't decode the answer of worker {slot}: {error}") from error
    show.done(target, result, show.json_text(result["answer"]))


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


# The server's own options follow its app, so they need no `--` in front.
@servoctl.command("unit", context_settings={"allow_interspersed_args": False})
@click.argument("words", nargs=-1, type=click.UNPROCESSED, metavar="[--] APP [OPTIONS OF SERVO]")
@click.option("-n", "--name", default="", help="The name of the units.  [the app's]")
@click.option(
    "--all",
    "source",
    type=click.Path(exists=True, path_type=Path),
    metavar="PATH",
    help="A unit for each app of a TOML file with [apps.NAME], or for each TOML file of a "
    "directory.",
)
@click.option("--user", "for_user", is_flag=True, help="For a user's own systemd.")
@click.option("--socket", "with_socket", is_flag=True, help="Have systemd open the sockets.")
@click.option("--hardened", is_flag=True, help="Remove all rights that the server does not need.")
@click.option("--run-as", default="", metavar="USER", help="The user that the service runs as.")
@click.option(
    "--notify-reload/--no-notify-reload",
    default=None,
    help="Whether systemd is 253 or later.  [as here]",
)
@click.option(
    "-o",
    "--output",
    type=click.Path(file_okay=False, exists=True),
    metavar="DIRECTORY",
    help="Write the files there.",
)
def unit(words: tuple[str, ...], output: str | None, source: Path | None, **options: Any) -> int:
    """Print the systemd units for a server's command line.

    Run this in the server's working directory:

    servoctl unit --name myapp --socket --hardened -- myapp:app -w auto

    servoctl unit --all apps.toml -o /etc/systemd/system
    """
    outer = click.get_current_context().find_object(Target) or Target()
    options["name"] = options["name"] or outer.name or ""
    try:
        start = _current_directory()
        if source is not None:
            units = make_all_units(source, words, start=start, **options)
            made = made_by(words, {**options, "source": source})
        else:
            units = [make_unit(words, start=start, **options)]
            made = made_by(words, options)
        files = {name: text for each in units for name, text in each.files().items()}
        write_units(files, made, output, for_user=options["for_user"])
    except ServoError as error:
        _print_failure(outer, error)
        return error.exit_code
    return EXIT_DONE


def _current_directory() -> Path:
    try:
        return started_in(os.environ)
    except FileNotFoundError as error:
        raise UsageError("the current directory no longer exists") from error


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
