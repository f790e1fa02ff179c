"""The arbiter's side of the control socket: it answers the requests of `servoctl`.

A request that only reads (`status`, `workers`, `logs`) is answered at once. A request that changes
the server becomes an event for the supervisor, and the answer follows the supervisor's decision. A
caller can also wait for the end of the change, such as a reload: until then it gets a note for each
step. All of this runs in the arbiter's loop and never blocks.
"""

from __future__ import annotations

import json
import logging
import os
import time
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

from servo.arbiter.core import actions, events
from servo.arbiter.core.worker_table import WorkerState
from servo.arbiter.operator import report, status
from servo.arbiter.operator.feed import Feed
from servo.arbiter.operator.lifecycle_events import LifecycleEvent
from servo.arbiter.operator.pool_status import pools_values, running_tasks
from servo.arbiter.operator.progress import (
    Progress,
    ReloadProgress,
    RestartProgress,
    Step,
    StopProgress,
    UpgradeProgress,
)
from servo.arbiter.operator.worker_calls import WorkerCalls
from servo.arbiter.operator.worker_output import MAX_CHARACTERS, MAX_RECORDS, Source, WorkerOutput
from servo.arbiter.operator.worker_queries import REQUESTS, STACK, WorkerQueries
from servo.arbiter.operator.worker_signals import signal_effect
from servo.arbiter.process_info import signal_name
from servo.control import protocol
from servo.control.endpoint import Endpoint, check_path, is_in_private_tmp
from servo.control.instances import InstanceError
from servo.control.redaction import with_texts, without_values
from servo.control.server import FULL, ControlServer
from servo.control.signal_names import signal_number
from servo.errors import ConfigError
from servo.ipc.messages import Report
from servo.logs import error_log as log_module
from servo.settings.sections.control import allowed_user
from servo.shared_memory.output_rings import ACCESS, APP

if TYPE_CHECKING:
    import select
    import socket
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from servo.arbiter.core.supervisor import Supervisor
    from servo.arbiter.core.worker_table import WorkerEntry
    from servo.arbiter.message_router import MessageRouter
    from servo.arbiter.processes.mold import Mold, MoldProcesses
    from servo.arbiter.processes.pool import Pools
    from servo.arbiter.processes.workers import WorkerProcess, WorkerProcesses
    from servo.control.server import Caller
    from servo.ipc.messages import LogRecords
    from servo.net.listeners import Listener
    from servo.settings.sources import Settings
    from servo.shared_memory.scoreboard import Scoreboard

log = logging.getLogger("servo.error")

# How many past events are kept for `servoctl events`.
MAX_EVENTS = 1000

_SECOND = 1.0
# The longest time limit of a call.
_MAX_CALL_MS = 86_400_000
# The mode of the socket file if `control_allow` names users: every user may connect, but the kernel
# reports the caller's user, and users that are not named are refused.
_SHARED_MODE = 0o666


class ControlledServer(Protocol):
    """The parts of the arbiter that operators see and control."""

    supervisor: Supervisor
    workers: WorkerProcesses
    molds: MoldProcesses
    router: MessageRouter
    pools: Pools
    scoreboard: Scoreboard

    @property
    def settings(self) -> Settings:
        """The settings of the current generation."""
        ...

    @property
    def listeners(self) -> Sequence[Listener]:
        """The listening sockets."""
        ...

    def enqueue(self, event: events.Event) -> None:
        """Put an event into the arbiter's inbox."""
        ...


class ControlSocket:
    """The control socket, and the arbiter's log lines since it was bound.

    It is bound early, while the command's terminal can still show an error.

    settings   has `control_socket`, `control_socket_mode` and `control_allow`

    endpoint   the socket; None if the settings turn it off
    allowed    the commands of each user in `control_allow`, by uid
    records    the kept log lines

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

    def to_state(self, pass_on: Callable[[int], int]) -> dict[str, Any]:
        """Return the socket and the kept log lines as JSON values, for `from_state`.

        pass_on  keeps a descriptor open for the next program, and returns it
        """
        endpoint = self.endpoint.to_state(pass_on) if self.endpoint is not None else None
        return {"endpoint": endpoint, "records": self.records.records}

    @classmethod
    def from_state(
        cls, settings: Settings, state: Mapping[str, Any], take: Callable[[int], int]
    ) -> ControlSocket:
        """Take over the socket and log lines of this process's previous program.

        settings  has `control_allow`
        state     the result of that program's `to_state`
        take      claims a descriptor from the previous program, and returns it

        Raises KeyError, TypeError, ValueError or OSError for an invalid state.
        """
        socket = cls.__new__(cls)
        socket.allowed = dict(map(allowed_user, settings.control_allow))
        socket.records = Feed(MAX_RECORDS, MAX_CHARACTERS)
        for record in state["records"]:
            socket.records.append(dict(record))
        socket.endpoint = None
        if state["endpoint"] is not None:
            socket.endpoint = Endpoint.from_state(state["endpoint"], take, os.environ)
            log_module.set_tap(socket._on_record)
        return socket

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
        # A record may have another text for operators, if its own text has a secret.
        text = getattr(record, "shown", None) or log_module.message_of(record)
        values = {"time": record.created, "level": record.levelname.lower(), "pid": record.process}
        self.records.append({**values, "text": text})


def check_control_socket(settings: Settings) -> None:
    """Raise ConfigError if no socket can be at the configured path. Creates nothing."""
    if settings.control_socket and not settings.control_socket_disable:
        with _named_in_errors(settings):
            check_path(settings.control_socket)


class ControlService:
    """Answers the callers of the control socket, and keeps the last lifecycle events.

    arbiter         the server
    control_socket  the control socket
    epoll           the arbiter's epoll instance
    """

    def __init__(
        self, arbiter: ControlledServer, control_socket: ControlSocket, epoll: select.epoll
    ) -> None:
        self._arbiter = arbiter
        self._endpoint = control_socket.endpoint
        self._allowed = control_socket.allowed
        self._records = control_socket.records
        self._events = Feed(MAX_EVENTS, MAX_CHARACTERS)
        rings = arbiter.scoreboard.output
        self._output = WorkerOutput(rings, APP, self._sources, self._records)
        self._access_lines = WorkerOutput(rings, ACCESS, self._worker_sources)
        arbiter.molds.on_end = lambda mold: self._output.end(self._mold_source(mold))
        self._queries = WorkerQueries(arbiter.workers)
        self._calls = WorkerCalls(arbiter.router)
        # ticket -> the command's caller, and the function that gets the result. If the command is
        # refused, the function is not called.
        self._tickets: dict[int, tuple[Caller, Callable[[dict[str, Any]], None]]] = {}
        self._reopened: Mapping[str, str] = {}
        self._last_ticket = 0
        self._watches: list[tuple[Caller, Progress]] = []
        self._rates = status.Rates()
        self._next_second = 0.0
        self._is_lost = False
        self._started_at = time.time()
        self._last_exits: dict[int, LifecycleEvent] = {}
        self._last_reload: LifecycleEvent | None = None
        self._restarts = 0
        self._server = self._listen(epoll)

    def to_state(self) -> dict[str, Any]:
        """Return the events for operators as JSON values, for `restore`."""
        last = self._last_reload
        return {
            "events": self._events.records,
            "started_at": self._started_at,
            "last_exits": [asdict(event) for event in self._last_exits.values()],
            "last_reload": None if last is None else asdict(last),
            "restarts": self._restarts,
            "output": self._output.ended.records,
            "access_lines": self._access_lines.ended.records,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take over the events of this process's previous program, after an upgrade.

        state  the result of that program's `to_state`

        Raises KeyError, TypeError or ValueError for an invalid state.
        """
        last = state["last_reload"]
        exits = [LifecycleEvent.from_state(each) for each in state["last_exits"]]
        for event in state["events"]:
            self._events.append(dict(event))
        for output, name in ((self._output, "output"), (self._access_lines, "access_lines")):
            for record in state.get(name, []):  # older versions lack it
                output.ended.append(dict(record))
        self._started_at = float(state["started_at"])
        self._restarts = int(state.get("restarts", 0))  # older versions lack it
        self._last_exits = {event.slot: event for event in exits if event.slot is not None}
        self._last_reload = None if last is None else LifecycleEvent.from_state(last)

    def _listen(self, epoll: select.epoll) -> ControlServer:
        """Start to listen, unless the settings forbid it or no path works."""
        sock = self._announce()
        if sock is None:
            self._endpoint = None
        return ControlServer(sock, epoll, self._access, self._handle, time.monotonic)

    def _announce(self) -> socket.socket | None:
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
        if is_in_private_tmp(self._endpoint.path):
            log.warning(
                "servoctl can't find this server, because PrivateTmp= hides its control socket; "
                "with RuntimeDirectory=servo in the unit, the socket is put where servoctl finds it"
            )
        return sock

    def attach(self, sock: socket.socket, name: str, commands: frozenset[str]) -> Caller:
        """Serve a connection to a child of the arbiter; see `ControlServer.attach`."""
        return self._server.attach(sock, name, commands)

    def detach(self, caller: Caller) -> None:
        """Close a connection to a child of the arbiter."""
        self._server.detach(caller)

    def close(self) -> None:
        """Answer the callers that wait for the server's end, and close all connections."""
        self._output.flush()
        self._access_lines.flush()
        for caller, progress in self._watches:
            if isinstance(progress, StopProgress):
                caller.done({})
        self._server.close()

    def close_in_child(self) -> None:
        """Close this process's copies of the connections."""
        self._server.close_in_child()

    # --- called by the loop -----------------------------------------------------------------------

    def on_ready(self, fd: int, mask: int) -> bool:
        """Serve a descriptor. Returns False if it is neither the socket's nor a caller's.

        fd    the descriptor that epoll reports
        mask  the events that epoll reports
        """
        if not self._server.owns(fd):
            return False
        self._server.on_ready(fd, mask)
        return True

    def wake_at(self) -> float:
        """The next time for `tick`, in monotonic seconds; infinity if there is none."""
        parts = (self._queries, self._calls, self._server, self._output, self._access_lines)
        return min(part.wake_at() for part in parts)

    def tick(self, now: float) -> None:
        """Continue with the requests that wait. Called in each turn of the loop.

        now  monotonic seconds
        """
        if self._endpoint is None and not self._server:
            return  # nobody asks
        self._server.turn()
        self._queries.tick(now)
        self._calls.tick(now)
        self._output.tick(now)
        self._access_lines.tick(now)
        if now >= self._next_second:
            self._next_second = now + _SECOND
            self._rates.look(now, *self._arbiter.scoreboard.requests())
            self._server.tick()
            if self._endpoint is not None:
                self._restore_socket(self._endpoint, self._server)

    def on_event(self, event: LifecycleEvent) -> None:
        """Keep a lifecycle event, and send it to the callers that wait for it."""
        values = event.as_dict()
        self._events.append(values)
        if event.name == "exited" and event.slot is not None:
            self._last_exits[event.slot] = event
            self._restarts += event.reason in status.FAULTS
        elif event.name in ("reload_finished", "reload_rolled_back"):
            self._last_reload = event
        for caller, progress in list(self._watches):
            step = progress.see(event)
            if step is not None:
                self._step(caller, progress, step)
        if event.name == "exited" and event.serial is not None:
            self._queries.on_gone(event.serial)
            worker = self._arbiter.workers.get(event.serial)
            if worker is not None:
                self._output.end(_worker_source(worker))
                self._access_lines.end(_worker_source(worker))

    def settle(self) -> None:
        """Tell waiting callers that their reload was given up. Called after a turn's events."""
        supervisor = self._arbiter.supervisor
        if supervisor.reload is not None:
            return
        for caller, progress in list(self._watches):
            if isinstance(progress, ReloadProgress):
                self._step(caller, progress, progress.given_up(supervisor.stopping is not None))

    def on_message(self, serial: int, message: LogRecords | Report) -> None:
        """Take the answer to a query, or log lines, from a worker.

        serial   the worker's number
        message  the answer; or lines, from a worker of an older version, before an upgrade
        """
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
        """Answer the caller of a command that the supervisor has carried out or refused."""
        caller, on_result = self._tickets.pop(action.ticket)
        if action.refused:
            caller.fail(protocol.REFUSED, action.refused)
        else:
            on_result(dict(action.result))

    def on_logs_reopened(self, outcome: Mapping[str, str]) -> None:
        """Note the outcome of reopening the arbiter's log files.

        outcome  path -> the error, or ""
        """
        self._reopened = outcome

    def _restore_socket(self, endpoint: Endpoint, server: ControlServer) -> None:
        """Make the socket's files again if they are gone: /tmp may be cleaned of old files."""
        if endpoint.is_whole:
            return
        server.unlisten()
        try:
            sock = endpoint.renew()
        except InstanceError as error:
            if not self._is_lost:
                log.warning("The control socket was removed, and can't be made again: %s", error)
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
            who = caller.name if caller.is_child else f"{caller.name} of user {caller.uid}"
            log.info("%s: %s", who, _shown(request))
        try:
            _HANDLERS[request.command](self, caller, request.args)
        except Exception:
            # An error in an answer must not end the server.
            log.exception("The control request %s failed", request.command)
            caller.fail(protocol.REFUSED, "the server failed to answer; its log has the error")

    def _status(self, caller: Caller, _args: dict[str, Any]) -> None:
        caller.done(self._status_values())

    def _status_values(self) -> dict[str, Any]:
        arbiter = self._arbiter
        listeners = [listener.name for listener in arbiter.listeners]
        values = status.status(
            arbiter.supervisor,
            arbiter.scoreboard,
            arbiter.settings,
            self._rates,
            listeners,
            self._started_at,
            time.time(),
            self._last_reload,
            time.monotonic_ns(),
            # A stopping server has closed its listeners.
            [
                listener.socket.getsockname()
                for listener in arbiter.listeners
                if listener.socket.fileno() >= 0
            ],
        )
        return {**values, "restarts": self._restarts}

    def _workers(self, caller: Caller, _args: dict[str, Any]) -> None:
        caller.done(self._workers_values())

    def _workers_values(self) -> dict[str, Any]:
        arbiter = self._arbiter
        now = time.monotonic()
        rows = status.workers(
            arbiter.supervisor, arbiter.scoreboard, self._rates, self._last_exits, now
        )
        target = arbiter.supervisor.count.target
        return {"server_pid": os.getpid(), "target": target, "workers": rows}

    def _report(self, caller: Caller, args: dict[str, Any]) -> None:
        settings, lines = self._arbiter.settings, max(1, args["lines"])
        values = {
            "facts": report.facts(os.environ),
            "settings": status.config(settings),
            "status": self._status_values(),
            **self._workers_values(),
            "events": self._events.records[-lines:],
            "logs": self._output.records()[-lines:],
        }
        # Only this process knows the values of all secrets. `servoctl` also removes what looks like
        # a secret, which would take too long here.
        secrets = report.known_secrets(settings, os.environ)
        caller.done(with_texts(values, lambda text: without_values(text, secrets)))

    def _config(self, caller: Caller, _args: dict[str, Any]) -> None:
        caller.done({"settings": status.config(self._arbiter.settings)})

    def _logs(self, caller: Caller, args: dict[str, Any]) -> None:
        if not args["access"]:
            self._output.show(caller, args["follow"])
        elif log_module.access_file() is None and not log_module.user_handles_access_log():
            text = 'the access log is off: --access-logfile - (or accesslog = "-") turns it on'
            caller.fail(protocol.REFUSED, text)
        else:
            self._access_lines.show(caller, args["follow"])

    def _show_events(self, caller: Caller, args: dict[str, Any]) -> None:
        self._events.show(caller, args["follow"])

    def _reload(self, caller: Caller, args: dict[str, Any]) -> None:
        def follow(result: dict[str, Any]) -> Progress:
            return ReloadProgress(result["generation"], result["workers"])

        self._command(caller, "reload", None, follow if args["wait"] else None)

    def _upgrade(self, caller: Caller, args: dict[str, Any]) -> None:
        def follow(_result: dict[str, Any]) -> Progress:
            return UpgradeProgress()

        # Other users in `control_allow` may not choose a program that runs as the server's user.
        if args["python"] and caller.uid not in (0, os.geteuid()):
            text = f"only root and user {os.geteuid()} may name an interpreter"
            caller.fail(protocol.DENIED, text)
            return
        self._command(caller, "upgrade", args["python"], follow if args["wait"] else None)

    def _scale(self, caller: Caller, args: dict[str, Any]) -> None:
        self._command(caller, "scale", args["to"])

    def _restart(self, caller: Caller, args: dict[str, Any]) -> None:
        def follow(result: dict[str, Any]) -> Progress:
            return RestartProgress(result["slot"], result["serial"], result["pid"])

        self._command(caller, "restart-worker", args["slot"], follow if args["wait"] else None)

    def _rollback(self, caller: Caller, _args: dict[str, Any]) -> None:
        self._command(caller, "rollback", None)

    def _reopen(self, caller: Caller, _args: dict[str, Any]) -> None:
        def answer(result: dict[str, Any]) -> None:
            # The arbiter reopens its own files before it answers the command.
            outcome = self._reopened
            files = [path for path, failure in outcome.items() if not failure]
            failures = [failure for failure in outcome.values() if failure]
            if failures:
                done = "".join(f"reopened {path}\n" for path in files)
                text = f"the old log stays in use: {'; '.join(failures)}"
                caller.fail(protocol.REFUSED, text, done)
            else:
                caller.done({"files": files, **result})

        self._command(caller, "reopen", None, on_result=answer)

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
        on_result: Callable[[dict[str, Any]], None] | None = None,
    ) -> None:
        """Pass a command to the supervisor.

        caller      the caller that gets the answer
        name        the command's name in `servo.arbiter.core.commands`
        argument    its argument
        follow      takes the supervisor's result, and makes the Progress that the caller waits for
        on_result   takes the supervisor's result. Without `follow` and `on_result`, the caller gets
                    the result as the answer
        """
        if follow is not None:
            on_result = partial(self._follow, caller, follow)
        self._last_ticket += 1
        self._tickets[self._last_ticket] = (caller, on_result or caller.done)
        self._arbiter.enqueue(
            events.CommandReceived(self._last_ticket, name, argument, caller.name)
        )

    def _follow(
        self,
        caller: Caller,
        follow: Callable[[dict[str, Any]], Progress],
        result: dict[str, Any],
    ) -> None:
        self._watches.append((caller, follow(result)))
        caller.note({"step": "accepted", **result})

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
        if sent:
            caller.done({"workers": 1})
        elif slot in router.by_slot():
            caller.fail(protocol.REFUSED, f"worker {slot} does not read its messages")
        else:
            self._fail_without_worker(caller, slot)

    def _call(self, caller: Caller, args: dict[str, Any]) -> None:
        """Send a request to the app in a worker, and answer with its handler's result."""
        slot, limit_s = args["slot"], min(max(1, args["timeout_ms"]), _MAX_CALL_MS) / 1000

        def answer(error: str, value: Any) -> None:
            if not error:
                self._answer_call(caller, slot, value)
                return
            text = f"worker {slot} has not answered within {limit_s:g} s; its handler may still run"
            caller.fail(protocol.REFUSED, text if error == "timeout" else str(value))

        if slot not in self._arbiter.router.by_slot():
            self._fail_without_worker(caller, slot)
            return
        try:
            message = json.loads(args["message"])
            self._calls.call(message, slot, args["topic"], time.monotonic() + limit_s, answer)
        except (ValueError, TypeError, RecursionError) as error:
            caller.fail(protocol.USAGE, f"this can't be sent: {error}")

    def _answer_call(self, caller: Caller, slot: int, value: Any) -> None:
        try:
            # The answer is JSON in a text, because clients escape control characters in texts, and
            # this JSON has none.
            text = json.dumps(value)
        except RecursionError:  # a compromised worker can send anything
            caller.fail(protocol.REFUSED, f"the answer of worker {slot} has too many levels")
        else:
            caller.done({"slot": slot, "answer": text})

    def _fail_without_worker(self, caller: Caller, slot: int) -> None:
        known = ", ".join(map(str, self._arbiter.router.by_slot())) or "empty"
        caller.fail(protocol.REFUSED, f"there is no worker {slot}; the slots are {known}")

    # --- one worker -------------------------------------------------------------------------------

    def _worker_in(self, slot: int, caller: Caller) -> WorkerEntry | None:
        """The worker in a slot. If there is none, fail the caller's request and return None.

        During a replacement two workers have the slot. The newer one, which will stay, is returned.
        """
        table = self._arbiter.supervisor.workers
        entries = [entry for entry in table if entry.slot == slot and entry.pid is not None]
        if entries:
            return max(entries, key=lambda each: (each.live, each.serial))
        known = ", ".join(str(each) for each in sorted({entry.slot for entry in table}))
        text = f"there is no worker {slot}; the slots are {known or 'empty'}"
        # The number may be a pid that somebody has copied from `ps`.
        by_pid = table.find(slot)
        hint = f"; {slot} is the pid of worker {by_pid.slot}" if by_pid is not None else ""
        caller.fail(protocol.REFUSED, text + hint)
        return None

    def _signal(self, caller: Caller, args: dict[str, Any]) -> None:
        """Send a signal to a worker.

        The supervisor is not involved. It notices the effect from the worker's messages or exit, as
        after `kill PID` in a shell.
        """
        try:
            number = signal_number(args["name"])
        except ValueError as error:
            caller.fail(protocol.USAGE, str(error))
            return
        entry = self._worker_in(args["slot"], caller)
        if entry is None:
            return
        name = signal_name(number)
        effect = signal_effect(entry, number, self._arbiter.supervisor.policy.timeout_s)
        if self._arbiter.workers.signal(entry.serial, number):
            values = {"slot": entry.slot, "pid": entry.pid, "signal": name, "effect": effect}
            caller.done(values)
        else:
            text = f"{entry} can't be sent {name}: it has ended, or the system forbids it (see log)"
            caller.fail(protocol.REFUSED, text)

    def _stack(self, caller: Caller, args: dict[str, Any]) -> None:
        slot = args["slot"]
        entry = self._worker_in(slot, caller)
        if entry is None:
            return

        def answer(values: dict[str, Any] | None) -> None:
            worker = {"slot": slot, "pid": entry.pid, "state": entry.state.value}
            if values is None:
                text = f"{entry} does not answer: it is blocked in code that no signal interrupts"
                caller.fail(protocol.REFUSED, text)
            else:
                caller.done({**worker, "answered": "text" not in values, **values})

        self._ask(entry, STACK, answer)

    def _pools(self, caller: Caller, _args: dict[str, Any]) -> None:
        values = pools_values(self._arbiter.pools, time.monotonic_ns())
        caller.done({"server_pid": os.getpid(), "pools": values})

    def _requests(self, caller: Caller, _args: dict[str, Any]) -> None:
        tasks = running_tasks(self._arbiter.pools, time.monotonic_ns())
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
                caller.done({"workers": found, "tasks": tasks})

        if not entries:
            caller.done({"workers": [], "tasks": tasks})
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

    # --- sources of log lines ---------------------------------------------------------------------

    def _worker_sources(self) -> list[Source]:
        return [_worker_source(worker) for worker in self._arbiter.workers]

    def _sources(self) -> list[Source]:
        molds = [self._mold_source(mold) for mold in self._arbiter.molds if mold.pid]
        return [*self._worker_sources(), *molds]

    def _mold_source(self, mold: Mold) -> Source:
        rings = self._arbiter.scoreboard.output
        row = rings.mold_row(mold.generation) if rings is not None else -1
        # Workers have positive numbers.
        return Source(-mold.generation, row, {"pid": mold.pid, "mold": mold.generation})

    # --- helpers ----------------------------------------------------------------------------------

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


def _worker_source(worker: WorkerProcess) -> Source:
    return Source(worker.serial, worker.row_index, {"slot": worker.slot, "pid": worker.pid})


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
    # Keep quotes, so that JSON stays readable. They can't forge log text: the line does not quote
    # this part.
    return log_module.safe(" ".join([request.command, *args])[:200]).replace(r"\x22", '"')


_HANDLERS: dict[str, Callable[[ControlService, Caller, dict[str, Any]], None]] = {
    "status": ControlService._status,
    "workers": ControlService._workers,
    "pools": ControlService._pools,
    "requests": ControlService._requests,
    "config": ControlService._config,
    "report": ControlService._report,
    "stack": ControlService._stack,
    "logs": ControlService._logs,
    "events": ControlService._show_events,
    "reload": ControlService._reload,
    "upgrade": ControlService._upgrade,
    "scale": ControlService._scale,
    "restart-worker": ControlService._restart,
    "rollback": ControlService._rollback,
    "reopen": ControlService._reopen,
    "signal": ControlService._signal,
    "send": ControlService._send,
    "call": ControlService._call,
    "stop": ControlService._stop,
}
