"""Describes the effect of a signal on a worker, for `servoctl signal`."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING

from servo.arbiter.process_info import signal_name
from servo.workers.query_signals import REQUESTS_SIGNAL, STACK_SIGNAL

if TYPE_CHECKING:
    from servo.arbiter.core.worker_table import WorkerEntry

# Workers ignore these signals: they are commands to the arbiter, but a terminal sends some of them
# to all processes.
_FOR_THE_ARBITER = {
    signal.SIGHUP: "`servoctl reload` reloads the server",
    signal.SIGINT: "`servoctl stop --now` stops the server",
    signal.SIGQUIT: "`servoctl stop --now` stops the server",
    signal.SIGTTIN: "`servoctl scale +1` adds a worker",
    signal.SIGTTOU: "`servoctl scale -1` removes a worker",
    signal.SIGUSR2: "`servoctl upgrade` upgrades the server",
    signal.SIGWINCH: "sent to the arbiter, it drains all workers",
}
# Python ignores the first two, and the system ignores the others by default.
_IGNORED = (signal.SIGPIPE, signal.SIGXFSZ, signal.SIGCHLD, signal.SIGURG)


def signal_effect(worker: WorkerEntry, number: int, timeout_s: float) -> str:
    """Describe in a sentence the effect of a signal that the application does not handle.

    worker      the worker that gets the signal
    number      the signal's number
    timeout_s   the setting `timeout`: seconds without a heartbeat until the worker is killed; 0: no
                limit
    """
    # A draining worker gets no successor.
    successor = f"; a new worker takes slot {worker.slot}" if worker.live else ""
    if number == signal.SIGKILL:
        return f"it ends at once and its open requests are lost{successor}"
    if number == signal.SIGSTOP:
        limit = f", or until the arbiter kills it after {timeout_s:g} s" if timeout_s else ""
        return f"it stands still until `servoctl signal {worker.slot} CONT`{limit}"
    if number == signal.SIGCONT:
        return "it goes on if it was stopped"
    if number == signal.SIGABRT:
        return f"it writes its stacks to the log and ends; its open requests are lost{successor}"
    if number in (STACK_SIGNAL, REQUESTS_SIGNAL):
        return f"nothing happens; `servoctl stack {worker.slot}` shows what the worker does"
    name = signal_name(number)
    if number in _FOR_THE_ARBITER:
        return f"a worker ignores {name}; {_FOR_THE_ARBITER[signal.Signals(number)]}"
    if number in (signal.SIGTERM, signal.SIGUSR1) and worker.ready_at is None:
        return f"a worker ignores {name} until it is ready"
    if number == signal.SIGTERM:
        if not worker.live:
            return "it is ending already, so nothing changes"
        return f"its successor in slot {worker.slot} starts; then it finishes its requests and ends"
    if number == signal.SIGUSR1:
        return "it reopens its log files; `servoctl reopen` reopens those of all processes"
    if number in _IGNORED:
        return f"a process ignores {name} by default"
    return f"{name} ends it unless the app handles it{successor}"
