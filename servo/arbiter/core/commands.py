"""The commands of operators: signals to the arbiter, and requests over the control socket.

A request from `servoctl` gets an answer: a result, or the reason for a refusal. A signal gets no
answer, so a refusal is logged.

The supervisor imports this module to look commands up, and commands call the supervisor. The
protocol `Server` avoids an import cycle: it declares the part of the supervisor that commands use.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Protocol

from servo.arbiter.core import rollback
from servo.arbiter.core.actions import CommandAnswered, ReopenLogFiles, SendMessage
from servo.ipc.messages import ReopenLogs, ReplaceMe

if TYPE_CHECKING:
    from collections.abc import Callable

    from servo.arbiter.core.events import CommandReceived
    from servo.arbiter.core.stopping import Stopping
    from servo.arbiter.core.upgrade import Upgrade
    from servo.arbiter.core.worker_table import WorkerEntry
    from servo.ipc.messages import AppCommand


class Server(rollback.Server, Protocol):
    """The part of `Supervisor` that commands use. `Supervisor` has the docstrings."""

    last_generation: int
    paused: bool
    upgrade: Upgrade | None
    stopping: Stopping | None

    def request_reload(self, cause: str, now: float) -> None: ...

    def request_upgrade(self, cause: str, python: str, now: float) -> str: ...

    def stop(self, now: float, *, quick: bool, why: str) -> None: ...

    def kill_all(self, now: float) -> None: ...

    def pause(self, now: float) -> None: ...


# --- signals ----------------------------------------------------------------------------------


def stop_gracefully(server: Server, now: float) -> None:
    """TERM: finish the open requests, then stop. A second TERM cuts off the requests."""
    if server.stopping is None:
        server.stop(now, quick=False, why="SIGTERM")
    elif not server.stopping.quick:
        server.stop(now, quick=True, why="SIGTERM again")


def stop_quickly(server: Server, now: float) -> None:
    """INT, QUIT: cut off open requests, and stop. A second signal kills the workers."""
    if server.stopping is None or not server.stopping.quick:
        server.stop(now, quick=True, why="interrupted")
    else:
        server.queue.log("warning", "interrupted again: killing the workers")
        server.kill_all(now)


def reload(server: Server, now: float) -> None:
    """HUP: reload configuration and code without losing a request."""
    server.request_reload("SIGHUP", now)


def add_worker(server: Server, _now: float) -> None:
    """TTIN: add a worker, or with autoscaling raise the minimum. After WINCH, bring back all."""
    if server.stopping is not None:
        return
    if server.paused:
        server.paused = False
        server.queue.log("info", f"SIGTTIN: the {server.count.target} workers come back")
    elif server.count.low >= server.count.most:
        server.queue.log("warning", f"SIGTTIN: {_no_more(server)}")
    else:
        server.count.scale(server.count.low + 1, "SIGTTIN")


def remove_worker(server: Server, _now: float) -> None:
    """TTOU: remove a worker, or with autoscaling lower the minimum. The last worker stays."""
    if server.stopping is not None or server.paused:
        return
    if server.count.low <= 1:
        server.queue.log("warning", "SIGTTOU: the last worker stays")
    else:
        server.count.scale(server.count.low - 1, "SIGTTOU")


def reopen_logs(server: Server, _now: float) -> None:
    """USR1: reopen the log files, after logrotate has renamed them."""
    _reopen_logs(server, "SIGUSR1")


def upgrade(server: Server, now: float) -> None:
    """USR2: upgrade Servo and the interpreter; the process keeps its pid."""
    refusal = server.request_upgrade("SIGUSR2", "", now)
    if refusal:
        server.queue.log("warning", f"SIGUSR2: no upgrade: {refusal}")


def drain_all(server: Server, now: float) -> None:
    """WINCH: end all workers but keep the sockets; HUP or TTIN brings the workers back."""
    # A paused server that reloads is about to bring its workers back.
    if server.stopping is None and not (server.paused and server.reload is None):
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

# At most six digits: `int` takes quadratic time, so thousands of digits would block the arbiter.
_COUNT = re.compile(r"([+-]?)(\d{1,6})", re.ASCII)


class RefusedError(Exception):
    """Raised for a valid command that can't be carried out now. The text is the reason."""


def run_command(server: Server, event: CommandReceived, now: float) -> None:
    """Carry a command out and queue its answer.

    server  the supervisor
    event   the command
    now     the current time, in seconds

    The functions in `COMMANDS` get the server, the time, the command's argument, and who has sent
    it.
    """
    try:
        result = COMMANDS[event.command](server, now, event.argument, event.by)
    except RefusedError as refusal:
        server.queue.do(CommandAnswered(event.ticket, str(refusal)))
    else:
        server.queue.do(CommandAnswered(event.ticket, "", result))


def run_app_command(server: Server, worker: WorkerEntry, message: AppCommand, now: float) -> None:
    """Carry out a command of the application in a worker, if `cluster_control` allows it.

    server   the supervisor
    worker   the worker that has sent the command
    message  the command, which the worker may have forged
    now      the current time, in seconds
    """
    command = _OF_APPLICATIONS.get(message.command)
    if command is None or not server.policy.app_may_control:
        # The worker's own code refuses it, too, so this one does not run our code.
        server.queue.log("warning", f"{worker} has sent a command that it may not: ignored")
        return
    by = f"the application in worker {worker.slot}"
    try:
        command(server, now, message.argument[:_MAX_ARGUMENT], by)
    except RefusedError as refusal:
        server.queue.log("warning", f"{message.command}, asked for by {by}, is refused: {refusal}")


def run_reload(server: Server, now: float, _argument: object, by: str) -> dict[str, Any]:
    """Reload. The answer contains the number of the new generation."""
    _refuse_if_ending(server)
    if server.upgrade is not None:
        raise RefusedError("an upgrade is under way, and it ends with a reload")
    before = server.reload
    server.request_reload(by, now)
    assert server.reload is not None
    # If a reload was in progress, the requested one follows it.
    generation = server.reload.generation + (server.reload is before)
    return {"generation": generation, "workers": server.count.target}


def run_upgrade(server: Server, now: float, python: str, by: str) -> dict[str, Any]:
    """Upgrade Servo and the interpreter. The answer has the number of the next generation.

    python  the path of the new interpreter, or "" for the current one
    """
    generation = server.last_generation + 1
    refusal = server.request_upgrade(by, python, now)
    if refusal:
        raise RefusedError(refusal)
    return {"generation": generation, "workers": server.count.target}


def run_scale(server: Server, _now: float, to: str, by: str) -> dict[str, Any]:
    """Change the number of workers; with autoscaling, the minimum.

    to  the new number, such as "4", or a change, such as "+1" or "-2"
    """
    _refuse_if_ending(server)
    match = _COUNT.fullmatch(to.strip())
    if match is None:
        raise RefusedError(f"{to!r} is not a number of workers: N, +N or -N")
    before = server.count.low
    number = int(match[2])
    target = {"": number, "+": before + number, "-": before - number}[match[1]]
    if target < 1:
        raise RefusedError("at least one worker stays; `servoctl stop` ends the server")
    if target > server.count.most:
        raise RefusedError(_no_more(server))
    server.paused = False
    server.count.scale(target, by)
    if not server.policy.max_workers:
        return {"workers": target, "before": before}
    return {
        "workers": target,
        "before": before,
        "most": server.count.most,
        "now": server.count.target,
    }


def run_restart(server: Server, now: float, slot: int, by: str) -> dict[str, Any]:
    """Replace the worker in `slot`. The old worker ends after the new one is ready."""
    _refuse_if_ending(server)
    live = [worker for worker in server.workers.live() if worker.slot == slot]
    if not live:
        there = sorted({worker.slot for worker in server.workers.live()})
        known = ", ".join(map(str, there)) or "empty"
        raise RefusedError(f"no worker serves in slot {slot}; the slots are {known}")
    for worker in live:
        if worker.replace_reason is not None:
            raise RefusedError(f"{worker} is being replaced already")
    # During a reload two workers have the slot. The older one ends anyway.
    worker = max(live, key=lambda each: each.serial)
    server.lifecycle.request_replacement(worker, ReplaceMe("restarted", by), now)
    return {"slot": slot, "serial": worker.serial, "pid": worker.pid}


def run_rollback(server: Server, now: float, _argument: object, by: str) -> dict[str, Any]:
    """Give up the reload in progress; without one, return to the old generation (`bake_time`)."""
    _refuse_if_ending(server)
    refusal = rollback.roll_back(server, f"{by} rollback", now)
    if refusal:
        raise RefusedError(refusal)
    return {"generation": server.generation, "code": server.policy.preload}


def run_reopen(server: Server, _now: float, _argument: object, by: str) -> dict[str, Any]:
    """Reopen the log files, as on USR1. The driver adds the files to the answer."""
    return {"workers": _reopen_logs(server, by)}


def run_stop(server: Server, now: float, quick: bool, by: str) -> dict[str, Any]:
    """Stop the server.

    quick  whether to cut off open requests
    """
    stopping = server.stopping
    if stopping is None or (quick and not stopping.quick):
        server.stop(now, quick=quick, why=by)
    return {"workers": len(server.workers)}


def _reopen_logs(server: Server, cause: str) -> int:
    """Reopen the log files of all processes. Returns the number of workers that get the message."""
    server.queue.do(ReopenLogFiles())
    told = [worker for worker in server.workers if not worker.channel_lost]
    for worker in told:
        server.queue.do(SendMessage(worker.serial, ReopenLogs()))
    server.queue.log("info", f"{cause}: the log files are reopened")
    return len(told)


def _no_more(server: Server) -> str:
    if server.count.most < server.policy.most_workers:
        return f"autoscaling goes up to {server.count.most} workers (workers = MIN:MAX)"
    return f"there is no room for more than {server.count.most} workers (scoreboard_size)"


def _refuse_if_ending(server: Server) -> None:
    if server.ending:
        raise RefusedError("the server is stopping")


# The commands of `cluster.reload` and `cluster.scale`.
_OF_APPLICATIONS: dict[str, Callable[[Server, float, str, str], dict[str, Any]]] = {
    "reload": run_reload,
    "scale": run_scale,
}
# The longest argument of these commands. Python refuses to convert very long numbers.
_MAX_ARGUMENT = 20


COMMANDS: dict[str, Callable[[Server, float, Any, str], dict[str, Any]]] = {
    "reload": run_reload,
    "upgrade": run_upgrade,
    "scale": run_scale,
    "restart-worker": run_restart,
    "rollback": run_rollback,
    "reopen": run_reopen,
    "stop": run_stop,
}
