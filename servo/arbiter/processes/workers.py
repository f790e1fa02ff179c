"""The arbiter's side of the worker processes: their pids, channels and rows of the scoreboard.

A channel, which is a pair of sockets, connects each worker to the arbiter. The worker sends `Ready`
and `Draining`, the arbiter `Retire` and `Stop`. These messages become events for the supervisor.
Log lines and reports go to the operators' side. The channel also carries the messages between
applications; these wait in the sender's `unrouted` queue until the message router takes them.

A worker does not read messages while its only thread is busy. So each worker also has a dump file,
a nameless file in memory. On a signal the worker writes its stacks or requests there, and the
arbiter reads them.
"""

from __future__ import annotations

import fcntl
import logging
import os
import select
import signal
import socket
from collections import deque
from dataclasses import dataclass, field
from functools import partial
from time import monotonic_ns
from typing import TYPE_CHECKING, Any

from servo.arbiter import process_info
from servo.arbiter.core import actions, events
from servo.arbiter.hook_objects import ArbiterHookWorker
from servo.ipc.channel import Channel, ChannelClosed, ChannelOverflow, channel_pair
from servo.ipc.drops import Drops
from servo.ipc.messages import REQUEST, AppMessage, LogRecords, Report
from servo.logs.standard_streams import restore_handlers
from servo.shared_memory import row_layout
from servo.workers.context import WorkerContext

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from servo.arbiter.core.events import Event
    from servo.arbiter.hook_objects import HookServer
    from servo.arbiter.listeners import Sockets
    from servo.arbiter.processes.child_table import ChildTable
    from servo.ipc.messages import Message
    from servo.net.listeners import Listener
    from servo.net.tls import TLS
    from servo.settings.sources import Settings
    from servo.shared_memory.scoreboard import Scoreboard

log = logging.getLogger("servo.error")

# faulthandler prints at most 100 threads of 100 frames.
MAX_DUMP_BYTES = 256 << 10
# Reads of 64 KiB from one worker's channel per turn of the loop.
READS_A_TURN = 1
# Reads after the worker's death: enough for a full buffer of the socket.
LAST_READS = 16


@dataclass(slots=True, eq=False)
class WorkerProcess:
    """The arbiter's side of one worker process; a `ChildProcess`.

    processes    the collection that contains it
    serial       its number in the order of forking, never reused
    slot         its place, 1 to N; its replacement gets the same
    generation   the generation of its settings
    hook_worker  the `worker` argument of hooks in the arbiter
    tls          the generation's TLS contexts, or None
    row_index    the number of its scoreboard row; `row` is that row's memory
    channel      the arbiter's end of its channel; None after it is closed
    reaped       whether it was reaped; if so, another process may have its pid
    dump_fd      the descriptor of its dump file; -1 if there is none
    mold_sock    (refork_after) the arbiter's end of the socket to the mold that it may fork, or
                 None
    due_signal   a signal to send once its pid is known; 0 if there is none
    unrouted     messages of its application that wait for the router; None marks their end
    unanswered   the requests that it has not answered, by the sender's serial and the request's
                 number
    dropped      the number of messages to it that were dropped because its queue was full
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
    mold_sock: socket.socket | None = None
    due_signal: int = 0
    unrouted: deque[AppMessage | None] = field(default_factory=deque)
    unanswered: dict[tuple[int, int], AppMessage] = field(default_factory=dict)
    dropped: Drops = field(default_factory=Drops)

    def fileno(self) -> int:
        """The descriptor of the channel; -1 after the channel is closed."""
        return self.channel.fileno() if self.channel is not None else -1

    def on_ready(self, mask: int) -> None:
        """Read and write the channel."""
        self.processes.on_channel(self, mask)

    def on_exit(self, code: int) -> None:
        """See ChildProcess."""
        self.processes.on_exit(self, code)

    def close_in_child(self) -> None:
        """Close this process's copies of the channel, the dump file and the mold's socket."""
        if self.channel is not None:
            self.channel.close()
        self.close_dump_file()
        self.close_mold_sock()

    def close_dump_file(self) -> None:
        """Close the dump file."""
        close_dump_file(self.dump_fd)
        self.dump_fd = -1

    def close_mold_sock(self) -> None:
        """Close the socket to the mold that it may fork."""
        if self.mold_sock is not None:
            self.mold_sock.close()
            self.mold_sock = None


class WorkerProcesses:
    """Every worker process from its fork until it is released.

    scoreboard      has a row for each worker
    table           forks and watches the processes
    enqueue         puts an event into the arbiter's inbox
    for_operators   takes a worker's serial, and its log lines or report

    with_unrouted   the workers with messages in their `unrouted` queue
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
        """The worker with this serial; None if it was released."""
        return self._by_serial.get(serial)

    def row_of(self, serial: int) -> memoryview | None:
        """The row of the scoreboard of the worker with this serial, until it is released."""
        worker = self._by_serial.get(serial)
        return worker.row if worker is not None else None

    def in_slot(self, slot: int) -> list[WorkerProcess]:
        """The workers in a slot, oldest first."""
        return self._by_slot.get(slot, [])

    def hook_workers(self) -> dict[int, ArbiterHookWorker]:
        """The objects that hooks get for the workers, by pid."""
        return {worker.pid: worker.hook_worker for worker in self if worker.pid}

    # --- forking ----------------------------------------------------------------------------------

    def prepare(self, action: actions.Fork, settings: Settings, tls: TLS | None) -> WorkerProcess:
        """Make the object of a worker before its fork.

        action     has the worker's serial, slot and generation
        settings   the settings of the generation
        tls        the TLS contexts of the generation, or None
        """
        hook_worker = ArbiterHookWorker(action.serial, action.slot, settings)
        return WorkerProcess(
            self, action.serial, action.slot, action.generation, settings, hook_worker, tls
        )

    def fork(self, worker: WorkerProcess, sockets: Sockets, server: HookServer) -> None:
        """Fork a worker. Raises OSError, ScoreboardError, and BindError.

        worker    from `prepare`; its pid is set
        sockets   the listening sockets; the worker uses those of its slot, and closes the others
        server    the `server` argument of hooks in the worker
        """
        listeners, others = sockets.for_slot(worker.slot), sockets.others(worker.slot)
        theirs, dump_fd = self._open(worker)
        context = WorkerContext(
            slot=worker.slot,
            serial=worker.serial,
            generation=worker.generation,
            settings=worker.settings,
            listeners=listeners,
            channel=theirs,
            scoreboard=self._scoreboard,
            row_index=worker.row_index,
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
            self._scoreboard.release(worker.row_index)
            assert worker.channel is not None
            worker.channel.close()
            worker.channel = None
            close_dump_file(dump_fd)
            raise
        finally:
            theirs.close()
        # Set it only after the fork: the new process closes all descriptors of this object, but
        # needs its dump file.
        worker.dump_fd = dump_fd
        self._add(worker)
        self._forked(worker)

    def prepare_order(self, worker: WorkerProcess) -> Channel:
        """Prepare a worker that a mold will fork: make its row, channel and dump file.

        worker    from `prepare`

        Returns the worker's end of the channel. Call `adopt_orphan` or `fork_failed` later. Raises
        OSError and ScoreboardError.
        """
        theirs, worker.dump_fd = self._open(worker)
        self._add(worker)
        self._table.expect(worker)
        return theirs

    def adopt_orphan(self, worker: WorkerProcess, pid: int) -> bool:
        """Take over a worker that a mold has forked.

        Returns False if `pid` is no child of this process. Raises OSError if the worker's channel
        can't be watched.
        """
        assert worker.channel is not None
        mask = select.EPOLLIN | (select.EPOLLOUT if worker.channel.wants_write else 0)
        if not self._table.adopt_orphan(worker, pid, mask):
            return False
        self._forked(worker)
        self._enqueue(events.Forked(worker.serial, pid))
        if worker.due_signal and not self.signal(worker.serial, worker.due_signal):
            name = process_info.signal_name(worker.due_signal)
            self._enqueue(events.KillFailed(worker.serial, name))
        return True

    def fork_failed(self, worker: WorkerProcess, text: str) -> None:
        """Note that a mold could not fork a worker; `text` says why."""
        self.release(worker.serial)
        self._enqueue(events.ForkFailed(worker.serial, text))

    def _open(self, worker: WorkerProcess) -> tuple[Channel, int]:
        """Give a worker its row, its channel and its dump file.

        Returns the worker's end of the channel, and the dump file. Raises OSError and
        ScoreboardError.
        """
        index = self._scoreboard.allocate(
            worker.serial, worker.slot, worker.generation, monotonic_ns()
        )
        try:
            worker.channel, theirs = channel_pair()
        except OSError:
            self._scoreboard.release(index)
            raise
        worker.row_index = index
        worker.row = self._scoreboard.row(index)
        return theirs, dump_file()

    def _add(self, worker: WorkerProcess) -> None:
        self._by_serial[worker.serial] = worker
        self._by_slot.setdefault(worker.slot, []).append(worker)

    def _forked(self, worker: WorkerProcess) -> None:
        worker.hook_worker.pid = worker.pid
        self._scoreboard.forked(worker.row_index, worker.pid)

    # --- upgrades ---------------------------------------------------------------------------------

    def to_state(self, pass_on: Callable[[int], int]) -> list[dict[str, Any]]:
        """Return all workers as JSON values, for `adopt`. None of them has unrouted messages.

        pass_on  keeps a descriptor open for the next program, and returns it
        """
        assert not self.with_unrouted
        return [
            {
                "serial": worker.serial,
                "slot": worker.slot,
                "generation": worker.generation,
                "pid": worker.pid,
                "row_index": worker.row_index,
                "channel": worker.channel.to_state(pass_on) if worker.channel else None,
                "dump_fd": pass_on(worker.dump_fd),
                "mold_sock": pass_on(worker.mold_sock.fileno() if worker.mold_sock else -1),
                # The requests themselves are already in the workers' channels. The router needs
                # only this to pass on the replies.
                "unanswered": [[each.slot, *key] for key, each in worker.unanswered.items()],
            }
            for worker in self
        ]

    def adopt(
        self,
        state: Mapping[str, Any],
        take: Callable[[int], int],
        settings: Settings,
        tls: TLS | None,
    ) -> WorkerProcess:
        """Make the object of a worker that the previous program of this process has forked.

        state      the worker's entry in the result of `to_state` in that program
        take       claims a descriptor from the previous program, and returns it
        settings   the current settings: the worker's own ones are lost
        tls        the current TLS contexts, for the same reason

        Raises KeyError, TypeError, ValueError or OSError for an invalid state.
        """
        hook_worker = ArbiterHookWorker(int(state["serial"]), int(state["slot"]), settings)
        worker = WorkerProcess(
            self,
            hook_worker.age,
            hook_worker.slot,
            int(state["generation"]),
            settings,
            hook_worker,
            tls,
            pid=int(state["pid"]),
            row_index=int(state["row_index"]),
        )
        hook_worker.pid = worker.pid
        worker.row = self._scoreboard.row(worker.row_index)
        worker.dump_fd = take(int(state["dump_fd"]))
        mold_fd = take(int(state.get("mold_sock", -1)))  # older versions lack it
        if mold_fd >= 0:
            worker.mold_sock = socket.socket(fileno=mold_fd)
            worker.mold_sock.setblocking(False)
        if state["channel"] is not None:
            worker.channel = Channel.from_state(state["channel"], take)
        for slot, serial, number in state["unanswered"]:
            request = AppMessage.make(REQUEST, (slot, serial), worker.slot, b"", b"", number)
            worker.unanswered[serial, number] = request
        self._add(worker)
        self._table.adopt(worker)
        if worker.channel is not None and worker.channel.wants_write:
            self._table.watch(worker, select.EPOLLIN | select.EPOLLOUT)
        return worker

    # --- channels ---------------------------------------------------------------------------------

    def send(self, serial: int, message: Message) -> None:
        """Send a message to a worker, or queue it if its socket is full.

        serial    the worker's number; nothing is sent if its channel is closed
        message   a message for the worker itself, not for its application
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
            # A worker's channel is watched only after the worker's pid is known: `adopt_orphan`
            # begins that.
            if worker.channel.wants_write and worker.pid:
                self._table.watch(worker, select.EPOLLIN | select.EPOLLOUT)

    def send_to_generation(self, generation: int, message: Message) -> None:
        """Send a message to each worker of a generation; see `send`."""
        for serial in [each.serial for each in self if each.generation == generation]:
            self.send(serial, message)

    def flush(self, worker: WorkerProcess) -> None:
        """Send the queued messages of a worker, as far as its socket takes them."""
        if worker.channel is None:
            return
        try:
            if not worker.channel.flush() and worker.pid:
                self._table.watch(worker, select.EPOLLIN | select.EPOLLOUT)
        except ChannelClosed:
            # The worker's last messages are still in the socket's buffer. epoll reports them first
            # and the hang-up afterwards.
            log.debug("Worker %d (pid %d) gets no more messages", worker.slot, worker.pid)

    def on_channel(self, worker: WorkerProcess, mask: int) -> None:
        """Read and write a worker's channel.

        worker   the worker
        mask     the events that epoll has reported
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
        # While there are unrouted messages, read no more of them. A flood of messages then waits in
        # the worker that sends it.
        if mask & ~select.EPOLLOUT and not worker.unrouted:
            self._receive(worker, READS_A_TURN)

    def on_exit(self, worker: WorkerProcess, code: int) -> None:
        """Read the last messages of a reaped worker, and then announce its exit.

        worker   the worker
        code     its exit code; minus the signal's number if a signal ended it
        """
        worker.reaped = True
        # Read twice, because `receive` returns the last messages before it raises ChannelClosed.
        # Don't read more often: a child of the worker may still hold the channel's other end, and
        # never stop writing. Messages that remain unread are dropped.
        for _ in range(2):
            if worker.channel is not None:
                self._receive(worker, LAST_READS)
        name = process_info.signal_name(-code) if code < 0 else ""
        out_of_memory = self.ran_out_of_memory(code)
        self._enqueue(events.ChildExited(worker.pid, code, name, out_of_memory))

    def ran_out_of_memory(self, code: int) -> bool:
        """Whether the kernel has killed the process that was just reaped, for lack of memory.

        code  its exit code; minus the signal's number if a signal ended it

        Call this once for each worker and mold, so that the kernel's counter is attributed to the
        right one.
        """
        return code == -signal.SIGKILL and self._out_of_memory.took_one()

    def _receive(self, worker: WorkerProcess, reads: int) -> None:
        """Read a worker's messages.

        worker   the worker
        reads    the most reads, of 64 KiB each
        """
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
        """Empty a worker's dump file, and send the worker the signal to write into it.

        serial   the worker's number
        signum   one of `servo.workers.query_signals`; 0 on a system that has none

        Returns False if the worker can't be asked in this way.
        """
        worker = self._by_serial.get(serial)
        if worker is None or worker.reaped or worker.dump_fd < 0 or not (signum and worker.pid):
            return False
        try:
            os.ftruncate(worker.dump_fd, 0)
        except OSError as error:
            log.debug("The dump file can't be emptied: %s", error)
            return False
        return process_info.send_signal(worker.pid, signum, worker.settings.user)

    def read_dump(self, serial: int) -> str:
        """The text in a worker's dump file since `request_dump`."""
        worker = self._by_serial.get(serial)
        if worker is None or worker.dump_fd < 0:
            return ""
        try:
            return os.pread(worker.dump_fd, MAX_DUMP_BYTES, 0).decode("utf-8", "replace")
        except OSError as error:
            log.debug("The dump file can't be read: %s", error)
            return ""

    # --- helpers ----------------------------------------------------------------------------------

    def kill(self, serial: int, name: str) -> bool:
        """Send a worker a signal, unless it was reaped: then another process may have its pid.

        serial   the worker's number
        name     the signal's name, such as "SIGKILL"

        Returns False if the kernel does not allow it.
        """
        worker = self._by_serial.get(serial)
        if worker is None or worker.reaped:
            return True
        return self.signal(serial, signal.Signals[name])

    def signal(self, serial: int, signum: int) -> bool:
        """Send a worker any signal. Returns False if it has ended, or the kernel does not allow it.

        serial   the worker's number
        signum   the signal's number
        """
        worker = self._by_serial.get(serial)
        if worker is None or worker.reaped:
            return False
        if worker.row is not None and signum in (signal.SIGABRT, signal.SIGKILL):
            # Workers leave new connections to the least busy worker, according to the rows. This
            # worker will accept no more, so its row must not say that it is ready.
            worker.row[row_layout.STATE] = row_layout.STATE_DRAINING
        if not worker.pid:
            worker.due_signal = signum
            return True
        return process_info.send_signal(worker.pid, signum, worker.settings.user)

    def heartbeats(self) -> tuple[dict[int, float], dict[int, float]]:
        """The workers' last heartbeats, and the starts of their oldest requests in flight.

        Both are by serial, in monotonic seconds. The second leaves out workers without requests.
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
        """Forget a reaped worker, and free its row and channel. Returns None if it is unknown."""
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
        """Close all channels. To a running worker this looks as if the arbiter had died."""
        for worker in self._by_serial.values():
            self._close(worker)

    def _close(self, worker: WorkerProcess) -> None:
        self._close_channel(worker)
        worker.close_dump_file()
        worker.close_mold_sock()
        self._table.remove(worker)


def dump_file() -> int:
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


def close_dump_file(fd: int) -> None:
    """Close a dump file; -1 for none."""
    if fd >= 0:
        os.close(fd)


def _work(context: WorkerContext, others: list[Listener]) -> int:
    """Run the worker.

    context  its start-up context
    others   the listeners of other slots, which the worker closes
    """
    for listener in others:
        listener.close(unlink=False)
    # `import_ahead` has loaded it, so that workers share it; the arbiter itself uses none of it.
    from servo.workers.boot import run_worker

    restore_handlers()
    return run_worker(context)
