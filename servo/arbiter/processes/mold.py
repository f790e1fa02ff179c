"""The arbiter's side of molds: one process for each generation, which forks its workers.

`servo.workers.mold` is the other side. The arbiter orders a worker from a mold, and the mold
answers with the pid of a process that has become the arbiter's child. The mold gets one order at a
time. The others wait here, so an order can still be cancelled.

If a mold dies during an order, the arbiter gets no pid, and does not know whether the mold had
forked the worker. Two facts help to find out. A worker first writes its pid into its row of the
scoreboard. And if no worker exists, no process has the other end of the worker's channel.
"""

from __future__ import annotations

import json
import logging
import os
import select
import signal
import socket
import time
from collections import deque
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from servo.arbiter import process_info
from servo.arbiter.core import events
from servo.arbiter.processes import spawn
from servo.logs.standard_streams import restore_handlers
from servo.shared_memory import row_layout
from servo.workers.fork_order import ForkOrder, pickle_attributes

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from servo.arbiter.core.events import Event
    from servo.arbiter.hook_objects import HookServer
    from servo.arbiter.listeners import Sockets
    from servo.arbiter.processes.child_table import ChildTable
    from servo.arbiter.processes.workers import WorkerProcess, WorkerProcesses
    from servo.ipc.channel import Channel
    from servo.net.listeners import Listener
    from servo.net.tls import TLS
    from servo.settings.sources import Settings
    from servo.shared_memory.scoreboard import Scoreboard

log = logging.getLogger("servo.error")

# An unneeded mold is told to end, and killed after this many seconds. It normally ends at once,
# unless it is stopped or stuck.
END_S = 5.0
_MAX_ANSWER_BYTES = 1 << 18


@dataclass(slots=True, eq=False)
class Ordered:
    """An order for a worker.

    worker     the arbiter's side of the worker
    channel    the worker's end of its channel
    listeners  the listening sockets for it
    mold_sock  the worker's end of the socket to the mold that it may fork, or None
    """

    worker: WorkerProcess
    channel: Channel
    listeners: list[Listener]
    mold_sock: socket.socket | None = None

    def send(self, sock: socket.socket) -> None:
        """Send the order to a mold. Raises OSError and ValueError; see `ForkOrder.send`."""
        worker = self.worker
        order = ForkOrder(
            serial=worker.serial,
            slot=worker.slot,
            row_index=worker.row_index,
            kept=pickle_attributes(worker.hook_worker.kept()),
            listeners=[
                (each.address, each.name, each.requested, each.label) for each in self.listeners
            ],
            has_dump_file=worker.dump_fd >= 0,
            has_mold_socket=self.mold_sock is not None,
        )
        mold_fd = self.mold_sock.fileno() if self.mold_sock is not None else -1
        order.send(sock, self.channel, worker.dump_fd, self.listeners, mold_fd)

    def close(self) -> None:
        """Close this process's copies of the worker's ends."""
        self.channel.close()
        if self.mold_sock is not None:
            self.mold_sock.close()


class Mold:
    """One mold; a `ChildProcess`.

    molds       the collection that contains it
    generation  the generation of its workers
    sock        the arbiter's end of the socket for orders and answers
    owner       the user that it runs as, or None

    under_way   the current order, or None
    waiting     the orders to send later
    failure     the mold's report of a failed start: (kind, text); ("", "") if there is none
    """

    def __init__(
        self, molds: MoldProcesses, generation: int, sock: socket.socket, owner: int | None
    ) -> None:
        self.pid = 0
        self.is_reaped = False
        self.generation = generation
        self.under_way: Ordered | None = None
        self.waiting: deque[Ordered] = deque()
        self.failure = ("", "")
        self.sock = sock
        self._molds = molds
        self._owner = owner

    def fileno(self) -> int:
        """The arbiter's end of the socket; -1 after it is closed."""
        return self.sock.fileno()

    def on_ready(self, _mask: int) -> None:
        """Read an answer of the mold, or the end of its socket."""
        self._molds.on_answers(self)

    def on_exit(self, code: int) -> None:
        """See ChildProcess."""
        self._molds.on_exit(self, code)

    def kill(self, signum: int) -> None:
        """Send the process a signal, unless it was reaped: then its pid may be reused."""
        if self.pid and not self.is_reaped:
            process_info.send_signal(self.pid, signum, self._owner)

    def close_in_child(self) -> None:
        """Close this process's copy of the socket, and the descriptors of orders that wait."""
        self.sock.close()
        for ordered in (*self.waiting, *([self.under_way] if self.under_way else ())):
            ordered.close()


class MoldProcesses:
    """All molds, each from its fork until it is reaped.

    table       forks and watches the processes
    scoreboard  has a row for each worker
    workers     takes over the forked workers
    enqueue     puts an event into the arbiter's inbox
    on_forked   called with each forked worker

    on_end      called with each mold that was reaped
    """

    on_end: Callable[[Mold], None] | None = None

    def __init__(
        self,
        table: ChildTable,
        scoreboard: Scoreboard,
        workers: WorkerProcesses,
        enqueue: Callable[[Event], None],
        on_forked: Callable[[WorkerProcess], None],
    ) -> None:
        self._table = table
        self._scoreboard = scoreboard
        self._workers = workers
        self._enqueue = enqueue
        self._on_forked = on_forked
        self._by_generation: dict[int, Mold] = {}
        # When to kill the unneeded molds that have not ended, in monotonic seconds.
        self._ending: dict[Mold, float] = {}
        # The orders of molds that died before they answered.
        self._lost: list[Ordered] = []

    def __iter__(self) -> Iterator[Mold]:
        return iter([*self._by_generation.values(), *self._ending])

    @property
    def are_forking(self) -> bool:
        """Whether an order is unanswered."""
        molds = self._by_generation.values()
        return bool(self._lost) or any(mold.under_way or mold.waiting for mold in molds)

    def start(
        self, generation: int, settings: Settings, tls: TLS | None, server: HookServer
    ) -> None:
        """Fork the mold of a generation. An event reports the outcome.

        generation, settings, tls  the generation, its settings and TLS contexts
        server                     the `server` that hooks in its workers get
        """
        try:
            problem = spawn.adopt_orphans()
            if problem is not None:
                raise OSError(problem)
            ours, theirs = _order_sockets()
        except OSError as error:
            self._enqueue(events.MoldEnded(generation, 0, f"it can't be forked: {error}"))
            return
        mold = Mold(self, generation, ours, settings.user)
        context = (generation, settings, tls, self._scoreboard, server, os.getpid(), theirs)
        try:
            self._table.start(mold, partial(_run, *context), keep=(self._scoreboard,))
        except OSError as error:
            ours.close()
            self._enqueue(events.MoldEnded(generation, 0, f"it can't be forked: {error}"))
        else:
            self._by_generation[generation] = mold
        finally:
            theirs.close()

    def order(self, worker: WorkerProcess, sockets: Sockets) -> None:
        """Order a worker from its generation's mold. An event reports the outcome.

        worker   the worker, from `WorkerProcesses.prepare`
        sockets  the listening sockets; the worker gets those of its slot

        Raises OSError, ScoreboardError or BindError, without sending an order.
        """
        listeners = sockets.for_slot(worker.slot)
        channel = self._workers.prepare_order(worker)
        ordered = Ordered(worker, channel, listeners)
        if worker.settings.refork_after:
            try:
                worker.mold_sock, ordered.mold_sock = _order_sockets()
            except OSError as error:
                self._fail(ordered, str(error))
                return
        mold = self._by_generation.get(worker.generation)
        if mold is None:
            self._fail(ordered, "its mold has just ended")
        else:
            mold.waiting.append(ordered)
            self._send_next(mold)

    def expect(self, generation: int, worker: WorkerProcess) -> None:
        """Expect the mold that a worker will fork. Call `adopt` or `drop` later.

        generation  the mold's generation
        worker      the worker; after an upgrade it has no socket for a mold, and forks none
        """
        sock, worker.mold_sock = worker.mold_sock, None
        if sock is not None:
            mold = Mold(self, generation, sock, worker.settings.user)
            self._by_generation[generation] = mold
            self._table.expect(mold)

    def adopt(self, generation: int, pid: int) -> None:
        """Take over the mold that a worker has forked. An event reports the outcome.

        generation  the mold's generation
        pid         the mold's process id, as the worker has reported it
        """
        mold = self._by_generation.get(generation)
        try:
            adopted = mold is not None and self._table.adopt_orphan(mold, pid, select.EPOLLIN)
            problem = "" if adopted else f"process {pid} is not a mold"
        except OSError as error:
            problem = str(error)
        if problem:
            self._forget(generation)
            self._enqueue(events.MoldEnded(generation, pid, problem))

    def _forget(self, generation: int) -> None:
        """Forget a mold whose pid is not known. It ends when it reads the end of its socket."""
        mold = self._by_generation.pop(generation, None)
        if mold is not None:
            self._table.remove(mold)
            mold.sock.close()

    def cancel(self, serial: int) -> None:
        """Cancel the order for a worker that should be killed.

        A mold that already has the order, but has not forked the worker, is stuck: kill it.
        """
        for mold in self._by_generation.values():
            if mold.under_way is not None and mold.under_way.worker.serial == serial:
                mold.kill(signal.SIGKILL)
            for ordered in [each for each in mold.waiting if each.worker.serial == serial]:
                mold.waiting.remove(ordered)
                self._fail(ordered, "it is no longer needed")

    def kill(self, generation: int, name: str) -> None:
        """Send the signal `name`, such as "SIGKILL", to the mold of a generation."""
        mold = self._by_generation.get(generation)
        if mold is not None:
            mold.kill(signal.Signals[name])

    def drop(self, generation: int) -> None:
        """End the mold of a generation that needs no more workers."""
        mold = self._by_generation.get(generation)
        if mold is not None and not mold.pid:
            self._forget(generation)
        elif mold is not None:
            del self._by_generation[generation]
            self._table.release_descriptor(mold)
            mold.sock.close()
            self._ending[mold] = time.monotonic() + END_S

    def tick(self, now: float) -> None:
        """Kill molds that should have ended, and settle the orders of dead molds.

        now  monotonic seconds
        """
        for mold, due in self._ending.items():
            if now >= due:
                mold.kill(signal.SIGKILL)
        self._settle_lost()

    def reopen_logs(self) -> None:
        """Make all molds reopen their log files: the workers that they fork inherit these."""
        for mold in (*self._by_generation.values(), *self._ending):
            mold.kill(signal.SIGUSR1)

    def close(self) -> None:
        """Kill all molds, and wait for their ends, because the server ends."""
        molds = (*self._by_generation.values(), *self._ending)
        for mold in molds:
            mold.kill(signal.SIGKILL)
        for mold in molds:
            if mold.pid:
                spawn.wait_within(mold.pid, 1.0)
            self._table.remove(mold)
            mold.close_in_child()

    # --- upgrades ---------------------------------------------------------------------------------

    def to_state(self, generation: int, pass_on: Callable[[int], int]) -> list[dict[str, Any]]:
        """Return the mold of a generation as JSON values, for `restore`. No order is under way.

        generation  the current generation. The molds of all others end with this program
        pass_on     keeps a descriptor open for the next program, and returns it
        """
        assert not self.are_forking
        mold = self._by_generation.get(generation)
        if mold is None or not mold.pid or mold.is_reaped:
            return []
        return [{"generation": generation, "pid": mold.pid, "sock": pass_on(mold.fileno())}]

    def restore(
        self, state: Iterable[Mapping[str, Any]], take: Callable[[int], int], owner: int | None
    ) -> None:
        """Continue with the molds that the previous program of this process has forked.

        state  the result of that program's `to_state`
        take   claims a descriptor from the previous program, and returns it
        owner  the user that the molds run as, or None

        Raises KeyError, TypeError, ValueError or OSError for an invalid state.
        """
        for each in state:
            sock = socket.socket(fileno=take(int(each["sock"])))
            sock.setblocking(False)
            mold = Mold(self, int(each["generation"]), sock, owner)
            mold.pid = int(each["pid"])
            self._table.adopt(mold)
            self._by_generation[mold.generation] = mold

    # --- a mold's answers -------------------------------------------------------------------------

    def on_answers(self, mold: Mold) -> None:
        """Read a mold's answers."""
        while True:
            try:
                data = mold.sock.recv(_MAX_ANSWER_BYTES)
            except BlockingIOError:
                return
            except OSError as error:
                log.debug("The mold of generation %d: %s", mold.generation, error)
                data = b""
            if not data:
                self._table.unwatch(mold)  # its exit follows
                return
            try:
                self._on_answer(mold, json.loads(data))
            except (ValueError, KeyError, TypeError) as error:
                log.error(
                    "The mold of generation %d has sent an invalid answer (%r); killing it",
                    mold.generation,
                    error,
                )
                mold.kill(signal.SIGKILL)
                self._table.unwatch(mold)
                return

    def _on_answer(self, mold: Mold, answer: dict[str, Any]) -> None:
        if "ready" in answer:
            self._enqueue(events.MoldReady(mold.generation, mold.pid))
        elif "failed" in answer:
            mold.failure = (str(answer["failed"]), str(answer["text"]))
        else:
            ordered = mold.under_way
            if ordered is None or answer["serial"] != ordered.worker.serial:
                raise ValueError("no such order")
            # If this line raises, the mold is killed. The order stays under way until the mold's
            # exit, which settles it.
            pid = answer.get("pid")
            if pid is None:
                self._fail(ordered, str(answer["error"]))
            elif not self._adopt(ordered, int(pid)):
                raise ValueError(f"process {pid} is not a worker")
            mold.under_way = None
            self._send_next(mold)

    def on_exit(self, mold: Mold, code: int) -> None:
        """Handle the exit of a mold.

        mold  the mold
        code  its exit code; minus the signal's number if a signal ended it
        """
        mold.is_reaped = True
        if self.on_end is not None:
            self.on_end(mold)
        out_of_memory = self._workers.ran_out_of_memory(code)
        if mold in self._ending:
            del self._ending[mold]
            self._table.remove(mold)
            return
        self.on_answers(mold)
        kind, report = mold.failure
        text, _, details = report.partition("\n")
        if out_of_memory:
            text = "killed by the kernel: out of memory"
        elif not text:
            how = f"exit code {code}" if code >= 0 else process_info.signal_name(-code)
            text = f"its process ended ({how})"
        del self._by_generation[mold.generation]
        self._enqueue(events.MoldEnded(mold.generation, mold.pid, text, kind, details))
        if mold.under_way is not None:
            self._lost.append(mold.under_way)
        while mold.waiting:
            self._fail(mold.waiting.popleft(), "its mold has ended")
        self._table.remove(mold)
        mold.sock.close()
        self._settle_lost()

    # --- orders -----------------------------------------------------------------------------------

    def _send_next(self, mold: Mold) -> None:
        while mold.under_way is None and mold.waiting:
            ordered = mold.waiting.popleft()
            try:
                ordered.send(mold.sock)
            except (OSError, ValueError) as error:
                self._fail(ordered, f"its mold takes no order: {error}")
            else:
                mold.under_way = ordered

    def _adopt(self, ordered: Ordered, pid: int) -> bool:
        worker = ordered.worker
        try:
            if not self._workers.adopt_orphan(worker, pid):
                return False
        except OSError as error:
            self._fail(ordered, str(error))  # the worker ends by itself: its channel is closed
            return True
        ordered.close()
        self._on_forked(worker)
        return True

    def _fail(self, ordered: Ordered, text: str) -> None:
        ordered.close()
        self._workers.fork_failed(ordered.worker, text)

    def _settle_lost(self) -> None:
        """Find out whether the workers of dead molds exist."""
        lost, self._lost = self._lost, []
        for ordered in lost:
            # Close this process's copy of the worker's end. Otherwise `_is_hung_up` would never be
            # true.
            ordered.close()
            worker = ordered.worker
            assert worker.row is not None
            pid = worker.row[row_layout.PID]
            if pid and self._adopt(ordered, pid):
                continue
            if worker.channel is None or _is_hung_up(worker.channel.fileno()):
                self._fail(ordered, "its mold ended while forking it")
            else:
                self._lost.append(ordered)


def _order_sockets() -> tuple[socket.socket, socket.socket]:
    """Make the sockets for orders and answers: the arbiter's, and the mold's. Raises OSError."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.setblocking(False)
    return ours, theirs


def _is_hung_up(fd: int) -> bool:
    """Whether no process has the other end of a socket."""
    poller = select.poll()
    poller.register(fd, 0)
    return any(mask & select.POLLHUP for _, mask in poller.poll(0))


def _run(
    generation: int,
    settings: Settings,
    tls: TLS | None,
    scoreboard: Scoreboard,
    server: HookServer,
    arbiter: int,
    sock: socket.socket,
) -> int:
    """Run the mold's process."""
    spawn.die_with(arbiter)
    process_info.set_title(f"servo: mold of generation {generation} [{settings.app}]")
    restore_handlers()
    # Imported here because the arbiter needs none of the code that runs applications.
    from servo.workers.mold import MoldContext, run_mold

    return run_mold(
        MoldContext(
            generation=generation,
            settings=settings,
            tls=tls,
            scoreboard=scoreboard,
            server=server,
            arbiter_pid=arbiter,
            sock=sock,
            run_to_exit=spawn.run_to_exit,
            die_with_arbiter=partial(spawn.die_with, arbiter),
        )
    )
