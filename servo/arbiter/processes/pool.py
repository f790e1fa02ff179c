"""The arbiter's side of the pools: their sockets, boards and processes.

`PoolSupervision` decides, and `Pools` performs the actions: it forks, signals and reaps. The
arbiter takes no part in a task. It opens the listening socket, and once a second reads the pool's
board: how long tasks have run, and how many. When a process has died, it writes the reason to the
board, where the caller of the task finds it.

A pool exists as soon as a generation that declares it is loaded, so that the generation's canary
can use it. Its processes are replaced when the generation is adopted. It ends when the last
generation that declares it is dropped.
"""

from __future__ import annotations

import logging
import os
import select
import signal
import socket
import time
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from servo.arbiter import process_info
from servo.arbiter.cgroup_memory import bytes_of, memory_limit
from servo.arbiter.core.exit_reasons import ExitReason, conclude
from servo.arbiter.core.pool_supervision import (
    ForkProcess,
    LogPool,
    PoolEntry,
    PoolPolicy,
    PoolState,
    PoolSupervision,
    Reading,
    RetireProcess,
    SignalProcess,
)
from servo.arbiter.pool_directory import PoolDirectory
from servo.arbiter.processes import spawn
from servo.arbiter.processes.guard import GuardedWorker
from servo.arbiter.processes.workers import close_dump_file, dump_file
from servo.logs import error_log as log_module
from servo.logs.standard_streams import restore_handlers
from servo.metrics import procfs
from servo.pools.board import BUSY, DIED, TIMED_OUT, Board
from servo.pools.listening import listen, set_queue
from servo.pools.places import places, socket_path
from servo.settings.sections.pools import PoolSettings

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from servo.arbiter.processes.child_table import ChildTable
    from servo.settings.sources import Settings

log = logging.getLogger("servo.error")

_MAX_REPORT_BYTES = 256 << 10
_REFUSAL = (
    "pools can't be used in the arbiter, because its hooks must not wait for a task: submit the "
    "task in a worker, for example in post_worker_init"
)
_ORDINARY = (ExitReason.REPLACED, ExitReason.NOT_NEEDED, ExitReason.LEFT)
# Without a graceful stop, tasks get this many seconds to end.
_QUICK_S = 0.5


@dataclass(eq=False)
class PoolProcess:
    """One process; a `ChildProcess`.

    pool        the pool that it belongs to
    serial      its number, never reused in the server
    slot        its place, 1 to N
    generation  the generation of its settings
    row_index   the number of its row on the board
    sock        the arbiter's end of the socket to it
    owner       the user that it runs as, or None
    dump_fd     the file for its stacks; -1 if there is none
    """

    pool: Pool
    serial: int
    slot: int
    generation: int
    row_index: int
    sock: socket.socket
    owner: int | None = None
    dump_fd: int = -1
    pid: int = 0

    def fileno(self) -> int:
        """See ChildProcess."""
        return self.sock.fileno()

    def on_ready(self, _mask: int) -> None:
        """See ChildProcess."""
        self.pool.pools.on_report(self)

    def on_exit(self, code: int) -> None:
        """See ChildProcess."""
        self.pool.pools.on_exit(self, code)

    def close_in_child(self) -> None:
        """See ChildProcess."""
        self.sock.close()
        close_dump_file(self.dump_fd)
        self.dump_fd = -1


@dataclass(eq=False)
class Pool:
    """One pool.

    pools        the collection that contains it
    name         its name
    listener     its listening socket
    board        its board
    supervision  decides about its processes
    processes    its processes, by serial
    """

    pools: Pools
    name: str
    listener: socket.socket
    board: Board
    supervision: PoolSupervision
    processes: dict[int, PoolProcess]


class Pools:
    """All pools of the server. Without any in the settings, it does nothing and opens nothing.

    table             forks and watches the processes
    ran_out_of_memory see `WorkerProcesses.ran_out_of_memory`
    guard             reports a new process to the guard
    on_change         called when a pool was added or removed
    """

    def __init__(
        self,
        table: ChildTable,
        ran_out_of_memory: Callable[[int], bool],
        guard: Callable[[GuardedWorker], None],
        on_change: Callable[[], None] = lambda: None,
    ) -> None:
        self._on_change = on_change
        self._table = table
        self._ran_out_of_memory = ran_out_of_memory
        self._guard = guard
        self._directory: PoolDirectory | None = None
        self._by_name: dict[str, Pool] = {}
        # The pools that are no longer declared, and whose processes have not ended.
        self._ending: list[Pool] = []
        self._settings: dict[int, Settings] = {}
        self._current = 0
        self._last_serial = 0
        self._ending_at = 0.0
        places.refuse(_REFUSAL)

    def __iter__(self) -> Iterator[Pool]:
        """The pools, and those that are ending."""
        return iter([*self._by_name.values(), *self._ending])

    # --- generations ------------------------------------------------------------------------------

    def load(self, generation: int, settings: Settings, now: float) -> None:
        """Start the pools that a generation declares and that don't exist yet. Raises OSError."""
        self._settings[generation] = settings
        for name, pool in settings.pools.items():
            if name not in self._by_name:
                self._open(name, generation, pool)
                self._perform(self._by_name[name], now)

    def adopt(self, generation: int, now: float) -> None:
        """Replace the processes of all pools by those of the current generation.

        generation  the generation, which was loaded before
        """
        settings = self._settings.get(generation)
        if settings is None or generation == self._current:
            return
        self._current = generation
        for pool in self._by_name.values():
            own = settings.pools.get(pool.name)
            if own is None:
                continue  # workers of an older generation may still use it
            set_queue(pool.listener, own.queue)
            pool.supervision.adopt(_policy(settings, own), generation, now)
            self._perform(pool, now)

    def copy(self, old: int, new: int) -> None:
        """Give a new generation the settings of an old one."""
        if old in self._settings:
            self._settings[new] = self._settings[old]

    def drop(self, generation: int) -> None:
        """Forget a generation without workers, and end the pools that no other one declares."""
        self._settings.pop(generation, None)
        declared = {name for each in self._settings.values() for name in each.pools}
        for name in [name for name in self._by_name if name not in declared]:
            pool = self._by_name.pop(name)
            self._close_pool(pool, time.monotonic())
            self._ending.append(pool)

    # --- the loop ---------------------------------------------------------------------------------

    def tick(self, now: float, *, ending: bool = False) -> None:
        """Enforce the limits. Called once a second.

        now     monotonic seconds
        ending  whether the server stops
        """
        if ending and not self._ending_at:
            self._ending_at = now
        for pool in [pool for pool in self._ending if not pool.processes]:
            self._ending.remove(pool)
            pool.board.close()
        for pool in self:
            readings = {
                process.serial: self._measure(pool, process)
                for process in pool.processes.values()
                if process.pid
            }
            pool.supervision.measured(readings, now)
            self._perform(pool, now)

    def reopen_logs(self) -> None:
        """Make all processes reopen their log files."""
        for pool in self:
            for process in pool.processes.values():
                _signal(process, signal.SIGUSR1)

    def guarded(self) -> list[GuardedWorker]:
        """The processes, for the guard."""
        return [
            GuardedWorker(process.pid, pool.supervision.policy.graceful_timeout_s)
            for pool in self
            for process in pool.processes.values()
            if process.pid
        ]

    def close(self, graceful_s: float = 0.0) -> None:
        """End all processes, and remove the sockets. Called after the end of the workers.

        graceful_s  seconds that running tasks have, since the server began to stop
        """
        now = time.monotonic()
        limit_at = max(now + _QUICK_S, (self._ending_at or now) + graceful_s)
        processes = [each for pool in self for each in pool.processes.values() if each.pid]
        for process in processes:
            _ask_to_end(process)
        for process in processes:
            left_s = max(0.0, limit_at - time.monotonic())
            if not spawn.wait_within(process.pid, left_s):
                log.warning(
                    "process %d of pool %s (pid %d) did not end in time, and is killed",
                    process.slot,
                    process.pool.name,
                    process.pid,
                )
                process_info.send_signal(process.pid, signal.SIGKILL)
                spawn.wait_within(process.pid, 1.0)
        for pool in self:
            pool.listener.close()
            pool.board.close()
        places.boards.clear()
        if self._directory is not None:
            self._directory.close()

    def close_in_child(self) -> None:
        """Close this process's copies of the sockets. The processes themselves are children."""
        for pool in self:
            pool.listener.close()
            pool.board.close_descriptor()
        if self._directory is not None:
            self._directory.close_in_child()

    # --- processes --------------------------------------------------------------------------------

    def _open(self, name: str, generation: int, settings: PoolSettings) -> None:
        whole = self._settings[generation]
        if self._directory is None:
            self._directory = PoolDirectory((whole.user, whole.group))
            places.directory = self._directory.path
        path = socket_path(self._directory.path, name)
        board = Board()
        try:
            listener = listen(path, settings.queue)
            self._directory.give_away(path)
        except OSError:
            board.close()
            raise
        places.boards[name] = board
        self._on_change()
        supervision = PoolSupervision(name, _policy(whole, settings), generation)
        self._by_name[name] = Pool(self, name, listener, board, supervision, {})
        supervision.step(time.monotonic())

    def _perform(self, pool: Pool, now: float) -> None:
        """Perform the actions that the supervision has decided."""
        actions = pool.supervision.actions
        while actions:
            action = actions.pop(0)
            if isinstance(action, LogPool):
                log.log(log_module.LEVELS[action.level], "%s", action.text)
            elif isinstance(action, ForkProcess):
                self._fork_or_fail(pool, action, now)
            elif isinstance(action, RetireProcess):
                _ask_to_end(pool.processes[action.serial])
            elif isinstance(action, SignalProcess):
                signum = signal.Signals[action.signal]
                _signal(pool.processes[action.serial], signum)

    def _fork_or_fail(self, pool: Pool, action: ForkProcess, now: float) -> None:
        try:
            process = self._fork(pool, action)
        except OSError as error:
            pool.supervision.fork_failed(str(error), now)
        else:
            pool.supervision.forked(process.serial, process.pid, action, now)

    def _fork(self, pool: Pool, action: ForkProcess) -> PoolProcess:
        """Fork a process. Raises OSError."""
        settings = self._settings[action.generation]
        self._last_serial += 1
        serial = self._last_serial
        index = pool.board.allocate(serial)
        dump_fd = dump_file()
        try:
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        except OSError:
            pool.board.release(index)
            close_dump_file(dump_fd)
            raise
        ours.setblocking(False)
        process = PoolProcess(
            pool, serial, action.slot, action.generation, index, ours, settings.user
        )
        main = partial(self._main, pool, process, settings, theirs, dump_fd)
        try:
            self._table.start(process, main, keep=(self,))
        except OSError:
            ours.close()
            pool.board.release(index)
            close_dump_file(dump_fd)
            raise
        finally:
            theirs.close()
        process.dump_fd = dump_fd
        pool.processes[serial] = process
        self._guard(GuardedWorker(process.pid, settings.graceful_timeout))
        return process

    def _main(
        self,
        own: Pool,
        process: PoolProcess,
        settings: Settings,
        order: socket.socket,
        dump_fd: int,
    ) -> int:
        """Run the process."""
        for pool in self:
            pool.board.close_descriptor()
            if pool is not own:
                pool.listener.close()
        if self._directory is not None:
            self._directory.close_in_child()
        restore_handlers()
        # Imported here because the arbiter needs none of the code that runs applications.
        from servo.workers.pool_process import PoolContext, run_pool_process

        row = own.board.row(process.row_index)
        return run_pool_process(
            PoolContext(own.name, process.slot, settings, own.listener, order, row, dump_fd)
        )

    def on_report(self, process: PoolProcess) -> None:
        """Read what a process reports: that it is ready, or why it can't boot."""
        from_process, pool = process.sock, process.pool
        try:
            data = from_process.recv(_MAX_REPORT_BYTES)
        except BlockingIOError:
            return
        except OSError as error:
            log.debug("A process of the pool %s: %s", pool.name, error)
            data = b""
        now = time.monotonic()
        if not data:
            self._table.unwatch(process)  # its exit follows
        elif data == b"ready":
            pool.supervision.ready(process.serial, now)
        else:
            text = data.removeprefix(b"failed:").decode("utf-8", "replace")
            pool.supervision.boot_failed(process.serial, text)
        self._perform(pool, now)

    def on_exit(self, process: PoolProcess, code: int) -> None:
        """Handle the exit of a process: tell the caller of its task, and fill its slot."""
        pool = process.pool
        self._read_last_report(process)
        row = pool.board.row(process.row_index)
        entry = pool.supervision.entries[process.serial]
        name = process_info.signal_name(-code) if code < 0 else ""
        out_of_memory = self._ran_out_of_memory(code)
        reason, text = conclude(code, name, entry.cause, entry.signal_sent, out_of_memory)
        is_failure = reason not in _ORDINARY
        if -code == signal.SIGIO:
            is_failure, text = False, "its task was cancelled by the caller (cancel_running)"
        kind = TIMED_OUT if entry.timed_out else DIED
        if row.key:
            pool.board.count_lost()
        pool.board.record_exit(process.serial, row.key, process.pid, kind, text)
        pool.board.release(process.row_index)
        del pool.processes[process.serial]
        self._table.remove(process)
        process.close_in_child()
        now = time.monotonic()
        pool.supervision.exited(process.serial, text, now, is_failure=is_failure)
        self._perform(pool, now)

    def _read_last_report(self, process: PoolProcess) -> None:
        """Read the reason why a process could not boot, if it was not read yet."""
        poller = select.poll()
        poller.register(process.sock, select.POLLIN)
        for _ in range(2):
            if poller.poll(0):
                self.on_report(process)

    def _measure(self, pool: Pool, process: PoolProcess) -> Reading:
        row = pool.board.row(process.row_index)
        busy_s, label = None, ""
        if row.state == BUSY:
            busy_s, label = (time.monotonic_ns() - row.since_ns) / 1e9, row.label
        memory = 0
        if pool.supervision.policy.max_memory_bytes:
            memory = procfs.resident_of(process.pid) or 0
        return Reading(busy_s, label, row.started, memory)

    def _close_pool(self, pool: Pool, now: float) -> None:
        """Close a pool's socket, and ask its processes to end."""
        pool.listener.close()
        if self._directory is not None:
            path = socket_path(self._directory.path, pool.name)
            if os.path.exists(path):
                os.unlink(path)
        places.boards.pop(pool.name, None)
        self._on_change()
        pool.supervision.end(now)
        self._perform(pool, now)

    # --- upgrades ---------------------------------------------------------------------------------

    def to_state(self, pass_on: Callable[[int], int]) -> dict[str, Any] | None:
        """Return the pools as JSON values, for `restore`; None without any.

        pass_on  keeps a descriptor open for the next program, and returns it
        """
        if self._directory is None:
            return None
        return {
            "directory": self._directory.to_state(pass_on),
            "last_serial": self._last_serial,
            "pools": [
                {
                    "name": pool.name,
                    "listener": pass_on(pool.listener.fileno()),
                    "board": pass_on(pool.board.fd),
                    "processes": [
                        {
                            "serial": process.serial,
                            "slot": process.slot,
                            "generation": process.generation,
                            "pid": process.pid,
                            "row_index": process.row_index,
                            "sock": pass_on(process.fileno()),
                            "dump_fd": pass_on(process.dump_fd),
                            "state": pool.supervision.entries[process.serial].state.value,
                            "spawned_at": pool.supervision.entries[process.serial].spawned_at,
                        }
                        for process in pool.processes.values()
                    ],
                }
                for pool in self._by_name.values()
            ],
        }

    def restore(
        self,
        state: Mapping[str, Any],
        take: Callable[[int], int],
        generation: int,
        settings: Settings,
    ) -> None:
        """Continue with the pools of the previous program of this process.

        state       the result of that program's `to_state`
        take        claims a descriptor from the previous program, and returns it
        generation  the current generation
        settings    its settings

        Raises KeyError, TypeError, ValueError or OSError for an invalid state.
        """
        self._settings[generation] = settings
        self._current = generation
        self._directory = PoolDirectory.from_state(state["directory"], take)
        places.directory = self._directory.path
        self._last_serial = int(state["last_serial"])
        now = time.monotonic()
        for each in state["pools"]:
            name = str(each["name"])
            listener = socket.socket(fileno=take(int(each["listener"])))
            board = places.boards[name] = Board(take(int(each["board"])))
            own = settings.pools.get(name)
            policy = _policy(settings, own or PoolSettings())
            supervision = PoolSupervision(name, policy, generation)
            pool = Pool(self, name, listener, board, supervision, {})
            self._by_name[name] = pool
            for process in each["processes"]:
                self._adopt(pool, process, take, settings)
            if own is None:
                self._close_pool(self._by_name.pop(name), now)
                self._ending.append(pool)

    def _adopt(
        self,
        pool: Pool,
        state: Mapping[str, Any],
        take: Callable[[int], int],
        settings: Settings,
    ) -> None:
        process = PoolProcess(
            pool,
            int(state["serial"]),
            int(state["slot"]),
            int(state["generation"]),
            int(state["row_index"]),
            socket.socket(fileno=take(int(state["sock"]))),
            settings.user,
            take(int(state["dump_fd"])),
            int(state["pid"]),
        )
        process.sock.setblocking(False)
        pool.board.take_over(process.row_index)
        entry = PoolEntry(
            process.serial,
            process.pid,
            process.slot,
            process.generation,
            float(state["spawned_at"]),
        )
        entry.state = PoolState(state["state"])
        pool.supervision.restore(entry)
        self._table.adopt(process)
        pool.processes[process.serial] = process


def _policy(settings: Settings, pool: PoolSettings) -> PoolPolicy:
    limit = memory_limit() if pool.max_memory else None
    return PoolPolicy(
        pool.workers,
        pool.timeout,
        pool.max_tasks,
        bytes_of(pool.max_memory, limit),
        settings.boot_timeout,
        settings.graceful_timeout,
    )


def _ask_to_end(process: PoolProcess) -> None:
    """Ask a process to end after its task: it reads the end of the stream."""
    try:
        process.sock.shutdown(socket.SHUT_WR)
    except OSError as error:  # it has ended
        log.debug("pool %s: process %d: %s", process.pool.name, process.slot, error)


def _signal(process: PoolProcess, signum: int) -> None:
    if process.pid:
        process_info.send_signal(process.pid, signum, process.owner)
