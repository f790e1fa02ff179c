"""The base class of the worker classes.

A worker class is a subclass of `Worker` with a `serve` method. `Worker` holds the parts that all
of them share: messages of the arbiter, the death of the arbiter, draining, and the objects that
count and log requests. `servo.workers.boot` makes the worker and calls it.
"""

from __future__ import annotations

import logging
import os
import random
import signal
from abc import abstractmethod
from typing import TYPE_CHECKING, Any, ClassVar

from servo.http.forwarded import TrustedPeers
from servo.ipc.channel import ChannelClosed
from servo.ipc.messages import (
    Draining,
    Message,
    Ready,
    ReopenLogs,
    ReplaceMe,
    Report,
    Retire,
    Stop,
    WorkerQuery,
)
from servo.logs import error_log as log_module
from servo.logs.access_log import AccessLog
from servo.metrics.procfs import waited_ns
from servo.shared_memory import row_layout
from servo.workers import inspection
from servo.workers.accept.keepalive_policy import KeepalivePolicy
from servo.workers.forks import end_on_return
from servo.workers.messages.handlers import Runner, ThreadRunner
from servo.workers.python_exit import QUICK_S, grace_end_ns
from servo.workers.request.accounting import Meter
from servo.workers.request.admission import Admission
from servo.workers.request.hooks import RequestHooks
from servo.workers.request.preface import ProxyProtocol

if TYPE_CHECKING:
    import asyncio

    from servo.apps.loader import LoadedApp
    from servo.workers.context import WorkerContext

log = logging.getLogger("servo.error")

# How often, in seconds, a worker without connections wakes up to call `every_second`.
_IDLE_INTERVAL_S = 5.0


# No abc.ABC: classes that mypyc compiles get no cache of their own for `isinstance`, so all of them
# would share one, and answers about one class would be given for another. A type checker refuses to
# make an object of this class all the same.
class Worker:
    """The base of all worker classes.

    context  the things that the process started with
    app      the loaded application

    Hooks get a `HookWorker` instead. It shows these names, which are gunicorn's: `pid`, `age` (the
    serial: how many workers were forked before), `cfg` and `log` (the settings and the error log).
    """

    def __init__(self, context: WorkerContext, app: LoadedApp) -> None:
        self.context = context
        self.cfg = self.settings = context.settings
        self.pid = os.getpid()
        self.slot = context.slot
        self.age = context.serial
        self.log = log
        self.app = app
        self.draining = False
        # When to log the unfinished requests, shortly before graceful_timeout; 0: not to, or done.
        self._log_unfinished_ns = 0
        # When the arbiter asked the worker to end (0: it has not), and whether quickly.
        self._asked_ns = 0
        self._quick = False
        self.mailbox = context.mailbox
        # No longer than a tenth of `timeout`, the time that the arbiter waits for a heartbeat.
        timeout_s: float = self.settings.timeout or _IDLE_INTERVAL_S * 10
        self.max_idle_interval_s = max(1.0, min(_IDLE_INTERVAL_S, timeout_s / 10))
        self.keepalive_policy = KeepalivePolicy(context.tls is not None)
        self._busy_ns = self._waited_ns = 0
        self.row = context.scoreboard.row(context.row_index)
        access = AccessLog(self.settings)
        self.access = access if access.enabled else None
        self.multiprocess = self.settings.worker_count_for(self.kind) > 1
        schemes = {
            name.lower().encode("latin-1"): value.encode("latin-1")
            for name, value in self.settings.secure_scheme_headers.items()
        }
        self.proxy_protocol = ProxyProtocol(self.settings)
        self.trusted_proxies = TrustedPeers(
            self.settings.forwarded_allow_ips, schemes, self.settings.forwarded_fields
        )
        self.meter = Meter(self.row, self.access, self._max_requests(), self._recycle)
        hooks = RequestHooks(self.settings.hooks, context.hook_worker)
        self.admission = Admission(self.settings, self.meter, self.trusted_proxies, hooks)

    kind: ClassVar[str] = ""  # the name that settings know it by
    interfaces: ClassVar[tuple[str, ...]] = ("wsgi", "asgi")
    tap: inspection.LogTap | None = None

    @abstractmethod
    def wake(self) -> None:
        """See mailbox.Owner."""

    def in_child(self) -> None:
        """Called in a child that the application has forked: take the worker's things from it."""
        end_on_return(None)

    def own_handlers(self) -> None:
        """Called when the worker has set its handlers of TERM and USR1: children don't get them."""
        self.context.forks.own(signal.SIGTERM, signal.SIGUSR1)

    @abstractmethod
    def serve(self) -> None:
        """Serve until the worker has drained after `retire` or `stop`.

        Calls `ready` when it accepts connections.
        """

    @abstractmethod
    def retire(self) -> None:
        """Stop accepting, and end when all requests are answered.

        Connections that wait to be accepted are left to the siblings.
        """

    @abstractmethod
    def stop(self, quick: bool) -> None:
        """End together with all siblings.

        quick  whether to close all connections at once. If not, accept those that wait, since no
               sibling will, and then do as `retire`
        """

    # --- for the subclasses ---------------------------------------------------------------------

    def ready(self) -> None:
        """Tell the arbiter, and the load gates of the siblings, that this worker accepts."""
        self.row[row_layout.BEAT_NS] = row_layout.now_ns()
        self.row[row_layout.STATE] = row_layout.STATE_READY
        self.context.channel.send(Ready(self.kind))
        self.mailbox.open(self.message_runner())
        if self.tap is not None:
            # Wakes an idle worker, which then sends the lines within a second.
            self.tap.on_first = self.wake

    def note_draining(self) -> None:
        """Tell the arbiter, and the load gates of the siblings, that this worker drains."""
        self.draining = True
        limit: float = self.settings.graceful_timeout
        self._asked_ns = row_layout.now_ns()
        self._log_unfinished_ns = self._asked_ns + int((limit - min(2.0, limit / 2)) * 1e9)
        self.row[row_layout.STATE] = row_layout.STATE_DRAINING
        self.every_second()
        self.tell(Draining())

    @property
    def idle_interval_s(self) -> float:
        """Seconds until the next call of `every_second`, if the worker has no connections."""
        logged = self.tap is not None and self.tap.waiting
        return 1.0 if logged or self.draining else self.max_idle_interval_s

    def every_second(self) -> None:
        """Send log lines and reports that could not be sent at once. Call it once a second."""
        self.mailbox.report()
        log_module.flush_logs()
        if self.tap is not None:
            self.tap.send_last(self.context.channel)
        if self._log_unfinished_ns and row_layout.now_ns() >= self._log_unfinished_ns:
            self._log_unfinished_ns = 0
            inspection.log_unfinished(self.unfinished(), row_layout.now_ns())

    def event_loop(self) -> asyncio.AbstractEventLoop | None:
        """The event loop that runs the application's tasks; None if there is none."""
        return None

    def open_requests(self) -> list[tuple[int, str, bytes, str]]:
        """The requests that the application has now, as (start, method, target, client).

        The start is in monotonic nanoseconds.
        """
        return []

    def unfinished(self) -> list[tuple[int, str, bytes, str]]:
        """The requests that a stop waits for, in the form of `open_requests`."""
        return self.open_requests()

    def requests_report(self) -> dict[str, Any]:
        """The requests that the application has now, for `servoctl requests`."""
        return inspection.running(self.open_requests(), row_layout.now_ns())

    def should_close_connections(self, served: int, busy_ns: int, now_ns: int) -> bool:
        """Whether to close connections after each response. Call it once a second.

        served, busy_ns  requests so far, and how long they held the poller's or the loop's thread
        """
        if self.settings.keepalive is not None:
            return not self.settings.keepalive
        if busy_ns != self._busy_ns:
            # Asking the kernel costs 20 us, so idle workers don't.
            self._busy_ns = busy_ns
            self._waited_ns = waited_ns()
        busy_ns -= self._waited_ns
        closes = self.keepalive_policy.closes(
            served, self.row[row_layout.ACCEPTED], busy_ns, now_ns
        )
        return closes and self.context.scoreboard.ready() > 1

    def interrupted(self) -> None:
        """The worker was told to stop quickly: call the `worker_int` hook."""
        self._quick = True
        hook = self.settings.hooks.worker_int
        if hook is not None:
            try:
                hook(self.context.hook_worker)
            except (Exception, SystemExit):
                # SystemExit included: the worker is about to end anyway.
                log.exception("Error in the worker_int hook")

    @property
    def end_ns(self) -> int:
        """When the process must have ended by itself, in monotonic nanoseconds."""
        if self._quick or not self._asked_ns:
            return row_layout.now_ns() + int(QUICK_S * 1e9)
        return grace_end_ns(self.settings.graceful_timeout, self._asked_ns)

    def tell(self, message: Message) -> None:
        """Send a message to the arbiter. If the arbiter is dead, the message is dropped."""
        try:
            self.context.channel.send(message)
        except ChannelClosed:
            log.debug("Dropped a %s message: the arbiter is gone", type(message).__name__)

    def on_channel(self) -> None:
        """The channel is readable: read it, and do what the arbiter says."""
        try:
            messages = self.mailbox.on_channel()
        except ChannelClosed:
            self.on_orphaned()
            return
        self._obey(messages)

    def on_wake(self) -> None:
        """After `mailbox.Owner.wake`: do what the arbiter said while another thread was reading."""
        if self.tap is not None:
            self.tap.pass_on()
        self._obey(self.mailbox.on_wake())

    def _obey(self, messages: list[Message]) -> None:
        for message in messages:
            if isinstance(message, Retire):
                self.retire()
            elif isinstance(message, Stop):
                self.stop(message.quick)
            elif isinstance(message, ReopenLogs):
                self.reopen_logs()
            elif isinstance(message, WorkerQuery):
                self._report(message)
        self.mailbox.run()

    def message_runner(self) -> Runner:
        """Make the runner of the application's message handlers."""
        return ThreadRunner(self.mailbox)

    def _report(self, query: WorkerQuery) -> None:
        if query.what == "stack":
            values = inspection.stacks(self.event_loop())
        else:
            values = self.requests_report()
        self.tell(Report(query.number, values))

    def on_orphaned(self) -> None:
        """The arbiter is dead, so nobody would restart or stop this worker: drain, and end."""
        if self.draining:
            return
        log.warning("The arbiter is gone: finishing the open requests, then exiting")
        # The arbiter would enforce graceful_timeout. Without it the kernel does, by SIGALRM.
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.setitimer(signal.ITIMER_REAL, max(self.settings.graceful_timeout, 0.1))
        self.stop(quick=False)

    def on_terminate(self) -> None:
        """SIGTERM was sent to this process alone: ask the arbiter for a successor.

        The arbiter retires this worker when the successor is ready.
        """
        if not self.draining:
            self.tell(ReplaceMe("terminated"))

    def reopen_logs(self) -> None:
        """Reopen the error log and the access log (USR1)."""
        log_module.reopen_logs()
        if self.access is not None:
            self.access.reopen()

    def _recycle(self) -> None:
        if not self.draining:
            self.tell(ReplaceMe("recycled", f"served {self.meter.max_requests} requests"))

    def _max_requests(self) -> int:
        limit: int = self.settings.max_requests
        # With equal limits and an even load, all workers would be replaced at the same moment.
        jitter: int | None = self.settings.max_requests_jitter
        most = limit // 10 if jitter is None else jitter
        return limit and limit + random.randint(0, most)  # noqa: S311  no secret
