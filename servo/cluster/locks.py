"""Locks between all processes of a server, for applications.

    with cluster.lock("invoices", timeout=10):
        ...

    async with cluster.lock("invoices"):
        ...

A lock is an open-file-description lock on one byte of a file in memory, which all processes of the
server share (see servo.shared_memory.locks). The kernel releases it when its owner dies. The byte's
position is a hash of the name, so there is no table of locks, and no limit on their number.

For the kernel, all threads of a process are one owner. So each lock has two parts: first the thread
or task becomes the lock's owner within this process, in the order in which they asked, and then it
locks the byte.

Outside a server, in a shell or a test, locks exclude the threads and the children of this process.
"""

from __future__ import annotations

import hashlib
import os
import sys
import threading
import time
from collections import deque
from typing import TYPE_CHECKING, Any, Final

from servo.cluster.counters import installed
from servo.errors import ClusterError

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Iterator
    from types import TracebackType

    from servo.shared_memory.locks import LockFile

MAX_NAME_BYTES: Final = 255
# With a time limit, or on an event loop, a waiting process tries again at intervals that grow from
# the first to the last of these numbers of seconds: the kernel can only wait without a limit.
_FIRST_INTERVAL_S = 0.001
_LAST_INTERVAL_S = 0.02
# Locks of names lie behind all other locks of the file. The kernel's largest position has 63 bits.
_FIRST_PLACE = 1 << 62


class LockTimeout(ClusterError, TimeoutError):  # noqa: N818
    """Raised by `with` if the lock was not free within its timeout."""


class Lock:
    """A lock of the whole server; see `lock`. One object may be used by many threads and tasks.

    name     its name
    timeout  how many seconds `with` waits; None: without a limit
    """

    __slots__ = ("_place", "name", "timeout")

    def __init__(self, name: str, timeout: float | None) -> None:
        self.name = name
        self.timeout = timeout
        digest = hashlib.blake2b(name.encode(), digest_size=8).digest()
        self._place = _FIRST_PLACE + (int.from_bytes(digest, "little") >> 2)

    def __repr__(self) -> str:
        return f"<cluster.lock({self.name!r})>"

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
        """Take the lock, as `threading.Lock.acquire` does.

        blocking  whether to wait until it is free
        timeout   how many seconds to wait; -1: without a limit

        Returns whether this thread (or task) holds the lock now. Raises RuntimeError if it holds it
        already, and if a blocking call would block an event loop.
        """
        if timeout < 0 and timeout != -1:
            raise ValueError(f"a timeout must be a number of seconds or -1, not {timeout}")
        if not blocking and timeout != -1:
            raise ValueError("a call that doesn't block has no timeout")
        caller = _caller()
        if blocking and not isinstance(caller, int):
            raise RuntimeError(
                f"acquiring the lock {self.name!r} would block the event loop: use `async with`, "
                "`await lock.aacquire()` or `acquire(blocking=False)`"
            )
        deadline = None if timeout == -1 else time.monotonic() + timeout
        turn = _Turn(caller)
        if not self._queue(turn, blocking):
            return False
        try:
            if turn.free is not None:
                limit = None if deadline is None else max(0.0, deadline - time.monotonic())
                if not turn.free.wait(limit):
                    return self._leave(turn)
            if self._try():
                return True
            if not blocking:
                return self._leave(turn)
            if deadline is None:
                _owners[self.name].file.wait_lock(self._place)
                return True
            for pause_s in _pauses(deadline):
                time.sleep(pause_s)
                if self._try():
                    return True
        except BaseException:
            self._leave(turn)
            raise
        return self._leave(turn)

    async def aacquire(self, timeout: float | None = None) -> bool:
        """Take the lock on an event loop of asyncio, which goes on meanwhile.

        timeout  how many seconds to wait; None: without a limit

        Returns whether this task holds the lock now. Raises RuntimeError if it holds it already.
        """
        import asyncio  # imported here: a process without an event loop need not load it

        deadline = None if timeout is None else time.monotonic() + timeout
        turn = _TaskTurn(_caller(), asyncio.get_running_loop())
        self._queue(turn, blocking=True)
        try:
            if turn.is_free is not None:
                limit = None if deadline is None else max(0.0, deadline - time.monotonic())
                await asyncio.wait((turn.is_free,), timeout=limit)
                if not turn.is_free.done():
                    return self._leave(turn)
            if self._try():
                return True
            for pause_s in _pauses(deadline):
                await asyncio.sleep(pause_s)
                if self._try():
                    return True
        except BaseException:  # the task may be cancelled
            self._leave(turn)
            raise
        return self._leave(turn)

    def release(self) -> None:
        """Release the lock. Raises RuntimeError if this thread (or task) does not hold it."""
        caller = _caller()
        with _mutex:
            held = _owners.get(self.name)
            if held is None or held.turns[0].caller != caller:
                if self.name in _held_by_parent:
                    return  # a child of `fork` leaves the parent's `with` block
                raise RuntimeError(f"this thread or task does not hold the lock {self.name!r}")
        self._leave(held.turns[0])

    def locked(self) -> bool:
        """Whether any process holds the lock at this moment."""
        with _mutex:
            if self.name in _owners:
                return True
        return installed().locks.is_locked(self._place)

    def __enter__(self) -> Lock:
        timeout = -1 if self.timeout is None else self.timeout
        if not self.acquire(timeout=timeout):
            raise self._timed_out()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.release()

    async def __aenter__(self) -> Lock:
        if not await self.aacquire(self.timeout):
            raise self._timed_out()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.release()

    def _timed_out(self) -> LockTimeout:
        return LockTimeout(f"the lock {self.name!r} was not free within {self.timeout:g} s")

    def _queue(self, turn: _Turn, blocking: bool) -> bool:
        """Wait for the other threads and tasks of this process. Returns False if it must not."""
        with _mutex:
            held = _owners.get(self.name)
            if held is None:
                _owners[self.name] = _Owners(installed().locks, deque((turn,)))
            else:
                if any(turn.caller == other.caller for other in held.turns):
                    raise RuntimeError(
                        f"this thread or task holds the lock {self.name!r} already, and would wait "
                        "for itself"
                    )
                if not blocking:
                    return False
                turn.prepare()
                held.turns.append(turn)
        return True

    def _try(self) -> bool:
        return _owners[self.name].file.try_lock(self._place)

    def _leave(self, turn: _Turn) -> bool:
        """Leave the queue, and release the lock if it was this turn's. Returns False."""
        with _mutex:
            held = _owners.get(self.name)
            if held is None or turn not in held.turns:
                return False  # this process was forked meanwhile
            was_first = held.turns[0] is turn
            if was_first:
                held.file.unlock(self._place)
            held.turns.remove(turn)
            while was_first and held.turns:
                try:
                    held.turns[0].wake()
                    break
                except RuntimeError:  # the event loop of this task is closed
                    held.turns.popleft()
            if not held.turns:
                del _owners[self.name]
        return False


def lock(name: str, *, timeout: float | None = None) -> Lock:
    """Get the server's lock with this name.

    name     any text of at most 255 bytes
    timeout  how many seconds `with` and `async with` wait before they raise LockTimeout; None:
             without a limit

    At most one thread or task of all processes of the server holds it. It is not reentrant: who
    asks twice gets a RuntimeError. If the owner's process dies, the lock is free at once.
    """
    if not isinstance(name, str):
        raise TypeError(f"a lock's name must be text, not {name!r}")
    if len(name.encode()) > MAX_NAME_BYTES:
        raise ValueError(f"a lock's name can have {MAX_NAME_BYTES} bytes: {name[:40]!r}…")
    if timeout is not None and not timeout >= 0:
        raise ValueError(f"a timeout must be a number of seconds, 0 or more, not {timeout}")
    return Lock(name, timeout)


class _Turn:
    """A thread or task that holds a lock or waits for it.

    caller  the thread's number, or the task

    free  set when it is the first one of this process; None if it was that at once
    """

    free: threading.Event | None = None

    def __init__(self, caller: Any) -> None:
        self.caller = caller

    def prepare(self) -> None:
        """Prepare to wait for `wake`."""
        self.free = threading.Event()

    def wake(self) -> None:
        """Note that it is the first one. Raises RuntimeError if its event loop is closed."""
        assert self.free is not None
        self.free.set()


class _TaskTurn(_Turn):
    """The same for a task.

    loop  its event loop

    is_free  done when it is the first one of this process; None if it was that at once
    """

    is_free: asyncio.Future[None] | None = None

    def __init__(self, caller: Any, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(caller)
        self._loop = loop

    def prepare(self) -> None:
        """See _Turn.prepare."""
        self.is_free = self._loop.create_future()

    def wake(self) -> None:
        """See _Turn.wake."""
        self._loop.call_soon_threadsafe(self._set_free)

    def _set_free(self) -> None:
        assert self.is_free is not None
        if not self.is_free.done():
            self.is_free.set_result(None)


class _Owners:
    """The turns of this process for one lock.

    file   the file of the lock
    turns  the first one holds the lock, or tries to lock the byte; the others wait for it
    """

    __slots__ = ("file", "turns")

    def __init__(self, file: LockFile, turns: deque[_Turn]) -> None:
        self.file = file
        self.turns = turns


# The locks that this process holds or waits for, by name, and the lock of this table.
_owners: dict[str, _Owners] = {}
_mutex = threading.RLock()  # a signal handler may come between
# The locks that the parent of this process held when it forked it.
_held_by_parent: set[str] = set()


def _caller() -> Any:
    """The current task of an event loop, or the number of this thread."""
    asyncio = sys.modules.get("asyncio")
    # Use a default, because another thread may be in the middle of importing asyncio.
    running = getattr(asyncio, "_get_running_loop", None)
    if asyncio is None or running is None or running() is None:
        return threading.get_ident()
    return asyncio.current_task() or running()


def _pauses(deadline: float | None) -> Iterator[float]:
    """Yield growing pauses in seconds, until the deadline."""
    pause_s = _FIRST_INTERVAL_S
    while True:
        if deadline is None:
            yield pause_s
        else:
            left = deadline - time.monotonic()
            if left <= 0:
                return
            yield min(pause_s, left)
        pause_s = min(pause_s * 2, _LAST_INTERVAL_S)


def _after_fork() -> None:
    global _mutex
    _mutex = threading.RLock()  # another thread may have held it
    _held_by_parent.clear()
    _held_by_parent.update(_owners)
    _owners.clear()


os.register_at_fork(after_in_child=_after_fork)
