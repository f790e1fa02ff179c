"""The worker processes as the loop handles them: their pids, channels and rows."""

from __future__ import annotations

import logging
import os
import select
import signal
from dataclasses import dataclass
from functools import partial
from time import monotonic_ns
from typing import TYPE_CHECKING

from servo.arbiter import events as ev
from servo.arbiter import spawn
from servo.arbiter.facade import WorkerFacade
from servo.ipc.channel import ChannelClosed, ChannelOverflow, channel_pair
from servo.observe import scoreboard as board
from servo.workers.context import WorkerContext

if TYPE_CHECKING:
    from collections.abc import Callable

    from servo.arbiter.events import Event
    from servo.arbiter.facade import ServerFacade
    from servo.ipc.channel import Channel
    from servo.ipc.messages import Message
    from servo.net.listeners import Listener
    from servo.observe.scoreboard import Scoreboard
    from servo.settings.sources import Settings

log = logging.getLogger("servo.error")


@dataclass(slots=True)
class Child:
    """One worker process. `channel` is the arbiter's end, None when it is lost."""

    serial: int
    slot: int
    generation: int
    settings: Settings
    facade: WorkerFacade
    pid: int = 0
    row_index: int = -1
    row: memoryview | None = None
    channel: Channel | None = None
    reaped: bool = False


class Children:
    """Every worker that was forked and not yet released.

    tell             takes an event for the inbox
    close_inherited  closes, in a child, what is the arbiter's alone
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

    def facades(self) -> dict[int, WorkerFacade]:
        """What hooks see, by pid."""
        return {child.pid: child.facade for child in self._by_serial.values()}

    # --- forking ----------------------------------------------------------------------------------

    def prepare(self, action: ev.Fork, settings: Settings) -> Child:
        """A worker that is about to be forked."""
        facade = WorkerFacade(action.serial, action.slot, settings)
        return Child(action.serial, action.slot, action.generation, settings, facade)

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
        )

        def close() -> None:
            self._close_inherited()
            ours.close()
            for listener in others:
                listener.close(unlink=False)

        try:
            child.pid = spawn.fork(partial(_work, context), close)
        except OSError:
            self._scoreboard.release(index)
            ours.close()
            raise
        finally:
            theirs.close()
        child.facade.pid = child.pid
        child.row_index = index
        child.row = self._scoreboard.row(index)
        child.row[board.PID] = child.pid
        child.channel = ours
        self._by_serial[child.serial] = child
        self._by_fd[ours.fileno()] = child
        self._epoll.register(ours.fileno(), select.EPOLLIN)
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
        if mask & ~select.EPOLLOUT:
            self._receive(child)

    def read_last_words(self, pid: int) -> bool:
        """A child was reaped: take in all that it had sent. False if it was no worker."""
        children = (child for child in self._by_serial.values() if not child.reaped)
        child = next((child for child in children if child.pid == pid), None)
        if child is None:
            return False
        child.reaped = True
        while child.channel is not None and self._receive(child):
            pass
        return True

    def _receive(self, child: Child) -> bool:
        """Take in what is there. False when that is nothing, or the channel is lost."""
        assert child.channel is not None
        try:
            messages = child.channel.receive()
        except ChannelClosed as error:
            log.debug("Worker %d (pid %d): %s", child.slot, child.pid, error)
            self._lose(child)
            return False
        for message in messages:
            self._tell(ev.MessageReceived(child.serial, message))
        return bool(messages)

    def _lose(self, child: Child) -> None:
        self._close_channel(child)
        self._tell(ev.ChannelLost(child.serial))

    def _close_channel(self, child: Child) -> None:
        if child.channel is not None:
            fd = child.channel.fileno()
            del self._by_fd[fd]
            self._epoll.unregister(fd)
            child.channel.close()
            child.channel = None

    # --- the rest ---------------------------------------------------------------------------------

    def kill(self, serial: int, name: str) -> None:
        """Send the signal of that name, unless it was reaped: another may have its pid by now."""
        child = self._by_serial.get(serial)
        if child is not None and not child.reaped:
            if child.row is not None and name in ("SIGABRT", "SIGKILL"):
                # Its siblings' gates leave it no more connections.
                child.row[board.STATE] = board.STATE_DRAINING
            os.kill(child.pid, signal.Signals[name])

    def heartbeats(self) -> tuple[dict[int, float], dict[int, float]]:
        """By serial, in monotonic seconds: the last heartbeats, and the oldest requests' starts."""
        beats, oldest = {}, {}
        for serial, child in self._by_serial.items():
            assert child.row is not None
            beats[serial] = child.row[board.BEAT_NS] / 1e9
            if child.row[board.OLDEST_START_NS]:
                oldest[serial] = child.row[board.OLDEST_START_NS] / 1e9
        return beats, oldest

    def release(self, serial: int) -> WorkerFacade | None:
        """Forget a reaped worker; free its row and channel."""
        child = self._by_serial.pop(serial, None)
        if child is None:
            return None
        self._close_channel(child)
        self._scoreboard.release(child.row_index)
        return child.facade

    def close(self) -> None:
        """Close all channels."""
        for child in self._by_serial.values():
            self._close_channel(child)

    def close_in_child(self) -> None:
        """In a forked child: close the arbiter's ends of its siblings' channels."""
        for child in self._by_serial.values():
            if child.channel is not None:
                child.channel.close()


def _work(context: WorkerContext) -> int:
    # Only here, in the worker, is the code that runs applications wanted.
    from servo.workers.base import run_worker

    return run_worker(context)
