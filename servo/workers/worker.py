"""The base class of the worker classes.

A worker class is a subclass of `Worker` with a `serve` method. `Worker` has the parts that all
worker classes share: messages of the arbiter, the death of the arbiter, draining, and the objects
that count and log requests. `servo.workers.boot` makes the worker and calls `serve`.
"""

from __future__ import annotations

import logging
import os
import random
import signal
from abc import abstractmethod
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

from servo.cluster import schedules
from servo.http.forwarded import TrustedPeers
from servo.ipc.channel import ChannelClosed
from servo.ipc.messages import (
    CertificateFile,
    Draining,
    MakeMold,
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
from servo.workers.certificate_receiver import CertificateReceiver
from servo.workers.forks import end_on_return
from servo.workers.health import HealthCheck
from servo.workers.messages.handlers import Runner, ThreadRunner
from servo.workers.python_exit import QUICK_S, grace_end_ns
from servo.workers.request.accounting import Meter
from servo.workers.request.admission import Admission
from servo.workers.request.hooks import RequestHooks
from servo.workers.request.preface import ProxyProtocol
from servo.workers.utilisation import UtilisationMeter

if TYPE_CHECKING:
    import asyncio

    from servo.apps.loader import LoadedApp
    from servo.workers.context import WorkerContext
    from servo.workers.schedules import ScheduleRunner

log = logging.getLogger("servo.error")

# How often, in seconds, a worker without connections wakes up to call `every_second`.
_IDLE_INTERVAL_S = 5.0


# Not an abc.ABC: if mypyc compiled them, all abstract classes would share one cache for
# `isinstance`, and give wrong answers. A type checker still refuses to instantiate this class.
class Worker:
    """The base of all worker classes.

    context  the process's start-up context
    app      the loaded application

    Hooks get a `HookWorker` instead of this object. For code written for gunicorn, it has `pid`,
    `age` (the number of workers forked so far), `cfg` (the settings) and `log` (the error log).
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
        # The generation of the mold that this worker forks after it has drained (refork_after); 0:
        # none.
        self.next_mold = 0
        # When to log the unfinished requests, shortly before graceful_timeout; 0: never, or done.
        self._log_unfinished_ns = 0
        # When the arbiter asked the worker to end (0: it has not), and whether it asked for a quick
        # stop.
        self._asked_ns = 0
        self._quick = False
        self.mailbox = context.mailbox
        self.schedules: ScheduleRunner | None = None  # `ready` makes one if there are jobs
        # At most a tenth of `timeout`, the longest time that the arbiter waits for a heartbeat.
        timeout_s: float = self.settings.timeout or _IDLE_INTERVAL_S * 10
        self.max_idle_interval_s = max(1.0, min(_IDLE_INTERVAL_S, timeout_s / 10))
        self.health: HealthCheck | None = None
        if self.settings.health_check is not None:
            self.health = HealthCheck(self.settings, self._on_unhealthy)
            interval_s: float = self.settings.health_check_interval
            self.max_idle_interval_s = min(self.max_idle_interval_s, max(1.0, interval_s))
        self.keepalive_policy = KeepalivePolicy(context.tls is not None)
        self._busy_ns = self._waited_ns = 0
        self._utilisation = UtilisationMeter()
        self._certificates = CertificateReceiver(context.settings, context.tls)
        self.row = context.scoreboard.row(context.row_index)
        access = AccessLog(self.settings)
        self.access = access if access.enabled else None
        most = max(self.settings.worker_count_for(self.kind), self.settings.max_workers)
        self.multiprocess = most > 1
        schemes = {
            name.lower().encode("latin-1"): value.encode("latin-1")
            for name, value in self.settings.secure_scheme_headers.items()
        }
        self.proxy_protocol = ProxyProtocol(self.settings)
        self.trusted_proxies = TrustedPeers(
            self.settings.forwarded_allow_ips, schemes, self.settings.forwarded_fields
        )
        self.meter = Meter(self.row, self.access, self._max_requests(), self._recycle)
        hooks = RequestHooks(self.settings.hooks, context.hook_worker, self.scheme)
        self.admission = Admission(self.settings, self.meter, self.trusted_proxies, hooks)

    kind: ClassVar[str] = ""  # the value of `worker_class` that selects it
    interfaces: ClassVar[tuple[str, ...]] = ("wsgi", "asgi")
    # Whether a worker of this class can fork a mold after it has drained (refork_after).
    can_fork_mold: ClassVar[bool] = False

    @abstractmethod
    def wake(self) -> None:
        """See mailbox.Owner."""

    def in_child(self) -> None:
        """Called in a child that the application has forked: detach it from the worker."""
        end_on_return(None)

    def own_handlers(self) -> None:
        """Note that TERM and USR1 now have the worker's handlers, so that children reset them."""
        self.context.forks.own(signal.SIGTERM, signal.SIGUSR1)

    @abstractmethod
    def serve(self) -> None:
        """Serve until the worker has drained after `retire` or `stop`.

        Calls `ready` when it accepts connections.
        """

    @abstractmethod
    def retire(self, take_queued: bool = False) -> None:
        """Stop accepting, and end when all requests are answered.

        take_queued  whether to accept the queued connections first; if not, the other workers
                     accept them
        """

    def end_threads(self) -> str:
        """End this worker's own threads after it has drained, because a mold is forked from it.

        Returns "", or why they can't be ended: they would not exist in the mold.
        """
        return ""

    def close_in_mold(self) -> None:
        """In a mold that was forked from this worker: close the descriptors of its loop."""

    @abstractmethod
    def stop(self, quick: bool) -> None:
        """End, because all workers of the server end.

        quick  whether to close all connections at once. If not, accept the queued connections,
               because no other worker will, and then do the same as `retire`
        """

    # --- for the subclasses ---------------------------------------------------------------------

    def ready(self) -> None:
        """Tell the arbiter and the other workers' load gates that this worker accepts."""
        self.row[row_layout.BEAT_NS] = row_layout.now_ns()
        self.row[row_layout.STATE] = row_layout.STATE_READY
        self.row[row_layout.THREADS] = self.threads_in_pool
        self.row[row_layout.THREAD_REQUESTS] = row_layout.LIKE_IN_FLIGHT
        self._measure()
        if self.access is not None:
            self.access.follow_loggers()
        self.context.channel.send(Ready(self.kind, self.capacity))
        self.mailbox.open(self.message_runner())
        self._start_schedules()

    def _start_schedules(self) -> None:
        jobs = schedules.jobs()
        if jobs:
            # Imported here, because most applications have no jobs.
            from servo.workers.schedules import ScheduleRunner, rank_of

            rank = partial(rank_of, self.context.scoreboard, self.age)
            self.schedules = ScheduleRunner(jobs, rank, self.event_loop(), self.on_jobs_ended)
            self.schedules.start()

    def on_jobs_ended(self) -> None:
        """Called on the event loop, if there is one, when a job has ended in a draining worker."""

    def end_schedules(self) -> str:
        """End the thread of `servo.workers.schedules`, because a mold is forked from this worker.

        Returns "", or why that can't be done.
        """
        if self.schedules is None:
            return ""
        self.schedules.join()
        return "a scheduled job still runs" if self.schedules.is_running else ""

    def note_draining(self) -> None:
        """Tell the arbiter and the other workers' load gates that this worker drains."""
        self.draining = True
        self.begin_grace()
        if self.schedules is not None:
            self.schedules.stop()
        self.row[row_layout.STATE] = row_layout.STATE_DRAINING
        self.every_second()
        self.tell(Draining())

    def begin_grace(self) -> None:
        """Start the time of `graceful_timeout`."""
        limit: float = self.settings.graceful_timeout
        self._asked_ns = row_layout.now_ns()
        self._log_unfinished_ns = self._asked_ns + int((limit - min(2.0, limit / 2)) * 1e9)

    @property
    def lingers(self) -> bool:
        """Whether the worker drains and keeps WebSockets open (`drain_websockets`)."""
        return False

    @property
    def capacity(self) -> int:
        """How many requests the worker can work on at a time, for autoscaling."""
        return 1

    @property
    def threads_in_pool(self) -> int:
        """How many threads run the application; 0 if the event loop does."""
        return self.capacity

    @property
    def idle_interval_s(self) -> float:
        """Seconds until the next call of `every_second`, if the worker has no connections."""
        checking = self.health is not None and self.health.is_running
        return 1.0 if checking or self.draining else self.max_idle_interval_s

    def every_second(self) -> None:
        """Send reports that could not be sent at once. Call it once a second."""
        self._measure()
        self.mailbox.report()
        if self.health is not None and not self.draining:
            self.health.sweep(row_layout.now_ns())
        log_module.flush_logs()
        if self._log_unfinished_ns and row_layout.now_ns() >= self._log_unfinished_ns:
            self._log_unfinished_ns = 0
            inspection.log_unfinished(self.unfinished(), row_layout.now_ns())

    def _measure(self) -> None:
        now = row_layout.now_ns()
        self.row[row_layout.UTILISATION] = self._utilisation.measure(now, self.held_ns(now))

    def held_ns(self, now_ns: int) -> list[int]:
        """How long requests have held each resource of the worker so far, for its utilisation.

        now_ns  monotonic nanoseconds

        Returns nanoseconds. They grow by one second a second while the resource is in full use. The
        CPU is not one of these resources: `UtilisationMeter` measures it itself.
        """
        return []

    @property
    def scheme(self) -> str:
        """The scheme of the requests that this worker serves."""
        return "https" if self.context.tls is not None else "http"

    def event_loop(self) -> asyncio.AbstractEventLoop | None:
        """The event loop that runs the application's tasks; None if there is none."""
        return None

    def open_requests(self) -> list[tuple[int, str, bytes, str]]:
        """The running requests, as (start in monotonic nanoseconds, method, target, client)."""
        return []

    def unfinished(self) -> list[tuple[int, str, bytes, str]]:
        """The requests that a stop waits for, in the form of `open_requests`."""
        return self.open_requests()

    def requests_report(self) -> dict[str, Any]:
        """The running requests, for `servoctl requests`."""
        return inspection.running(self.open_requests(), row_layout.now_ns())

    def should_close_connections(self, served: int, busy_ns: int, now_ns: int) -> bool:
        """Whether to close connections after each response. Call it once a second.

        served   the number of requests so far
        busy_ns  how long these held the thread of the poller or event loop, in nanoseconds
        now_ns   monotonic nanoseconds
        """
        if self.settings.keepalive is not None:
            return not self.settings.keepalive
        if busy_ns != self._busy_ns:
            # Subtract the time that the thread waited for a CPU. Asking the kernel takes 20 us, so
            # an idle worker doesn't.
            self._busy_ns = busy_ns
            self._waited_ns = waited_ns()
        busy_ns -= self._waited_ns
        closes = self.keepalive_policy.closes(
            served, self.row[row_layout.ACCEPTED], busy_ns, now_ns
        )
        return closes and self.context.scoreboard.ready() > 1

    def interrupted(self) -> None:
        """Note that the worker stops quickly, and call the `worker_int` hook."""
        self._quick = True
        hook = self.settings.hooks.worker_int
        if hook is not None:
            try:
                hook(self.context.hook_worker)
            except (Exception, SystemExit):
                # Even SystemExit is only logged: the worker ends anyway.
                log.exception("Error in the worker_int hook")

    @property
    def end_ns(self) -> int:
        """The deadline by which the process must end by itself, in monotonic nanoseconds."""
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
        """Read the channel and handle the messages. Called when the channel is readable."""
        try:
            messages = self.mailbox.on_channel()
        except ChannelClosed:
            self.on_orphaned()
            return
        self._obey(messages)

    def on_wake(self) -> None:
        """Handle the messages that another thread has read. Called after `mailbox.Owner.wake`."""
        self._obey(self.mailbox.on_wake())

    def _obey(self, messages: list[Message]) -> None:
        for message in messages:
            if isinstance(message, Retire):
                self.retire(message.take_queued)
            elif isinstance(message, MakeMold):
                self.next_mold = message.generation
            elif isinstance(message, Stop):
                self.next_mold = 0
                self.stop(message.quick)
            elif isinstance(message, ReopenLogs):
                self.reopen_logs()
            elif isinstance(message, CertificateFile):
                if self._certificates.take(message):
                    self.on_certificates()
            elif isinstance(message, WorkerQuery):
                self._report(message)
        self.mailbox.run()

    def on_certificates(self) -> None:
        """Called when the TLS contexts have new certificates."""

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
        """Drain and end, because the arbiter is dead: nothing would restart or stop this worker."""
        if self.draining and not self.lingers:
            return
        log.warning("The arbiter is gone: finishing the open requests, then exiting")
        # The arbiter can't enforce graceful_timeout any more, so the kernel does, by SIGALRM.
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.setitimer(signal.ITIMER_REAL, max(self.settings.graceful_timeout, 0.1))
        self.stop(quick=False)

    def on_terminate(self) -> None:
        """Ask the arbiter for a replacement, because only this process has got SIGTERM.

        The arbiter retires this worker when the replacement is ready.
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

    def _on_unhealthy(self, problem: str) -> None:
        if not self.draining:
            self.tell(ReplaceMe("unhealthy", problem))

    def _max_requests(self) -> int:
        limit: int = self.settings.max_requests
        # Without the jitter, and with an even load, all workers would be replaced at the same time.
        jitter: int | None = self.settings.max_requests_jitter
        most = limit // 10 if jitter is None else jitter
        return limit and limit + random.randint(0, most)  # noqa: S311  no secret
