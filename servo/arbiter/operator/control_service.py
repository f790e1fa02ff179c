"""The arbiter's side of the control socket: it answers what `servoctl` asks.

A request that only looks (`status`, `workers`, `logs`) is answered at once. A request that changes
something becomes an event for the supervisor, and its answer follows the supervisor's decision. If
the caller waits for the end of a reload, say, lifecycle events are turned into notes for it until
that end. Everything runs in the arbiter's loop, and nothing here waits.
"""

from __future__ import annotations

import json
import logging
import os
import time
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

from servo.arbiter.core import actions, events
from servo.arbiter.core.worker_table import WorkerState
from servo.arbiter.operator import status
from servo.arbiter.operator.feed import Feed
from servo.arbiter.operator.progress import (
    Progress,
    ReloadProgress,
    RestartProgress,
    Step,
    StopProgress,
)
from servo.arbiter.operator.worker_queries import REQUESTS, STACK, WorkerQueries
from servo.control import protocol
from servo.control.endpoint import Endpoint, check_path
from servo.control.instances import InstanceError
from servo.control.server import FULL, ControlServer
from servo.errors import ConfigError
from servo.ipc.messages import Report
from servo.logs import error_log as log_module
from servo.settings.sections.control import allowed_user

if TYPE_CHECKING:
    import select
    from collections.abc import Callable, Iterator, Sequence

    from servo.arbiter.core.supervisor import Supervisor
    from servo.arbiter.core.worker_table import WorkerEntry
    from servo.arbiter.message_router import MessageRouter
    from servo.arbiter.operator.lifecycle_events import LifecycleEvent
    from servo.arbiter.processes.workers import WorkerProcesses
    from servo.control.server import Caller
    from servo.ipc.messages import LogRecords
    from servo.net.listeners import Listener
    from servo.settings.sources import Settings
    from servo.shared_memory.scoreboard import Scoreboard

log = logging.getLogger("servo.error")

# `servoctl events` and `servoctl logs` show this many past events and log lines.
MAX_EVENTS = 1000
MAX_RECORDS = 1000
# ... whose texts have this many characters in all.
MAX_CHARACTERS = 256 << 10

_SECOND = 1.0
# If `control_allow` names users, anybody may connect: the kernel reports who a caller is, and those
# who are not named are refused.
_SHARED_MODE = 0o666


class ControlledServer(Protocol):
    """The parts of the arbiter that operators see and control."""

    supervisor: Supervisor
    workers: WorkerProcesses
    router: MessageRouter
    scoreboard: Scoreboard

    @property
    def settings(self) -> Settings:
        """The current generation's."""
        ...

    @property
    def listeners(self) -> Sequence[Listener]:
        """The listening sockets."""
        ...

    def enqueue(self, event: events.Event) -> None:
        """Put an event into the arbiter's inbox."""
        ...


class ControlSocket:
    """The control socket from the start of the server to its end, and the log lines of that time.

    It is bound early, while the command's terminal can still show an error. It keeps the arbiter's
    log lines from then on.

    settings   `control_socket`, `control_socket_mode`, `control_allow`

    endpoint   the socket; None if the settings turn it off
    allowed    the commands of each user in `control_allow`, by uid
    records    log lines

    Raises ConfigError.
    """

    def __init__(self, settings: Settings) -> None:
        self.endpoint: Endpoint | None = None
        self.allowed: dict[int, str] = {}
        self.records = Feed(MAX_RECORDS, MAX_CHARACTERS)
        if settings.control_socket_disable:
            return
        self.allowed = dict(map(allowed_user, settings.control_allow))
        log_module.set_tap(self._on_record)
        mode = settings.control_socket_mode
        if self.allowed and settings.source("control_socket_mode") == "default":
            mode = _SHARED_MODE
        with _named_in_errors(settings):
            self.endpoint = Endpoint(settings.control_socket, mode, shared=bool(self.allowed))

    def close(self) -> None:
        """Close the socket, and remove its file."""
        log_module.set_tap(None)
        if self.endpoint is not None:
            self.endpoint.close()

    def close_in_child(self) -> None:
        """Close this process's copy."""
        if self.endpoint is not None:
            self.endpoint.close_in_child()

    def _on_record(self, record: logging.LogRecord) -> None:
        text = log_module.message_of(record)
        values = {"time": record.created, "level": record.levelname.lower(), "pid": record.process}
        self.records.append({**values, "text": text})


def check_control_socket(settings: Settings) -> None:
    """Raise ConfigError if no socket can be at the path that is set. Makes nothing."""
    if settings.control_socket and not settings.control_socket_disable:
        with _named_in_errors(settings):
            check_path(settings.control_socket)


class ControlService:
    """Answers the control socket's callers. It keeps the last lifecycle events for them.

    arbiter   the server that they see and control
    socket    where they connect
    epoll     the arbiter's
    """

    def __init__(
        self, arbiter: ControlledServer, socket: ControlSocket, epoll: select.epoll
    ) -> None:
        self._arbiter = arbiter
        self._endpoint = socket.endpoint
        self._allowed = socket.allowed
        self._records = socket.records
        self._events = Feed(MAX_EVENTS, MAX_CHARACTERS)
        self._queries = WorkerQueries(arbiter.workers)
        self._tickets: dict[int, tuple[Caller, Callable[[dict[str, Any]], Progress] | None]] = {}
        self._last_ticket = 0
        self._watches: list[tuple[Caller, Progress]] = []
        self._rates = status.Rates()
        self._next_second = 0.0
        self._is_lost = False
        self._started_at = time.time()
        self._last_exits: dict[int, LifecycleEvent] = {}
        self._last_reload: LifecycleEvent | None = None
        self._server = self._listen(epoll)

    def _listen(self, epoll: select.epoll) -> ControlServer | None:
        """Start to listen. If no path was set and none can be had, the server goes without."""
        if self._endpoint is None:
            return None
        try:
            sock = self._endpoint.announce(status.name_of(self._arbiter.settings), os.environ)
        except InstanceError as error:
            log.warning(
                "There is no control socket, so servoctl can't reach this server: %s", error
            )
            return None
        log.info("Control socket at %s", self._endpoint.path)
        return ControlServer(sock, epoll, self._access, self._handle, time.monotonic)

    def close(self) -> None:
        """Answer the callers that wait for the server's end, and close all connections."""
        for caller, progress in self._watches:
            if isinstance(progress, StopProgress):
                caller.done({})
        if self._server is not None:
            self._server.close()

    def close_in_child(self) -> None:
        """Close this process's copies of the connections."""
        if self._server is not None:
            self._server.close_in_child()

    # --- what the loop calls ----------------------------------------------------------------------

    def on_ready(self, fd: int, mask: int) -> bool:
        """Serve a descriptor that epoll reports. False if it is neither the socket nor a caller's.

        mask  the events that epoll reports
        """
        if self._server is None or not self._server.owns(fd):
            return False
        self._server.on_ready(fd, mask)
        return True

    def wake_at(self) -> float:
        """The next time for `tick`, in monotonic seconds; infinity if there is none."""
        if self._server is None:
            return float("inf")
        return min(self._queries.wake_at(), self._server.wake_at())

    def tick(self, now: float) -> None:
        """Go on with what waits; called in each turn of the loop. `now` is in monotonic seconds."""
        if self._server is None or self._endpoint is None:
            return
        self._server.turn()
        self._queries.tick(now)
        if now >= self._next_second:
            self._next_second = now + _SECOND
            self._rates.look(now, *self._arbiter.scoreboard.requests())
            self._server.tick()
            self._restore_socket(self._endpoint, self._server)

    def on_event(self, event: LifecycleEvent) -> None:
        """Keep a lifecycle event, and pass it on to the callers that it concerns."""
        values = event.as_dict()
        self._events.append(values)
        if event.name == "exited" and event.slot is not None:
            self._last_exits[event.slot] = event
        elif event.name in ("reload_finished", "reload_rolled_back"):
            self._last_reload = event
        for caller, progress in list(self._watches):
            step = progress.see(event)
            if step is not None:
                self._step(caller, progress, step)
        if event.name == "exited" and event.serial is not None:
            self._queries.on_gone(event.serial)

    def settle(self) -> None:
        """After all events of a turn: tell callers that wait for a reload that it was given up."""
        supervisor = self._arbiter.supervisor
        if supervisor.reload is not None:
            return
        for caller, progress in list(self._watches):
            if isinstance(progress, ReloadProgress):
                self._step(caller, progress, progress.given_up(supervisor.stopping is not None))

    def on_message(self, serial: int, message: LogRecords | Report) -> None:
        """Take the log lines, or the answer to a query, of the worker with this serial."""
        if isinstance(message, Report):
            self._queries.on_report(serial, message)
            return
        entry = self._arbiter.supervisor.workers.get(serial)
        worker = {"slot": entry.slot, "pid": entry.pid} if entry is not None else {}
        for created, level, text in message.records:
            self._records.append({"time": created, "level": level, **worker, "text": text})
        if message.lost:
            text = (
                f"{message.lost} lines of this worker are missing here: it wrote too many at once"
            )
            self._records.append({"time": time.time(), "level": "warning", **worker, "text": text})

    def answered(self, action: actions.CommandAnswered) -> None:
        """The supervisor has carried out a command, or refused it."""
        caller, follow = self._tickets.pop(action.ticket)
        if action.refused:
            caller.fail(protocol.REFUSED, action.refused)
        elif follow is None:
            caller.done(dict(action.result))
        else:
            progress = follow(dict(action.result))
            self._watches.append((caller, progress))
            caller.note({"step": "accepted", **action.result})

    def _restore_socket(self, endpoint: Endpoint, server: ControlServer) -> None:
        """Make the socket's files anew if they are gone: cleaners of /tmp remove old files."""
        if endpoint.is_whole:
            return
        server.unlisten()
        try:
            sock = endpoint.renew()
        except InstanceError as error:
            if not self._is_lost:
                log.warning("The control socket was removed, and can't be made anew: %s", error)
            self._is_lost = True
            return
        self._is_lost = False
        server.listen(sock)
        log.warning("The control socket was removed by somebody; it is back at %s", endpoint.path)

    # --- requests ---------------------------------------------------------------------------------

    def _access(self, uid: int) -> str | None:
        return FULL if uid in (0, os.geteuid()) else self._allowed.get(uid)

    def _handle(self, caller: Caller, request: protocol.Request) -> None:
        if request.changes:
            log.info("servoctl of user %d: %s", caller.uid, _shown(request))
        try:
            _HANDLERS[request.command](self, caller, request.args)
        except Exception:
            # An error in answering servoctl must not end the server.
            log.exception("The control request %s failed", request.command)
            caller.fail(protocol.REFUSED, "the server has failed to answer; its log says how")

    def _status(self, caller: Caller, _args: dict[str, Any]) -> None:
        arbiter = self._arbiter
        listeners = [listener.name for listener in arbiter.listeners]
        caller.done(
            status.status(
                arbiter.supervisor,
                arbiter.scoreboard,
                arbiter.settings,
                self._rates,
                listeners,
                self._started_at,
                time.time(),
                self._last_reload,
            )
        )

    def _workers(self, caller: Caller, _args: dict[str, Any]) -> None:
        arbiter = self._arbiter
        now = time.monotonic()
        rows = status.workers(
            arbiter.supervisor, arbiter.scoreboard, self._rates, self._last_exits, now
        )
        target = arbiter.supervisor.target
        caller.done({"server_pid": os.getpid(), "target": target, "workers": rows})

    def _config(self, caller: Caller, _args: dict[str, Any]) -> None:
        caller.done({"settings": status.config(self._arbiter.settings)})

    def _logs(self, caller: Caller, args: dict[str, Any]) -> None:
        self._records.show(caller, args["follow"])

    def _show_events(self, caller: Caller, args: dict[str, Any]) -> None:
        self._events.show(caller, args["follow"])

    def _reload(self, caller: Caller, args: dict[str, Any]) -> None:
        def follow(result: dict[str, Any]) -> Progress:
            return ReloadProgress(result["generation"], result["workers"])

        self._command(caller, "reload", None, follow if args["wait"] else None)

    def _scale(self, caller: Caller, args: dict[str, Any]) -> None:
        self._command(caller, "scale", args["to"])

    def _restart(self, caller: Caller, args: dict[str, Any]) -> None:
        def follow(result: dict[str, Any]) -> Progress:
            return RestartProgress(result["slot"], result["serial"], result["pid"])

        self._command(caller, "restart-worker", args["slot"], follow if args["wait"] else None)

    def _stop(self, caller: Caller, args: dict[str, Any]) -> None:
        def follow(_result: dict[str, Any]) -> Progress:
            return StopProgress()

        self._command(caller, "stop", args["now"], follow if args["wait"] else None)

    def _command(
        self,
        caller: Caller,
        name: str,
        argument: object,
        follow: Callable[[dict[str, Any]], Progress] | None = None,
    ) -> None:
        self._last_ticket += 1
        self._tickets[self._last_ticket] = (caller, follow)
        self._arbiter.enqueue(events.CommandReceived(self._last_ticket, name, argument))

    # --- messages to applications -----------------------------------------------------------------

    def _send(self, caller: Caller, args: dict[str, Any]) -> None:
        router, slot = self._arbiter.router, args["slot"]
        try:
            message = json.loads(args["message"])
            if not slot:
                caller.done({"workers": router.broadcast(message, args["topic"])})
                return
            sent = router.send_to_slot(message, slot, args["topic"])
        except (ValueError, TypeError, RecursionError) as error:
            caller.fail(protocol.USAGE, f"this can't be sent: {error}")
            return
        workers = router.by_slot()
        if sent:
            caller.done({"workers": 1})
        elif slot in workers:
            caller.fail(protocol.REFUSED, f"worker {slot} does not read its messages")
        else:
            known = ", ".join(map(str, workers)) or "none"
            caller.fail(protocol.REFUSED, f"there is no worker {slot}; there is {known}")

    # --- asking workers ---------------------------------------------------------------------------

    def _stack(self, caller: Caller, args: dict[str, Any]) -> None:
        slot = args["slot"]
        table = self._arbiter.supervisor.workers
        entries = [entry for entry in table if entry.slot == slot and entry.pid is not None]
        if not entries:
            known = ", ".join(str(each) for each in sorted({entry.slot for entry in table}))
            caller.fail(protocol.REFUSED, f"there is no worker {slot}; there is {known or 'none'}")
            return
        entry = max(entries, key=lambda each: (each.live, each.serial))

        def answer(values: dict[str, Any] | None) -> None:
            worker = {"slot": slot, "pid": entry.pid, "state": entry.state.value}
            if values is None:
                text = f"{entry} does not answer: it is blocked where no signal reaches it"
                caller.fail(protocol.REFUSED, text)
            else:
                caller.done({**worker, "answered": "text" not in values, **values})

        self._ask(entry, STACK, answer)

    def _requests(self, caller: Caller, _args: dict[str, Any]) -> None:
        rows = {row.serial: row for row in self._arbiter.scoreboard.snapshot()}
        entries = [
            entry
            for entry in self._arbiter.supervisor.workers
            if entry.serial in rows and rows[entry.serial].in_flight
        ]
        found: list[dict[str, Any]] = []

        def answer(entry: WorkerEntry, values: dict[str, Any] | None) -> None:
            row = rows[entry.serial]
            start = row.oldest_start_ns / 1e9
            found.append(
                {
                    "slot": entry.slot,
                    "pid": entry.pid,
                    "in_flight": row.in_flight,
                    "oldest_s": round(time.monotonic() - start, 3) if start else None,
                    "answered": values is not None,
                    "requests": (values or {}).get("requests", []),
                }
            )
            if len(found) == len(entries):
                found.sort(key=lambda each: (each["slot"], each["pid"]))
                caller.done({"workers": found})

        if not entries:
            caller.done({"workers": []})
        for entry in entries:
            self._ask(entry, REQUESTS, partial(answer, entry))

    def _ask(
        self, entry: WorkerEntry, what: str, on_answer: Callable[[dict[str, Any] | None], None]
    ) -> None:
        is_up = entry.ready_at is not None
        self._queries.ask(
            entry.serial,
            what,
            time.monotonic(),
            on_answer,
            reads=is_up and not entry.channel_lost,
            interrupt=is_up or (what == STACK and entry.state is WorkerState.BOOTING),
        )

    # --- the rest ---------------------------------------------------------------------------------

    def _step(self, caller: Caller, progress: Progress, step: Step) -> None:
        if step.note:
            caller.note(step.note)
        if step.result is not None:
            caller.done(step.result)
        elif step.failed:
            kind = protocol.ROLLED_BACK if step.rolled_back else protocol.REFUSED
            caller.fail(kind, step.failed, step.details)
        if step.result is not None or step.failed or caller.gone:
            self._watches.remove((caller, progress))


@contextmanager
def _named_in_errors(settings: Settings) -> Iterator[None]:
    """Turn an InstanceError into a ConfigError that names the setting and its source."""
    try:
        yield
    except InstanceError as error:
        source = settings.source("control_socket")
        raise ConfigError(f"control_socket: {error} ({source})") from error


def _shown(request: protocol.Request) -> str:
    args = (f"{name}={value}" for name, value in request.args.items())
    # This part of the line is not quoted, so a quote can't forge anything. JSON stays readable.
    return log_module.safe(" ".join([request.command, *args])[:200]).replace(r"\x22", '"')


_HANDLERS: dict[str, Callable[[ControlService, Caller, dict[str, Any]], None]] = {
    "status": ControlService._status,
    "workers": ControlService._workers,
    "requests": ControlService._requests,
    "config": ControlService._config,
    "stack": ControlService._stack,
    "logs": ControlService._logs,
    "events": ControlService._show_events,
    "reload": ControlService._reload,
    "scale": ControlService._scale,
    "restart-worker": ControlService._restart,
    "send": ControlService._send,
    "stop": ControlService._stop,
}
