"""`TaskStream`: the items of a generator that runs in a pool process, as they are made."""

from __future__ import annotations

import contextlib
import sys
import threading
from collections import deque
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from servo.pools.calls import Call, Receiver, calls

if TYPE_CHECKING:
    import asyncio
    from types import TracebackType

T = TypeVar("T")

DEFAULT_BUFFER = 8


class _Items(Receiver):
    """The items that have arrived. `Calls` refers to this object, and not to the `TaskStream`.

    So if the application drops the `TaskStream` without closing it, it is collected, and closes the
    call.
    """

    def __init__(self) -> None:
        self.changed = threading.Condition()
        self.values: deque[Any] = deque()
        self.error: BaseException | None = None
        self.is_over = False
        self._waiter: tuple[asyncio.AbstractEventLoop, asyncio.Future[None]] | None = None

    def on_value(self, value: Any) -> None:
        with self.changed:
            self.values.append(value)
            self._notify()

    def on_end(self, value: Any) -> None:
        with self.changed:
            self.is_over = True
            self._notify()

    def on_error(self, error: BaseException) -> None:
        with self.changed:
            if not self.is_over:
                self.error = error
                self.is_over = True
            self._notify()

    def on_fork(self, error: BaseException) -> None:
        self.changed = threading.Condition()
        self.error, self.is_over, self._waiter = error, True, None

    def close(self) -> None:
        """Drop the items that wait, and end the iteration."""
        with self.changed:
            self.values.clear()
            self.error = None
            self.is_over = True
            self._notify()

    async def wait(self) -> None:
        """Wait on an event loop until something arrives."""
        import asyncio  # already loaded, as a loop runs

        loop = asyncio.get_running_loop()
        with self.changed:
            if self.values or self.is_over:
                return
            if self._waiter is not None:
                raise RuntimeError("two tasks iterate over one stream")
            future = loop.create_future()
            self._waiter = loop, future
        try:
            await future
        finally:
            with self.changed:
                self._waiter = None

    def _notify(self) -> None:
        self.changed.notify_all()
        if self._waiter is not None:
            loop, future = self._waiter
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits
                loop.call_soon_threadsafe(_wake, future)


def _wake(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


class TaskStream(Generic[T]):
    """Iterates over the items of a task: `for`, `async for`, `with`, `async with`.

    buffer   how many items may wait here; the generator waits while so many do

    If the generator raises an exception, the iteration raises it after the items before it.
    """

    def __init__(self, buffer: int) -> None:
        self.receiver = _Items()
        self._buffer = buffer
        self._taken = 0
        self._call: Call | None = None

    def attach(self, call: Call) -> None:
        """Set the call, before it is started."""
        self._call = call

    def close(self) -> None:
        """Stop: the generator is closed at its next item, or with `cancel_running` at once."""
        call, self._call = self._call, None
        if call is not None:
            calls().close(call)
        self.receiver.close()

    def __iter__(self) -> TaskStream[T]:
        return self

    def __next__(self) -> T:
        running = getattr(sys.modules.get("asyncio"), "_get_running_loop", None)
        if running is not None and running() is not None:
            raise RuntimeError("this would block the event loop: use `async for`")
        items = self.receiver
        with items.changed:
            items.changed.wait_for(lambda: items.values or items.is_over)
            return self._take(StopIteration)

    def __aiter__(self) -> TaskStream[T]:
        return self

    async def __anext__(self) -> T:
        await self.receiver.wait()
        with self.receiver.changed:
            return self._take(StopAsyncIteration)

    def _take(self, over: type[Exception]) -> T:
        """Take the next item. With the lock. Raises `over` at the end, or the task's exception."""
        items = self.receiver
        if items.values:
            value: T = items.values.popleft()
            self._taken += 1
            # One message for half a buffer is cheaper than one for each item.
            if self._taken * 2 >= self._buffer and self._call is not None:
                calls().grant(self._call, self._taken)
                self._taken = 0
            return value
        error, items.error = items.error, None
        if error is not None:
            raise error
        raise over

    def __enter__(self) -> TaskStream[T]:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    async def __aenter__(self) -> TaskStream[T]:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    async def aclose(self) -> None:
        """The same as `close`, as an async generator has it."""
        self.close()

    def __del__(self) -> None:
        self.close()
