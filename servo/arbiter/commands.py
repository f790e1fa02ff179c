"""What an operator can ask for, whatever the way: a signal now, the control socket in time."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from servo.arbiter.supervisor import Supervisor

from servo.arbiter.events import ReopenLogFiles, SendMessage
from servo.ipc.messages import ReopenLogs


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
    supervisor.ask_reload("SIGHUP", now)


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
