"""The arbiter's side of the control socket: requests become the supervisor's events, what happens
becomes answers. Everything runs in the arbiter's loop and waits for nobody.
"""

from __future__ import annotations

import json
import logging
import os
import time
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

from servo.arbiter.core import actions, events
from servo.arbiter.core.worker_table import WorkerState
from servo.arbiter.operator import status
from servo.arbiter.operator.lifecycle_events import MAX_EVENTS, MAX_RECORDS, MAX_RECORDS_BYTES, Ring
from servo.arbiter.operator.progress import (
    Progress,
    ReloadProgress,
    RestartProgress,
    Step,
    StopProgress,
)
from servo.arbiter.operator.worker_queries import REQUESTS, STACK, Inquiries
from servo.control import protocol
from servo.control.endpoint import Endpoint, check_path
from servo.control.instances import InstanceError
from servo.control.server import FULL, ControlServer
from servo.errors import ConfigError
from servo.ipc.messages import LogRecords, Report
from servo.logs import error_log as log_module
from servo.settings.sections.control import allowed_user

if TYPE_CHECKING:
    import select
    from collections.abc import Callable, Iterator

    from servo.arbiter.core.worker_table import WorkerEntry
    from servo.arbiter.loop import Arbiter
    from servo.arbiter.operator.lifecycle_events import LifecycleEvent
    from servo.control.server import Caller
    from servo.settings.sources import Settings

log = logging.getLogger("servo.error")

_SECOND = 1.0
# Anybody may connect; the kernel tells who it is, and `control_allow` whether that one may stay.
_SHARED_MODE = 0o666


class Control:
    """What operators talk to. It keeps the last events and log lines for them.

    arbiter   whose it is
    """

    def __init__(self, arbiter: Arbiter) -> None:
        self._arbiter = arbiter
        self._endpoint: Endpoint | None = None
        self._server: ControlServer | None = None
        self._inquiries: Inquiries | None = None
        self._allowed: dict[int, str] = {}
        self._tickets: dict[int, tuple[Caller, Callable[[dict[str, Any]], Progress] | None]] = {}
        self._last_ticket = 0
        self._watches: list[tuple[Caller, Progress]] = []
        self._event_followers: list[Caller] = []
        self._log_followers: list[Caller] = []
        self._events = Ring(MAX_EVENTS, MAX_RECORDS_BYTES)
        self._records = Ring(MAX_RECORDS, MAX_RECORDS_BYTES)
        self._rates = status.Rates()
        self._next_second = 0.0
        self._is_lost = False
        self._started_at = time.time()
        self._last_exits: dict[int, LifecycleEvent] = {}
        self._last_reload: LifecycleEvent | None = None

    # --- life -------------------------------------------------------------------------------------

    def prepare(self, settings: Settings) -> None:
        """Bind the socket whose path was given, while there is a terminal to tell of a failure.

        Raises ConfigError.
        """
        if settings.control_socket_disable:
            return
        self._allowed = dict(map(allowed_user, settings.control_allow))
        log_module.set_tap(self._on_record)
        mode = settings.control_socket_mode
        if self._allowed and settings.source("control_socket_mode") == "default":
            mode = _SHARED_MODE
        with _blamed(settings):
            self._endpoint = Endpoint(settings.control_socket, mode, shared=bool(self._allowed))

    @staticmethod
    def check(settings: Settings) -> None:
        """Raise the ConfigError of a path where no socket can be; nothing is made."""
        if settings.control_socket and not settings.control_socket_disable:
            with _blamed(settings):
                check_path(settings.control_socket)

    def start(self, settings: Settings, epoll: select.epoll) -> None:
        """Listen. Where no socket was asked for and none can be had, the server goes without."""
        if self._endpoint is None:
            return
        try:
            sock = self._endpoint.announce(status.name_of(settings), os.environ)
        except InstanceError as error:
            log.warning(
                "There is no control socket, so servoctl can't reach this server: %s", error
            )
            return
        self._server = ControlServer(sock, epoll, self._access, self._handle, time.monotonic)
        self._inquiries = Inquiries(self._arbiter.children)
        log.info("Control socket at %s", self._endpoint.path)

    def close(self) -> None:
        """The server has ended: those who asked for that hear so. Removes the socket."""
        log_module.set_tap(None)
        for caller, progress in self._watches:
            if isinstance(progress, StopProgress):
                caller.done({})
        if self._server is not None:
            self._server.close()
        if self._endpoint is not None:
            self._endpoint.close()

    def close_in_child(self) -> None:
        """In a forked child: close what is the arbiter's alone."""
        if self._server is not None:
            self._server.close_in_child()
        if self._endpoint is not None:
            self._endpoint.close_in_child()

    # --- what the loop calls ----------------------------------------------------------------------

    def owns(self, fd: int) -> bool:
        """Whether a descriptor is the control socket's, or a caller's."""
        return self._server is not None and self._server.owns(fd)

    def on_ready(self, fd: int, mask: int) -> None:
        """Serve a descriptor that epoll has named."""
        assert self._server is not None
        self._server.on_ready(fd, mask)

    def wake_at(self) -> float:
        """When `tick` has something to do before the next second; infinity for nothing."""
        if self._server is None or self._inquiries is None:
            return float("inf")
        return min(self._inquiries.wake_at(), self._server.wake_at())

    def tick(self, now: float) -> None:
        """Time has passed, or something has happened."""
        if self._server is None or self._inquiries is None or self._endpoint is None:
            return
        self._server.turn()
        self._inquiries.tick(now)
        if now >= self._next_second:
            self._next_second = now + _SECOND
            self._rates.look(now, *self._arbiter.scoreboard.requests())
            self._server.tick()
            self._look_after(self._endpoint, self._server)

    def on_event(self, event: LifecycleEvent) -> None:
        """Something has happened to the server or a worker."""
        values = event.as_dict()
        self._events.append(values)
        if event.name == "exited" and event.slot is not None:
            self._last_exits[event.slot] = event
        elif event.name in ("reload_finished", "reload_rolled_back"):
            self._last_reload = event
        self._event_followers = _tell(self._event_followers, values)
        for caller, progress in list(self._watches):
            step = progress.see(event)
            if step is not None:
                self._step(caller, progress, step)
        if event.name == "exited" and event.serial is not None and self._inquiries is not None:
            self._inquiries.on_gone(event.serial)

    def settle(self) -> None:
        """All events are told: who waits for a reload that won't come hears so."""
        supervisor = self._arbiter.supervisor
        if supervisor.reload is not None:
            return
        for caller, progress in list(self._watches):
            if isinstance(progress, ReloadProgress):
                self._step(caller, progress, progress.given_up(supervisor.stopping is not None))

    def on_message(self, serial: int, message: LogRecords | Report) -> None:
        """A worker says something that is for operators."""
        if isinstance(message, Report):
            if self._inquiries is not None:
                self._inquiries.on_report(serial, message)
            return
        handle = self._arbiter.supervisor.workers.get(serial)
        worker = {"slot": handle.slot, "pid": handle.pid} if handle is not None else {}
        for created, level, text in message.records:
            self._keep({"time": created, "level": level, **worker, "text": text})
        if message.lost:
            text = (
                f"{message.lost} lines of this worker are missing here: it wrote too many at once"
            )
            self._keep({"time": time.time(), "level": "warning", **worker, "text": text})

    def answered(self, action: actions.CommandAnswered) -> None:
        """The supervisor has followed a command, or refused."""
        caller, follow = self._tickets.pop(action.ticket)
        if action.refused:
            caller.fail(protocol.REFUSED, action.refused)
        elif follow is None:
            caller.done(dict(action.result))
        else:
            progress = follow(dict(action.result))
            self._watches.append((caller, progress))
            caller.note({"step": "accepted", **action.result})

    def _look_after(self, endpoint: Endpoint, server: ControlServer) -> None:
        """A tidy-up of /tmp, say, takes the files of a socket that it finds old."""
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
            # A tool's question must not be the server's end.
            log.exception("The control request %s failed", request.command)
            caller.fail(protocol.REFUSED, "the server has failed to answer; its log says how")

    def _status(self, caller: Caller, _args: dict[str, Any]) -> None:
        arbiter = self._arbiter
        listeners = [listener.name for listener in arbiter.sockets.listeners]
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
        self._show(caller, self._records, self._log_followers, args["follow"])

    def _show_events(self, caller: Caller, args: dict[str, Any]) -> None:
        self._show(caller, self._events, self._event_followers, args["follow"])

    def _show(self, caller: Caller, ring: Ring, followers: list[Caller], follow: bool) -> None:
        caller.notes(ring)
        if follow:
            caller.following = True
            followers.append(caller)
        else:
            caller.done({})

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
        self._arbiter.tell(events.CommandReceived(self._last_ticket, name, argument))

    # --- messages to applications -----------------------------------------------------------------

    def _send(self, caller: Caller, args: dict[str, Any]) -> None:
        post, slot = self._arbiter.post, args["slot"]
        try:
            message = json.loads(args["message"])
            if not slot:
                caller.done({"workers": post.broadcast(message, topic=args["topic"])})
                return
            sent = post.send(message, to=slot, topic=args["topic"])
        except (ValueError, TypeError, RecursionError) as error:
            caller.fail(protocol.USAGE, f"this can't be sent: {error}")
            return
        workers = post.by_slot()
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
        pool = self._arbiter.supervisor.workers
        handles = [handle for handle in pool if handle.slot == slot and handle.pid is not None]
        if not handles:
            known = ", ".join(str(each) for each in sorted({handle.slot for handle in pool}))
            caller.fail(protocol.REFUSED, f"there is no worker {slot}; there is {known or 'none'}")
            return
        handle = max(handles, key=lambda each: (each.live, each.serial))

        def tell(values: dict[str, Any] | None) -> None:
            who = {"slot": slot, "pid": handle.pid, "state": handle.state.value}
            if values is None:
                text = f"{handle} does not answer: it is blocked where no signal reaches it"
                caller.fail(protocol.REFUSED, text)
            else:
                caller.done({**who, "answered": "text" not in values, **values})

        self._ask(handle, STACK, tell)

    def _requests(self, caller: Caller, _args: dict[str, Any]) -> None:
        rows = {row.serial: row for row in self._arbiter.scoreboard.snapshot()}
        handles = [
            handle
            for handle in self._arbiter.supervisor.workers
            if handle.serial in rows and rows[handle.serial].in_flight
        ]
        found: list[dict[str, Any]] = []

        def tell(handle: WorkerEntry, values: dict[str, Any] | None) -> None:
            row = rows[handle.serial]
            start = row.oldest_start_ns / 1e9
            found.append(
                {
                    "slot": handle.slot,
                    "pid": handle.pid,
                    "in_flight": row.in_flight,
                    "oldest_s": round(time.monotonic() - start, 3) if start else None,
                    "answered": values is not None,
                    "requests": (values or {}).get("requests", []),
                }
            )
            if len(found) == len(handles):
                found.sort(key=lambda each: (each["slot"], each["pid"]))
                caller.done({"workers": found})

        if not handles:
            caller.done({"workers": []})
        for handle in handles:
            self._ask(handle, REQUESTS, partial(tell, handle))

    def _ask(
        self, handle: WorkerEntry, what: str, tell: Callable[[dict[str, Any] | None], None]
    ) -> None:
        assert self._inquiries is not None
        up = handle.ready_at is not None
        self._inquiries.ask(
            handle.serial,
            what,
            time.monotonic(),
            tell,
            reads=up and not handle.channel_lost,
            interrupt=up or (what == STACK and handle.state is WorkerState.BOOTING),
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

    def _on_record(self, record: logging.LogRecord) -> None:
        """A line of the arbiter's own log."""
        text = log_module.message_of(record)
        values = {"time": record.created, "level": record.levelname.lower(), "pid": record.process}
        self._keep({**values, "text": text})

    def _keep(self, record: dict[str, Any]) -> None:
        self._records.append(record)
        self._log_followers = _tell(self._log_followers, record)


@contextmanager
def _blamed(settings: Settings) -> Iterator[None]:
    try:
        yield
    except InstanceError as error:
        source = settings.source("control_socket")
        raise ConfigError(f"control_socket: {error} ({source})") from error


def _tell(followers: list[Caller], values: dict[str, Any]) -> list[Caller]:
    """Tell everybody who is still there; those are returned."""
    if not followers:
        return followers
    there = [caller for caller in followers if not caller.gone]
    for caller in there:
        caller.note(values)
    return there


def _shown(request: protocol.Request) -> str:
    words = (f"{name}={value}" for name, value in request.args.items())
    # The words are no quoted field, so a quote forges nothing: JSON stays readable.
    return log_module.safe(" ".join([request.command, *words])[:200]).replace(r"\x22", '"')


_HANDLERS: dict[str, Callable[[Control, Caller, dict[str, Any]], None]] = {
    "status": Control._status,
    "workers": Control._workers,
    "requests": Control._requests,
    "config": Control._config,
    "stack": Control._stack,
    "logs": Control._logs,
    "events": Control._show_events,
    "reload": Control._reload,
    "scale": Control._scale,
    "restart-worker": Control._restart,
    "send": Control._send,
    "stop": Control._stop,
}
