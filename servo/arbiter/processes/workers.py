"""The worker processes, seen from the arbiter: their pids, channels and rows of the scoreboard.

Each worker is connected to the arbiter by a channel, a pair of sockets over which both send
messages: `Ready` and `Draining`, `Retire` and `Stop`, and those that applications send each other.
The last kind is not for the arbiter. It waits in the worker's `unrouted` queue until the message
router takes it. The other messages become events for the supervisor, except for log lines and
reports, which go to the operators' side.

A worker whose thread is busy reads no messages. So each worker also has a dump file, a nameless
file in memory: on a signal the worker writes there what it is doing, and the arbiter reads it.
"""

from __future__ import annotations

import fcntl
import logging
import os
import select
import signal
from collections import deque
from dataclasses import dataclass, field
from functools import partial
from time import monotonic_ns
from typing import TYPE_CHECKING

from servo.arbiter import process_info
from servo.arbiter.core import actions, events
from servo.arbiter.hook_objects import ArbiterHookWorker
from servo.ipc.channel import ChannelClosed, ChannelOverflow, channel_pair
from servo.ipc.drops import Drops
from servo.ipc.messages import AppMessage, LogRecords, Report
from servo.logs.standard_streams import restore_handlers
from servo.shared_memory import row_layout
from servo.workers.context import WorkerContext

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from servo.arbiter.core.events import Event
    from servo.arbiter.hook_objects import HookServer
    from servo.arbiter.listeners import Sockets
    from servo.arbiter.processes.child_table import ChildTable
    from servo.ipc.channel import Channel
    from servo.ipc.messages import Message
    from servo.net.listeners import Listener
    from servo.net.tls import TLS
    from servo.settings.sources import Settings
    from servo.shared_memory.scoreboard import Scoreboard

log = logging.getLogger("servo.error")

# faulthandler prints at most 100 threads of 100 frames.
MAX_DUMP_BYTES = 256 << 10
# Reads of 64 KiB from one worker's channel in a turn of the loop.
READS_A_TURN = 1
# Reads once the worker is dead: everything that a socket's buffer can hold.
LAST_READS = 16


@dataclass(slots=True, eq=False)
class WorkerProcess:
    """One worker process, seen from the arbiter; a `ChildProcess`.

    processes    the collection that it belongs to
    serial       its number in the order of forking, never used again
    slot         the number by which operators name it, taken over by its successor
    generation   the generation of its settings
    hook_worker  the `worker` that hooks in the arbiter get
    tls          the generation's TLS contexts, or None
    row_index    its row of the scoreboard; `row` is that row's memory
    channel      the arbiter's end of its channel; None once that is closed
    reaped       its exit code was read, and another process may have its pid
    dump_fd      the file that it writes on a signal; -1 if there is none
    unrouted     messages of its application that wait for the router; None marks their end
    unanswered   requests that it was given, by the asker's serial and the request's number
    dropped      counts messages that found no room in its queue
    """

    processes: WorkerProcesses
    serial: int
    slot: int
    generation: int
    settings: Settings
    hook_worker: ArbiterHookWorker
    tls: TLS | None
    pid: int = 0
    row_index: int = -1
    row: memoryview | None = None
    channel: Channel | None = None
    reaped: bool = False
    dump_fd: int = -1
    unrouted: deque[AppMessage | None] = field(default_factory=deque)
    unanswered: dict[tuple[int, int], AppMessage] = field(default_factory=dict)
    dropped: Drops = field(default_factory=Drops)

    def fileno(self) -> int:
        """The descriptor of the channel; -1 once that is closed."""
        return self.channel.fileno() if self.channel is not None else -1

    def on_ready(self, mask: int) -> None:
        """The channel can be read or written."""
        self.processes.on_channel(self, mask)

    def on_exit(self, code: int) -> None:
        """The process was reaped."""
        self.processes.on_exit(self, code)

    def close_in_child(self) -> None:
        """Close this process's copies of the channel and the dump file."""
        if self.channel is not None:
            self.channel.close()
        self.close_dump_file()

    def close_dump_file(self) -> None:
        """Close the dump file."""
        _close_dump_file(self.dump_fd)
        self.dump_fd = -1


class WorkerProcesses:
    """Every worker process from its fork until it is released.

    scoreboard      has a row for each worker
    table           forks and watches the processes
    enqueue         puts an event into the arbiter's inbox
    for_operators   takes the log lines and reports that a worker sends, with its serial

    with_unrouted   the workers whose `unrouted` queue is not empty
    """

    def __init__(
        self,
        scoreboard: Scoreboard,
        table: ChildTable,
        enqueue: Callable[[Event], None],
        for_operators: Callable[[int, LogRecords | Report], None],
    ) -> None:
        self._scoreboard = scoreboard
        self._table = table
        self._enqueue = enqueue
        self._for_operators = for_operators
        self._out_of_memory = process_info.OutOfMemoryCounter()
        self._by_serial: dict[int, WorkerProcess] = {}
        self._by_slot: dict[int, list[WorkerProcess]] = {}
        self.with_unrouted: deque[WorkerProcess] = deque()

    def __iter__(self) -> Iterator[WorkerProcess]:
        return iter(self._by_serial.values())

    def get(self, serial: int) -> WorkerProcess | None:
        """The worker with this serial, until it is released."""
        return self._by_serial.get(serial)

    def in_slot(self, slot: int) -> list[WorkerProcess]:
        """The workers in a slot, the oldest first."""
        return self._by_slot.get(slot, [])

    def hook_workers(self) -> dict[int, ArbiterHookWorker]:
        """The objects that hooks get for the workers, by pid."""
        return {worker.pid: worker.hook_worker for worker in self._by_serial.values()}

    # --- forking ----------------------------------------------------------------------------------

    def prepare(self, action: actions.Fork, settings: Settings, tls: TLS | None) -> WorkerProcess:
        """Make the object of a worker that is about to be forked.

        action     names its serial, slot and generation
        settings   the generation's
        tls        the generation's contexts, or None
        """
        hook_worker = ArbiterHookWorker(action.serial, action.slot, settings)
        return WorkerProcess(
            self, action.serial, action.slot, action.generation, settings, hook_worker, tls
        )

    def fork(self, worker: WorkerProcess, sockets: Sockets, server: HookServer) -> None:
        """Fork a worker. Raises OSError, ScoreboardError, and BindError.

        worker    from `prepare`; gets its pid
        sockets   the worker accepts from those of its slot, and closes the others
        server    the `server` that hooks in the worker get
        """
        listeners, others = sockets.for_slot(worker.slot), sockets.others(worker.slot)
        index = self._scoreboard.allocate(
            worker.serial, worker.slot, worker.generation, monotonic_ns()
        )
        try:
            worker.channel, theirs = channel_pair()
        except OSError:
            self._scoreboard.release(index)
            raise
        dump_fd = _dump_file()
        context = WorkerContext(
            slot=worker.slot,
            serial=worker.serial,
            generation=worker.generation,
            settings=worker.settings,
            listeners=listeners,
            channel=theirs,
            scoreboard=self._scoreboard,
            row_index=index,
            arbiter_pid=os.getpid(),
            server=server,
            tls=worker.tls,
            dump_fd=dump_fd,
            kept=worker.hook_worker.kept(),
        )
        try:
            main = partial(_work, context, others)
            self._table.start(worker, main, keep=(self._scoreboard, sockets))
        except OSError:
            self._scoreboard.release(index)
            worker.channel.close()
            worker.channel = None
            _close_dump_file(dump_fd)
            raise
        finally:
            theirs.close()
        # Not before the fork: the worker closes what this object has, but needs its dump file.
        worker.dump_fd = dump_fd
        worker.hook_worker.pid = worker.pid
        worker.row_index = index
        worker.row = self._scoreboard.row(index)
        self._scoreboard.forked(index, worker.pid)
        self._by_serial[worker.serial] = worker
        self._by_slot.setdefault(worker.slot, []).append(worker)

    # --- channels ---------------------------------------------------------------------------------

    def send(self, serial: int, message: Message) -> None:
        """Send a message to a worker, or queue it if its socket is full.

        serial    the worker's; nothing is sent if it has no channel any more
        message   for the worker itself, not for its application
        """
        worker = self._by_serial.get(serial)
        if worker is None or worker.channel is None:
            return
        try:
            worker.channel.send(message)
        except ChannelOverflow as error:
            log.warning("Worker %d (pid %d): %s", worker.slot, worker.pid, error)
        except ChannelClosed:
            self._lose(worker)
        else:
            if worker.channel.wants_write:
                self._table.watch(worker, select.EPOLLIN | select.EPOLLOUT)

    def flush(self, worker: WorkerProcess) -> None:
        """Send the messages that are queued for a worker, as far as its socket takes them."""
        if worker.channel is None:
            return
        try:
            if not worker.channel.flush():
                self._table.watch(worker, select.EPOLLIN | select.EPOLLOUT)
        except ChannelClosed:
            # The worker's last messages are still in the socket's buffer. epoll reports them first
            # and the hang-up afterwards.
            log.debug("Worker %d (pid %d) gets no more messages", worker.slot, worker.pid)

    def on_channel(self, worker: WorkerProcess, mask: int) -> None:
        """A worker's channel can be read or written.

        mask   the events that epoll has reported
        """
        if worker.channel is None:
            return
        if mask & select.EPOLLOUT:
            try:
                if worker.channel.flush():
                    self._table.watch(worker, select.EPOLLIN)
            except ChannelClosed:
                self._lose(worker)
                return
        # While unrouted messages are left, nothing is read: a flood waits in the sender's process.
        if mask & ~select.EPOLLOUT and not worker.unrouted:
            self._receive(worker, READS_A_TURN)

    def on_exit(self, worker: WorkerProcess, code: int) -> None:
        """A worker was reaped: read the messages that it sent last, then announce its exit.

        code   its exit code, or the negative number of the signal that ended it
        """
        worker.reaped = True
        # Twice, because `receive` returns what was sent before it raises ChannelClosed. No more
        # often: a process that the worker has left behind may hold the channel's other end, and
        # fill it without end. The rest is dropped with the worker.
        for _ in range(2):
            if worker.channel is not None:
                self._receive(worker, LAST_READS)
        name = process_info.signal_name(-code) if code < 0 else ""
        out_of_memory = code == -signal.SIGKILL and self._out_of_memory.took_one()
        self._enqueue(events.ChildExited(worker.pid, code, name, out_of_memory))

    def _receive(self, worker: WorkerProcess, reads: int) -> None:
        """Read a worker's messages, with at most `reads` reads of 64 KiB."""
        assert worker.channel is not None
        try:
            messages = worker.channel.receive(reads)
        except ChannelClosed as error:
            log.debug("Worker %d (pid %d): %s", worker.slot, worker.pid, error)
            self._lose(worker)
            return
        for message in messages:
            if isinstance(message, AppMessage):
                self._add_unrouted(worker, message)
            elif isinstance(message, (LogRecords, Report)):
                self._for_operators(worker.serial, message)
            else:
                self._enqueue(events.MessageReceived(worker.serial, message))

    def _add_unrouted(self, worker: WorkerProcess, message: AppMessage | None) -> None:
        if not worker.unrouted:
            self.with_unrouted.append(worker)
        worker.unrouted.append(message)

    def _lose(self, worker: WorkerProcess) -> None:
        self._close_channel(worker)
        self._enqueue(events.ChannelLost(worker.serial))

    def _close_channel(self, worker: WorkerProcess) -> None:
        if worker.channel is not None:
            self._table.release_descriptor(worker)
            worker.channel.close()
            worker.channel = None
            self._add_unrouted(worker, None)

    # --- dump files -------------------------------------------------------------------------------

    def request_dump(self, serial: int, signum: int) -> bool:
        """Empty a worker's dump file, then send the worker a signal on which it writes there.

        signum   of `servo.workers.query_signals`; 0 where there is none

        False if the worker can't be asked in this way.
        """
        worker = self._by_serial.get(serial)
        if worker is None or worker.reaped or worker.dump_fd < 0 or not signum:
            return False
        try:
            os.ftruncate(worker.dump_fd, 0)
        except OSError as error:
            log.debug("The dump file can't be emptied: %s", error)
            return False
        return process_info.send_signal(worker.pid, signum, worker.settings.user)

    def read_dump(self, serial: int) -> str:
        """The text that a worker has written to its dump file since `request_dump`."""
        worker = self._by_serial.get(serial)
        if worker is None or worker.dump_fd < 0:
            return ""
        try:
            return os.pread(worker.dump_fd, MAX_DUMP_BYTES, 0).decode("utf-8", "replace")
        except OSError as error:
            log.debug("The dump file can't be read: %s", error)
            return ""

    # --- the rest ---------------------------------------------------------------------------------

    def kill(self, serial: int, name: str) -> bool:
        """Send a worker a signal, unless it was reaped: another process may have its pid by now.

        name   "SIGKILL", for example

        False if the kernel does not allow it.
        """
        worker = self._by_serial.get(serial)
        if worker is None or worker.reaped:
            return True
        if worker.row is not None and name in ("SIGABRT", "SIGKILL"):
            # Its siblings compare their load with each row's state; none waits for this one now.
            worker.row[row_layout.STATE] = row_layout.STATE_DRAINING
        return process_info.send_signal(worker.pid, signal.Signals[name], worker.settings.user)

    def heartbeats(self) -> tuple[dict[int, float], dict[int, float]]:
        """The workers' last heartbeats, and the starts of their oldest requests in flight.

        Both are by serial, in monotonic seconds. A worker without requests is not in the second.
        """
        now = monotonic_ns()
        for serial in self._scoreboard.check(now):
            self._enqueue(events.RowOverwritten(serial))
        beats, oldest = {}, {}
        for serial, worker in self._by_serial.items():
            assert worker.row is not None
            beats[serial] = min(worker.row[row_layout.BEAT_NS], now) / 1e9
            if worker.row[row_layout.OLDEST_START_NS]:
                oldest[serial] = min(worker.row[row_layout.OLDEST_START_NS], now) / 1e9
        return beats, oldest

    def release(self, serial: int) -> ArbiterHookWorker | None:
        """Forget a reaped worker, and free its row and channel; None if it is not known."""
        worker = self._by_serial.pop(serial, None)
        if worker is None:
            return None
        self._close(worker)
        in_slot = self._by_slot[worker.slot]
        in_slot.remove(worker)
        if not in_slot:
            del self._by_slot[worker.slot]
        self._scoreboard.release(worker.row_index)
        return worker.hook_worker

    def close(self) -> None:
        """Close all channels. A worker that still runs takes that for the arbiter's end."""
        for worker in self._by_serial.values():
            self._close(worker)

    def _close(self, worker: WorkerProcess) -> None:
        self._close_channel(worker)
        worker.close_dump_file()
        self._table.remove(worker)


def _dump_file() -> int:
    """Open a nameless file in memory, for appending; -1 if the system has no such files."""
    if not hasattr(os, "memfd_create"):
        return -1
    try:
        fd = os.memfd_create("servo-dump", os.MFD_CLOEXEC)
        fcntl.fcntl(fd, fcntl.F_SETFL, os.O_APPEND)
    except OSError as error:
        log.debug("No dump file: %s", error)
        return -1
    return fd


def _close_dump_file(fd: int) -> None:
    if fd >= 0:
        os.close(fd)


def _work(context: WorkerContext, others: list[Listener]) -> int:
    """Run in the worker. `others` are the listeners of other slots, which it closes."""
    for listener in others:
        listener.close(unlink=False)
    # Imported here because the arbiter needs none of the code that runs applications.
    from servo.workers.boot import run_worker

    restore_handlers()
    return run_worker(context)
