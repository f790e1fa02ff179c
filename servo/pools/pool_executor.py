"""`PoolExecutor`: a `concurrent.futures.Executor` whose tasks run in the processes of a pool."""

from __future__ import annotations

import itertools
import threading
import time
from collections import deque
from concurrent.futures import Executor, Future, InvalidStateError
from concurrent.futures import wait as wait_for
from typing import TYPE_CHECKING, Any

from servo.pools import wire
from servo.pools.calls import Call, Pool, Receiver, calls
from servo.pools.errors import QueueFull
from servo.pools.task_stream import DEFAULT_BUFFER, T, TaskStream

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

# How many tasks of one `map` are submitted before their results are taken, for each process.
_MAP_AHEAD = 2


class PoolFuture(Future[T]):
    """The result of a task. Its `cancel` can also end a running task, with `cancel_running`.

    can_end_process  whether `cancel` ends the process of a running task
    """

    def __init__(self, can_end_process: bool) -> None:
        super().__init__()
        self._can_end_process = can_end_process
        self._call: Call | None = None

    def attach(self, call: Call) -> None:
        """Set the call, before it is started."""
        self._call = call

    def running(self) -> bool:
        """Whether the task runs; see `Future.running`."""
        call = self._call
        if call is None or self._state != "PENDING":
            return super().running()
        return call.pool.is_running(call.key)

    def cancel(self) -> bool:
        """Cancel the task; see `Future.cancel`. Also a running one, with `cancel_running`."""
        call = self._call
        # No message tells that the task begins, so look now.
        if call is not None and self._state == "PENDING" and calls().has_begun(call):
            with self._condition:
                if self._state == "PENDING":
                    self._state = "RUNNING"
        if not (super().cancel() or self._cancel_running()):
            return False
        if call is not None:
            calls().close(call)
        # `wait` and `as_completed` wait for this. It returns False for a cancelled future.
        with self._condition:
            is_new = self._state == "CANCELLED"
        if is_new:
            self.set_running_or_notify_cancel()
        return True

    def _cancel_running(self) -> bool:
        if not self._can_end_process:
            return False
        with self._condition:
            if self._state != "RUNNING":
                return False
            self._state = "CANCELLED"
            self._condition.notify_all()
        self._invoke_callbacks()  # type: ignore[attr-defined]
        return True


class _ForFuture(Receiver):
    """Passes the answers of a call to a future."""

    def __init__(self, future: PoolFuture[Any]) -> None:
        self._future = future

    def on_end(self, value: Any) -> None:
        try:
            self._future.set_result(value)
        except InvalidStateError:
            return  # cancelled while it ran

    def on_error(self, error: BaseException) -> None:
        future = self._future
        if future.cancelled():
            return
        try:
            future.set_exception(error)
        except InvalidStateError:
            return  # cancelled meanwhile

    def on_fork(self, error: BaseException) -> None:
        future = self._future
        future._condition = threading.Condition()
        future._done_callbacks.clear()  # type: ignore[attr-defined]
        self.on_error(error)


class PoolExecutor(Executor):
    """Submits tasks to a pool of this server. Get one from `servo.pools.executor`.

    pool            the pool
    cancel_running  whether to cancel a running task by ending its process

    The object is cheap: it only remembers its unfinished tasks, for `shutdown`. Any thread may use
    it.
    """

    def __init__(self, pool: Pool, *, cancel_running: bool = False) -> None:
        self._pool = pool
        self._cancel_running = cancel_running
        # Changed by any thread, without a lock: `add` and `discard` are atomic.
        self._pending: set[Future[Any]] = set()
        self._is_shut_down = False

    def submit(self, fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> Future[T]:
        """Submit a task; see `Executor.submit`.

        fn             a function at the top level of a module
        args, kwargs   its arguments; they are pickled before this method returns

        Raises QueueFull (or, with `queue_timeout`, the future does), NotPicklable, TypeError,
        PoolUnavailable, and RuntimeError after `shutdown`.
        """
        wire.check_function(fn)
        self._check_open()
        packed = wire.pack((fn, args, kwargs), "the task")
        future: PoolFuture[T] = PoolFuture(self._cancel_running)
        call = Call(
            self._pool,
            packed,
            wire.label_of(fn),
            _ForFuture(future),
            leash=self._cancel_running,
        )
        future.attach(call)
        calls().start(call)
        self._pending.add(future)
        future.add_done_callback(self._forget)
        return future

    def stream(
        self,
        fn: Callable[..., Iterable[T]],
        /,
        *args: Any,
        buffer: int = DEFAULT_BUFFER,
        **kwargs: Any,
    ) -> TaskStream[T]:
        """Run a generator function in the pool, and iterate over its items, in order.

        fn             a generator function, or another function that returns an iterable
        args, kwargs   its arguments
        buffer         how many items may wait to be taken; then the generator waits

        The result works in `for` and in `async for`. To stop early, close it: use it in `with`, or
        call `close`. Raises the same as `submit`.
        """
        if buffer < 1:
            raise ValueError(f"buffer must be 1 or more, not {buffer}")
        wire.check_function(fn, is_stream=True)
        self._check_open()
        packed = wire.pack((fn, args, kwargs), "the task")
        stream: TaskStream[T] = TaskStream(buffer)
        call = Call(
            self._pool,
            packed,
            wire.label_of(fn),
            stream.receiver,
            flags=wire.STREAM,
            credit=buffer,
            leash=self._cancel_running,
        )
        stream.attach(call)
        calls().start(call)
        return stream

    def map(
        self,
        fn: Callable[..., T],
        /,
        *iterables: Iterable[Any],
        timeout: float | None = None,
        chunksize: int = 1,
        buffersize: int | None = None,
    ) -> Iterator[T]:
        """Run a function for each item; see `Executor.map`.

        fn           the function
        iterables    its arguments
        timeout      how long to wait for each result, counted from this call, in seconds
        chunksize    how many items make one task
        buffersize   how many tasks are submitted before their results are taken; by default, two
                     for each process of the pool

        The queue is bounded, so tasks are submitted as results are taken, not all at once. If other
        callers have filled the queue, this waits for its own tasks, and raises QueueFull only if it
        has none.
        """
        if chunksize < 1:
            raise ValueError("chunksize must be >= 1")
        if buffersize is not None and buffersize < 1:
            raise ValueError("buffersize must be None or > 0")
        wire.check_function(fn)
        ahead = buffersize or _MAP_AHEAD * self._pool.workers
        end = None if timeout is None else time.monotonic() + timeout
        chunks = _chunks(zip(*iterables, strict=False), chunksize)
        window: deque[Future[list[T]]] = deque()
        self._fill(window, fn, chunks, ahead)
        return self._results(window, fn, chunks, ahead, end)

    def _results(
        self,
        window: deque[Future[list[T]]],
        fn: Callable[..., T],
        chunks: _Pushable,
        ahead: int,
        end: float | None,
    ) -> Iterator[T]:
        try:
            while window:
                left = None if end is None else end - time.monotonic()
                values = window[0].result(left)
                window.popleft()
                self._fill(window, fn, chunks, ahead)
                yield from values
        finally:
            for future in window:
                future.cancel()

    def _fill(
        self, window: deque[Future[list[T]]], fn: Callable[..., T], chunks: _Pushable, ahead: int
    ) -> None:
        """Submit chunks until enough are under way."""
        while len(window) < ahead and (chunk := next(chunks, None)) is not None:
            future = self._submit_chunk(fn, chunk, must=not window)
            if future is None:
                chunks.push(chunk)
                return
            window.append(future)

    def _submit_chunk(
        self, fn: Callable[..., T], chunk: list[tuple[Any, ...]], *, must: bool
    ) -> Future[list[T]] | None:
        """Submit a chunk. If the queue is full, raise QueueFull if it `must` be; else None."""
        try:
            return self.submit(_run_chunk, fn, chunk)
        except QueueFull:
            if must:
                raise
            return None

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Accept no more tasks from this object; see `Executor.shutdown`. The pool runs on.

        wait            whether to wait for the tasks that this object has submitted
        cancel_futures  whether to cancel those that have not begun
        """
        self._is_shut_down = True
        pending = list(self._pending)
        if cancel_futures:
            for future in pending:
                if not future.running():
                    future.cancel()
        if wait:
            wait_for(pending)

    def _check_open(self) -> None:
        if self._is_shut_down:
            raise RuntimeError("cannot schedule new futures after shutdown")

    def _forget(self, future: Future[Any]) -> None:
        self._pending.discard(future)


def _run_chunk(fn: Callable[..., T], chunk: list[tuple[Any, ...]]) -> list[T]:
    return [fn(*args) for args in chunk]


class _Pushable:
    """An iterator that takes an item back."""

    def __init__(self, items: Iterator[list[tuple[Any, ...]]]) -> None:
        self._items = items
        self._pushed: list[list[tuple[Any, ...]]] = []

    def __iter__(self) -> _Pushable:
        return self

    def __next__(self) -> list[tuple[Any, ...]]:
        return self._pushed.pop() if self._pushed else next(self._items)

    def push(self, item: list[tuple[Any, ...]]) -> None:
        """Return this item next."""
        self._pushed.append(item)


def _chunks(items: Iterator[tuple[Any, ...]], size: int) -> _Pushable:
    def cut() -> Iterator[list[tuple[Any, ...]]]:
        while chunk := list(itertools.islice(items, size)):
            yield chunk

    return _Pushable(cut())
