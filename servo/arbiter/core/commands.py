"""What an operator can ask for, by a signal or over the control socket."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

    from servo.arbiter.core.events import CommandReceived
    from servo.arbiter.core.supervisor import Supervisor

from servo.arbiter.core.actions import CommandAnswered, ReopenLogFiles, SendMessage
from servo.arbiter.core.reload import ask_reload
from servo.ipc.messages import ReopenLogs, ReplaceMe


def stop_gracefully(supervisor: Supervisor, now: float) -> None:
    """TERM: finish what is under way. A second one is an impatient operator's."""
    if supervisor.stopping is None:
        supervisor.stop(now, quick=False, why="SIGTERM")
    elif not supervisor.stopping.quick:
        supervisor.stop(now, quick=True, why="SIGTERM again")


def stop_quickly(supervisor: Supervisor, now: float) -> None:
    """INT, QUIT: end soon; asked again, end at once."""
    if supervisor.stopping is None or not supervisor.stopping.quick:
        supervisor.stop(now, quick=True, why="interrupted")
    else:
        supervisor.crew.log("warning", "interrupted again: killing what is left")
        supervisor.kill_all(now)


def reload(supervisor: Supervisor, now: float) -> None:
    """HUP: new configuration, new code, no request lost."""
    ask_reload(supervisor, "SIGHUP", now)


def add_worker(supervisor: Supervisor, _now: float) -> None:
    """TTIN: one more; after WINCH all of them again."""
    if supervisor.stopping is not None:
        return
    most = supervisor.policy.most_workers
    if supervisor.paused:
        supervisor.paused = False
        supervisor.crew.log("info", f"SIGTTIN: the {supervisor.target} workers come back")
    elif supervisor.target >= most:
        text = f"SIGTTIN: there is no room for more than {most} workers (scoreboard_size)"
        supervisor.crew.log("warning", text)
    else:
        supervisor.scale(supervisor.target + 1, "SIGTTIN")


def remove_worker(supervisor: Supervisor, _now: float) -> None:
    """TTOU: one less, down to one."""
    if supervisor.stopping is not None or supervisor.paused:
        return
    if supervisor.target <= 1:
        supervisor.crew.log("warning", "SIGTTOU: the last worker stays")
    else:
        supervisor.scale(supervisor.target - 1, "SIGTTOU")


def reopen_logs(supervisor: Supervisor, _now: float) -> None:
    """USR1: after logrotate has moved the files away."""
    supervisor.crew.do(ReopenLogFiles())
    for handle in supervisor.pool:
        if not handle.deaf:
            supervisor.crew.do(SendMessage(handle.serial, ReopenLogs()))
    supervisor.crew.log("info", "SIGUSR1: the log files are reopened")


def upgrade(supervisor: Supervisor, _now: float) -> None:
    """USR2: a new Servo under the same pid."""
    supervisor.crew.log("warning", "SIGUSR2: upgrade is not available yet; nothing was done")


def drain_all(supervisor: Supervisor, now: float) -> None:
    """WINCH: no workers, but the sockets stay; HUP or TTIN brings the workers back."""
    if supervisor.stopping is None and not supervisor.paused:
        supervisor.crew.log("info", "SIGWINCH: all workers drain; the sockets stay open")
        supervisor.pause(now)


SIGNALS: dict[str, Callable[[Supervisor, float], None]] = {
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


# --- over the control socket ------------------------------------------------------------------


class Refusal(Exception):  # noqa: N818
    """A command is understood and can't be followed now; the text says why."""


def on_command(supervisor: Supervisor, event: CommandReceived, now: float) -> None:
    """Follow a command, and answer what was done or why nothing was."""
    try:
        result = COMMANDS[event.command](supervisor, now, event.argument)
    except Refusal as refusal:
        supervisor.crew.do(CommandAnswered(event.ticket, str(refusal)))
    else:
        supervisor.crew.do(CommandAnswered(event.ticket, "", result))


def asked_to_reload(supervisor: Supervisor, now: float, _argument: object) -> dict[str, Any]:
    """Reload; the answer is the generation that this reload brings."""
    _refuse_if_stopping(supervisor)
    waits = supervisor.reload is not None
    ask_reload(supervisor, OPERATOR, now)
    assert supervisor.reload is not None
    generation = supervisor.reload.generation + waits
    return {"generation": generation, "workers": supervisor.target}


def asked_to_scale(supervisor: Supervisor, _now: float, to: str) -> dict[str, Any]:
    """Scale to "4", or by "+1" or "-2"."""
    _refuse_if_stopping(supervisor)
    match = _COUNT.fullmatch(to.strip())
    if match is None:
        raise Refusal(f"{to!r} is no number of workers: N, +N or -N")
    before = supervisor.target
    number = int(match[2])
    target = {"": number, "+": before + number, "-": before - number}[match[1]]
    most = supervisor.policy.most_workers
    if target < 1:
        raise Refusal("at least one worker stays; `servoctl stop` ends the server")
    if target > most:
        raise Refusal(f"there is no room for more than {most} workers (scoreboard_size)")
    supervisor.paused = False
    supervisor.scale(target, OPERATOR)
    return {"workers": target, "before": before}


def asked_to_restart(supervisor: Supervisor, now: float, slot: int) -> dict[str, Any]:
    """Replace the worker of a slot: its successor first."""
    _refuse_if_stopping(supervisor)
    live = [handle for handle in supervisor.pool.live() if handle.slot == slot]
    if not live:
        there = sorted({handle.slot for handle in supervisor.pool.live()})
        known = ", ".join(map(str, there)) or "none"
        raise Refusal(f"no worker serves in slot {slot}; there is {known}")
    for handle in live:
        if handle.wish is not None:
            raise Refusal(f"{handle} is being replaced already")
    # During a reload two carry the slot: the newer one is there to stay.
    handle = max(live, key=lambda each: each.serial)
    supervisor.crew.wishes(handle, ReplaceMe("restarted"), now)
    return {"slot": slot, "serial": handle.serial, "pid": handle.pid}


def asked_to_stop(supervisor: Supervisor, now: float, quick: bool) -> dict[str, Any]:
    """End the server."""
    stopping = supervisor.stopping
    if stopping is None or (quick and not stopping.quick):
        supervisor.stop(now, quick=quick, why=OPERATOR)
    return {"workers": len(supervisor.pool)}


def _refuse_if_stopping(supervisor: Supervisor) -> None:
    if supervisor.ending:
        raise Refusal("the server is stopping")


OPERATOR = "servoctl"
# The bound keeps `int` from a number of a thousand digits.
_COUNT = re.compile(r"([+-]?)(\d{1,6})", re.ASCII)

COMMANDS: dict[str, Callable[[Supervisor, float, Any], dict[str, Any]]] = {
    "reload": asked_to_reload,
    "scale": asked_to_scale,
    "restart-worker": asked_to_restart,
    "stop": asked_to_stop,
}
