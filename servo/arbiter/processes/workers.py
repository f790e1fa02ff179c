"""The worker processes as the loop handles them: their pids, channels and rows."""

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
from servo.arbiter.hook_objects import WorkerFacade
from servo.arbiter.processes import spawn
from servo.ipc.channel import ChannelClosed, ChannelOverflow, channel_pair
from servo.ipc.drops import Drops
from servo.ipc.messages import AppMessage
from servo.logs.standard_streams import handlers_as_before
from servo.shared_memory import row_layout
from servo.workers.context import WorkerContext

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from servo.arbiter.core.events import Event
    from servo.arbiter.hook_objects import ServerFacade
    from servo.ipc.channel import Channel
    from servo.ipc.messages import Message
    from servo.net.listeners import Listener
    from servo.net.tls import TLS
    from servo.settings.sources import Settings
    from servo.shared_memory.scoreboard import Scoreboard

log = logging.getLogger("servo.error")

# faulthandler prints at most 100 threads of 100 frames.
MAX_DUMP_BYTES = 256 << 10
# A turn of the loop takes at most so many times 64 KiB from one worker's channel.
READS_A_TURN = 1
# ... and, when it is dead, all that a socket's buffer may hold.
LAST_READS = 16


@dataclass(slots=True, eq=False)
class Child:
    """One worker process. `channel` is the arbiter's end, None when it is lost; `dump_fd` is a file
    that the worker writes to when it is asked by a signal.

    mail       messages of its application that are to be routed; None after the last
    owed       requests that it was given, by the asker's serial and number
    overflows  messages to it that found no room in its queue
    """

    serial: int
    slot: int
    generation: int
    settings: Settings
    facade: WorkerFacade
    tls: TLS | None
    pid: int = 0
    row_index: int = -1
    row: memoryview | None = None
    channel: Channel | None = None
    reaped: bool = False
    dump_fd: int = -1
    mail: deque[AppMessage | None] = field(default_factory=deque)
    owed: dict[tuple[int, int], AppMessage] = field(default_factory=dict)
    overflows: Drops = field(default_factory=Drops)


class Children:
    """Every worker that was forked and not yet released.

    tell             takes an event for the inbox
    close_inherited  closes, in a child, what is the arbiter's alone

    with_mail        those whose `mail` has something in it
    """

    def __init__(
        self,
        scoreboard: Scoreboard,
        epoll: select.epoll,
        tell: Callable[[Event], None],
        close_inherited: Callable[[], None],
    ) -> None:
        self._scoreboard = scoreboard
        self._epoll = epoll
        self._tell = tell
        self._close_inherited = close_inherited
        self._by_serial: dict[int, Child] = {}
        self._by_fd: dict[int, Child] = {}
        self._by_slot: dict[int, list[Child]] = {}
        self.with_mail: deque[Child] = deque()

    def __iter__(self) -> Iterator[Child]:
        return iter(self._by_serial.values())

    def get(self, serial: int) -> Child | None:
        """The worker with this serial, until it is released."""
        return self._by_serial.get(serial)

    def in_slot(self, slot: int) -> list[Child]:
        """The workers that carry a slot, the oldest first."""
        return self._by_slot.get(slot, [])

    def facades(self) -> dict[int, WorkerFacade]:
        """What hooks see, by pid."""
        return {child.pid: child.facade for child in self._by_serial.values()}

    # --- forking ----------------------------------------------------------------------------------

    def prepare(self, action: actions.Fork, settings: Settings, tls: TLS | None) -> Child:
        """A worker that is about to be forked."""
        facade = WorkerFacade(action.serial, action.slot, settings)
        return Child(action.serial, action.slot, action.generation, settings, facade, tls)

    def fork(
        self, child: Child, listeners: list[Listener], others: list[Listener], server: ServerFacade
    ) -> int:
        """Fork it; its pid. Raises OSError, ScoreboardError.

        listeners  what it accepts from
        others     what it has no business with
        """
        index = self._scoreboard.allocate(
            child.serial, child.slot, child.generation, monotonic_ns()
        )
        try:
            ours, theirs = channel_pair()
        except OSError:
            self._scoreboard.release(index)
            raise
        child.dump_fd = _dump_file()
        context = WorkerContext(
            slot=child.slot,
            serial=child.serial,
            generation=child.generation,
            settings=child.settings,
            listeners=listeners,
            channel=theirs,
            scoreboard=self._scoreboard,
            row_index=index,
            arbiter_pid=os.getpid(),
            server=server,
            tls=child.tls,
            dump_fd=child.dump_fd,
            kept=child.facade.kept(),
        )

        def close() -> None:
            self._close_inherited()
            ours.close()
            for listener in others:
                listener.close(unlink=False)

        try:
            # First what may fail: a worker that is forked has to be known.
            self._epoll.register(ours.fileno(), select.EPOLLIN)
            child.pid = spawn.fork(partial(_work, context), close)
        except OSError:
            self._scoreboard.release(index)
            ours.close()
            _close_dump(child)
            raise
        finally:
            theirs.close()
        child.facade.pid = child.pid
        child.row_index = index
        child.row = self._scoreboard.row(index)
        self._scoreboard.forked(index, child.pid)
        child.channel = ours
        self._by_serial[child.serial] = child
        self._by_slot.setdefault(child.slot, []).append(child)
        self._by_fd[ours.fileno()] = child
        return child.pid

    # --- channels ---------------------------------------------------------------------------------

    def send(self, serial: int, message: Message) -> None:
        """Send, or queue, a message."""
        child = self._by_serial.get(serial)
        if child is None or child.channel is None:
            return
        try:
            child.channel.send(message)
        except ChannelOverflow as error:
            log.warning("Worker %d (pid %d): %s", child.slot, child.pid, error)
        except ChannelClosed:
            self._lose(child)
        else:
            if child.channel.wants_write:
                self._epoll.modify(child.channel.fileno(), select.EPOLLIN | select.EPOLLOUT)

    def flush(self, child: Child) -> None:
        """Send what is queued for a worker."""
        if child.channel is None:
            return
        try:
            if not child.channel.flush():
                self._epoll.modify(child.channel.fileno(), select.EPOLLIN | select.EPOLLOUT)
        except ChannelClosed:
            # What it has said is there to be read, and its end after that: epoll tells.
            log.debug("Worker %d (pid %d) gets no more messages", child.slot, child.pid)

    def on_channel(self, fd: int, mask: int) -> None:
        """A channel's descriptor is ready."""
        child = self._by_fd.get(fd)
        if child is None or child.channel is None:
            return
        if mask & select.EPOLLOUT:
            try:
                if child.channel.flush():
                    self._epoll.modify(fd, select.EPOLLIN)
            except ChannelClosed:
                self._lose(child)
                return
        # What was read last is routed first: a flood waits in the sender's own process.
        if mask & ~select.EPOLLOUT and not child.mail:
            self._receive(child, READS_A_TURN)

    def read_last_words(self, pid: int) -> bool:
        """A child was reaped: take in all that it had sent. False if it was no worker."""
        children = (child for child in self._by_serial.values() if not child.reaped)
        child = next((child for child in children if child.pid == pid), None)
        if child is None:
            return False
        child.reaped = True
        # Twice, as the end is raised after what came before it. A process that the worker has left
        # behind may hold the channel and fill it without end: the rest is dropped with the worker.
        for _ in range(2):
            if child.channel is not None:
                self._receive(child, LAST_READS)
        return True

    def _receive(self, child: Child, reads: int) -> bool:
        """Take in what is there. False when that is nothing, or the channel is lost."""
        assert child.channel is not None
        try:
            messages = child.channel.receive(reads)
        except ChannelClosed as error:
            log.debug("Worker %d (pid %d): %s", child.slot, child.pid, error)
            self._lose(child)
            return False
        for message in messages:
            if isinstance(message, AppMessage):
                self._add_mail(child, message)
            else:
                self._tell(events.MessageReceived(child.serial, message))
        return bool(messages)

    def _add_mail(self, child: Child, message: AppMessage | None) -> None:
        if not child.mail:
            self.with_mail.append(child)
        child.mail.append(message)

    def _lose(self, child: Child) -> None:
        self._close_channel(child)
        self._tell(events.ChannelLost(child.serial))

    def _close_channel(self, child: Child) -> None:
        if child.channel is not None:
            fd = child.channel.fileno()
            del self._by_fd[fd]
            try:
                self._epoll.unregister(fd)
            except OSError as error:
                log.debug("epoll_ctl: %s", error)  # closing takes it out as well
            child.channel.close()
            child.channel = None
            self._add_mail(child, None)

    # --- asking by a signal -----------------------------------------------------------------------

    def ask(self, serial: int, signum: int) -> bool:
        """Send an asking signal to a worker, its dump file emptied first. False: it can't be."""
        child = self._by_serial.get(serial)
        if child is None or child.reaped or child.dump_fd < 0 or not signum:
            return False
        try:
            os.ftruncate(child.dump_fd, 0)
        except OSError as error:
            log.debug("The dump file can't be emptied: %s", error)
            return False
        return process_info.send_signal(child.pid, signum, child.settings.user)

    def dumped(self, serial: int) -> str:
        """What a worker has written to its dump file since `ask`."""
        child = self._by_serial.get(serial)
        if child is None or child.dump_fd < 0:
            return ""
        try:
            return os.pread(child.dump_fd, MAX_DUMP_BYTES, 0).decode("utf-8", "replace")
        except OSError as error:
            log.debug("The dump file can't be read: %s", error)
            return ""

    # --- the rest ---------------------------------------------------------------------------------

    def kill(self, serial: int, name: str) -> bool:
        """Send the signal of that name, unless it was reaped: another may have its pid by now.

        False: this process is not allowed to.
        """
        child = self._by_serial.get(serial)
        if child is None or child.reaped:
            return True
        if child.row is not None and name in ("SIGABRT", "SIGKILL"):
            # Its siblings' gates leave it no more connections.
            child.row[row_layout.STATE] = row_layout.STATE_DRAINING
        return process_info.send_signal(child.pid, signal.Signals[name], child.settings.user)

    def heartbeats(self) -> tuple[dict[int, float], dict[int, float]]:
        """By serial, in monotonic seconds: the last heartbeats, and the oldest requests' starts."""
        now = monotonic_ns()
        for serial in self._scoreboard.check(now):
            self._tell(events.RowOverwritten(serial))
        beats, oldest = {}, {}
        for serial, child in self._by_serial.items():
            assert child.row is not None
            beats[serial] = min(child.row[row_layout.BEAT_NS], now) / 1e9
            if child.row[row_layout.OLDEST_START_NS]:
                oldest[serial] = min(child.row[row_layout.OLDEST_START_NS], now) / 1e9
        return beats, oldest

    def release(self, serial: int) -> WorkerFacade | None:
        """Forget a reaped worker; free its row and channel."""
        child = self._by_serial.pop(serial, None)
        if child is None:
            return None
        self._close_channel(child)
        _close_dump(child)
        in_slot = self._by_slot[child.slot]
        in_slot.remove(child)
        if not in_slot:
            del self._by_slot[child.slot]
        self._scoreboard.release(child.row_index)
        return child.facade

    def close(self) -> None:
        """Close all channels."""
        for child in self._by_serial.values():
            self._close_channel(child)
            _close_dump(child)

    def close_in_child(self) -> None:
        """In a forked child: close the arbiter's ends of its siblings' channels."""
        for child in self._by_serial.values():
            if child.channel is not None:
                child.channel.close()
            _close_dump(child)


def _dump_file() -> int:
    """A nameless file in memory that is appended to; -1 where there is no such thing."""
    if not hasattr(os, "memfd_create"):
        return -1
    try:
        fd = os.memfd_create("servo-dump", os.MFD_CLOEXEC)
        fcntl.fcntl(fd, fcntl.F_SETFL, os.O_APPEND)
    except OSError as error:
        log.debug("No dump file: %s", error)
        return -1
    return fd


def _close_dump(child: Child) -> None:
    if child.dump_fd >= 0:
        os.close(child.dump_fd)
        child.dump_fd = -1


def _work(context: WorkerContext) -> int:
    # Only here, in the worker, is the code that runs applications wanted.
    from servo.workers.worker import run_worker

    handlers_as_before()
    return run_worker(context)
