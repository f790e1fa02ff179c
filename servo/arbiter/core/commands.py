"""The commands of operators: signals to the arbiter, and requests over the control socket.

A signal gets no answer, so a command that can't be carried out is mentioned in the log. A request
from `servoctl` is answered: with a result, or with the reason why it was refused.

Commands call the supervisor, and the supervisor looks commands up in the tables of this module. To
keep the imports free of a cycle, `Server` states the part of the supervisor that commands use.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Protocol

from servo.arbiter.core.actions import CommandAnswered, ReopenLogFiles, SendMessage
from servo.ipc.messages import ReopenLogs, ReplaceMe

if TYPE_CHECKING:
    from collections.abc import Callable

    from servo.arbiter.core.action_queue import ActionQueue
    from servo.arbiter.core.events import CommandReceived
    from servo.arbiter.core.policy import Policy
    from servo.arbiter.core.reload import Reload
    from servo.arbiter.core.stopping import Stopping
    from servo.arbiter.core.worker_lifecycle import WorkerLifecycle
    from servo.arbiter.core.worker_table import WorkerTable


class Server(Protocol):
    """The part of `Supervisor` that commands use; its docstrings are there."""

    target: int
    paused: bool
    reload: Reload | None
    stopping: Stopping | None
    workers: WorkerTable
    lifecycle: WorkerLifecycle
    queue: ActionQueue

    @property
    def policy(self) -> Policy: ...

    @property
    def ending(self) -> bool: ...

    def request_reload(self, cause: str, now: float) -> None: ...

    def scale(self, target: int, why: str) -> None: ...

    def stop(self, now: float, *, quick: bool, why: str) -> None: ...

    def kill_all(self, now: float) -> None: ...

    def pause(self, now: float) -> None: ...


# --- signals ----------------------------------------------------------------------------------


def stop_gracefully(server: Server, now: float) -> None:
    """TERM: stop after the open requests; a second one cuts them."""
    if server.stopping is None:
        server.stop(now, quick=False, why="SIGTERM")
    elif not server.stopping.quick:
        server.stop(now, quick=True, why="SIGTERM again")


def stop_quickly(server: Server, now: float) -> None:
    """INT, QUIT: cut open requests and stop; a second one kills the workers."""
    if server.stopping is None or not server.stopping.quick:
        server.stop(now, quick=True, why="interrupted")
    else:
        server.queue.log("warning", "interrupted again: killing the workers")
        server.kill_all(now)


def reload(server: Server, now: float) -> None:
    """HUP: reload configuration and code without a lost request."""
    server.request_reload("SIGHUP", now)


def add_worker(server: Server, _now: float) -> None:
    """TTIN: one more worker; after WINCH, bring back all of them."""
    if server.stopping is not None:
        return
    most = server.policy.most_workers
    if server.paused:
        server.paused = False
        server.queue.log("info", f"SIGTTIN: the {server.target} workers come back")
    elif server.target >= most:
        text = f"SIGTTIN: there is no room for more than {most} workers (scoreboard_size)"
        server.queue.log("warning", text)
    else:
        server.scale(server.target + 1, "SIGTTIN")


def remove_worker(server: Server, _now: float) -> None:
    """TTOU: one worker less; the last one stays."""
    if server.stopping is not None or server.paused:
        return
    if server.target <= 1:
        server.queue.log("warning", "SIGTTOU: the last worker stays")
    else:
        server.scale(server.target - 1, "SIGTTOU")


def reopen_logs(server: Server, _now: float) -> None:
    """USR1: reopen the log files, after logrotate has renamed them."""
    server.queue.do(ReopenLogFiles())
    for worker in server.workers:
        if not worker.channel_lost:
            server.queue.do(SendMessage(worker.serial, ReopenLogs()))
    server.queue.log("info", "SIGUSR1: the log files are reopened")


def upgrade(server: Server, _now: float) -> None:
    """USR2: reserved for replacing Servo itself under the same pid."""
    server.queue.log("warning", "SIGUSR2: upgrade is not available yet; nothing was done")


def drain_all(server: Server, now: float) -> None:
    """WINCH: end all workers but keep the sockets; HUP or TTIN brings the workers back."""
    if server.stopping is None and not server.paused:
        server.queue.log("info", "SIGWINCH: all workers drain; the sockets stay open")
        server.pause(now)


SIGNALS: dict[str, Callable[[Server, float], None]] = {
    "SIGTERM": stop_gracefully,
    "SIGINT": stop_quickly,
    "SIGQUIT": stop_quickly,
    "SIGHUP": reload,
    "SIGTTIN": add_worker,
    "SIGTTOU": remove_worker,
    "SIGUSR1": reopen_logs,
    "SIGUSR2": upgrade,
    "SIGWINCH": drain_all,
}


# --- requests over the control socket ---------------------------------------------------------

# The log names this as the cause of a command that came over the control socket.
OPERATOR = "servoctl"

# At most six digits: `int` takes quadratic time for a text of thousands.
_COUNT = re.compile(r"([+-]?)(\d{1,6})", re.ASCII)


class RefusedError(Exception):
    """The command is valid but can't be carried out now; the text says why."""


def run_command(server: Server, event: CommandReceived, now: float) -> None:
    """Carry a command out and queue its answer.

    server  the supervisor
    event   the command
    now     the current time, in seconds
    """
    try:
        result = COMMANDS[event.command](server, now, event.argument)
    except RefusedError as refusal:
        server.queue.do(CommandAnswered(event.ticket, str(refusal)))
    else:
        server.queue.do(CommandAnswered(event.ticket, "", result))


def run_reload(server: Server, now: float, _argument: object) -> dict[str, Any]:
    """Reload. The answer names the generation that will come with this reload."""
    _refuse_if_ending(server)
    follows = server.reload is not None
    server.request_reload(OPERATOR, now)
    assert server.reload is not None
    generation = server.reload.generation + follows
    return {"generation": generation, "workers": server.target}


def run_scale(server: Server, _now: float, to: str) -> dict[str, Any]:
    """Change the number of workers: to "4", or by "+1" or "-2"."""
    _refuse_if_ending(server)
    match = _COUNT.fullmatch(to.strip())
    if match is None:
        raise RefusedError(f"{to!r} is not a number of workers: N, +N or -N")
    before = server.target
    number = int(match[2])
    target = {"": number, "+": before + number, "-": before - number}[match[1]]
    most = server.policy.most_workers
    if target < 1:
        raise RefusedError("at least one worker stays; `servoctl stop` ends the server")
    if target > most:
        raise RefusedError(f"there is no room for more than {most} workers (scoreboard_size)")
    server.paused = False
    server.scale(target, OPERATOR)
    return {"workers": target, "before": before}


def run_restart(server: Server, now: float, slot: int) -> dict[str, Any]:
    """Replace the worker in `slot`; the new worker gets ready before the old one ends."""
    _refuse_if_ending(server)
    live = [worker for worker in server.workers.live() if worker.slot == slot]
    if not live:
        there = sorted({worker.slot for worker in server.workers.live()})
        known = ", ".join(map(str, there)) or "none"
        raise RefusedError(f"no worker serves in slot {slot}; there is {known}")
    for worker in live:
        if worker.replace_reason is not None:
            raise RefusedError(f"{worker} is being replaced already")
    # During a reload two workers have the slot; the older one ends anyway.
    worker = max(live, key=lambda each: each.serial)
    server.lifecycle.request_replacement(worker, ReplaceMe("restarted"), now)
    return {"slot": slot, "serial": worker.serial, "pid": worker.pid}


def run_stop(server: Server, now: float, quick: bool) -> dict[str, Any]:
    """Stop the server; `quick` cuts open requests."""
    stopping = server.stopping
    if stopping is None or (quick and not stopping.quick):
        server.stop(now, quick=quick, why=OPERATOR)
    return {"workers": len(server.workers)}


def _refuse_if_ending(server: Server) -> None:
    if server.ending:
        raise RefusedError("the server is stopping")


COMMANDS: dict[str, Callable[[Server, float, Any], dict[str, Any]]] = {
    "reload": run_reload,
    "scale": run_scale,
    "restart-worker": run_restart,
    "stop": run_stop,
}
