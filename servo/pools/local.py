"""Pools outside of a server: in a shell, a script or a test, the same code runs on this machine.

The processes are those of a `ProcessPoolExecutor`. It starts them, and its queue has no limit. A
stream needs more than such an executor has: its process listens on a socket, and then works like a
pool process.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import select
import shutil
import tempfile
import threading
import uuid
from concurrent.futures import BrokenExecutor, Executor, Future, ProcessPoolExecutor
from concurrent.futures import wait as wait_for
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from servo.pools import wire
from servo.pools.board import Row
from servo.pools.calls import Call, Pool, calls
from servo.pools.errors import ProcessDied
from servo.pools.listening import listen
from servo.pools.task_server import TaskServer
from servo.pools.task_stream import DEFAULT_BUFFER, T, TaskStream

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

# How long a process waits for the caller of a stream, in seconds. It connects within 10 ms, unless
# it has closed the stream.
_CONNECT_S = 5.0


@dataclass(frozen=True)
class LocalPool:
    """What `servo.pools.declare` says about a pool.

    workers      the number of processes; None: one for each CPU
    initializer  a function that each process calls at its start, "module:function" or ""
    """

    workers: int | None = None
    initializer: str = ""


class LocalExecutor(Executor):
    """The interface of `PoolExecutor` on a local `ProcessPoolExecutor`.

    pool   the processes
    """

    def __init__(self, pool: LocalProcesses) -> None:
        self._pool = pool
        self._is_shut_down = False
        self._pending: set[Future[Any]] = set()

    def submit(self, fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> Future[T]:
        """See `PoolExecutor.submit`. Raises NotPicklable and RuntimeError."""
        wire.check_function(fn)
        self._check_open()
        # ProcessPoolExecutor would pickle it later, in a thread.
        wire.pack((fn, args, kwargs), "the task").close()
        future = self._pool.submit(fn, *args, **kwargs)
        self._pending.add(future)
        future.add_done_callback(self._pending.discard)
        return future

    def stream(
        self,
        fn: Callable[..., Iterable[T]],
        /,
        *args: Any,
        buffer: int = DEFAULT_BUFFER,
        **kwargs: Any,
    ) -> TaskStream[T]:
        """See `PoolExecutor.stream`."""
        if buffer < 1:
            raise ValueError(f"buffer must be 1 or more, not {buffer}")
        wire.check_function(fn, is_stream=True)
        self._check_open()
        packed = wire.pack((fn, args, kwargs), "the task")
        path = self._pool.new_path()
        place = Pool(self._pool.name, path, queue_timeout=float("inf"), is_local=True)
        stream: TaskStream[T] = TaskStream(buffer)
        call = Call(
            place, packed, wire.label_of(fn), stream.receiver, flags=wire.STREAM, credit=buffer
        )
        stream.attach(call)
        calls().start(call)

        def on_done(future: Future[None]) -> None:
            error = future.exception()
            if error is not None:
                calls().fail(call, ProcessDied(0, str(error)))

        self._pool.submit(serve_one, path).add_done_callback(on_done)
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
        """See `PoolExecutor.map`. Submits everything at once: the local queue has no limit."""
        wire.check_function(fn)
        self._check_open()
        return self._pool.executor().map(fn, *iterables, timeout=timeout, chunksize=chunksize)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """See `PoolExecutor.shutdown`. The processes run on, for other objects like this one."""
        self._is_shut_down = True
        pending = list(self._pending)
        if cancel_futures:
            for future in pending:
                future.cancel()
        if wait:
            wait_for(pending)

    def _check_open(self) -> None:
        if self._is_shut_down:
            raise RuntimeError("cannot schedule new futures after shutdown")


class LocalProcesses:
    """The processes of one local pool. They start with its first task.

    name      its name
    declared  the number of processes, and the initializer
    """

    def __init__(self, name: str, declared: LocalPool) -> None:
        self.name = name
        self._declared = declared
        self._lock = threading.Lock()
        self._executor: ProcessPoolExecutor | None = None
        self._directory: str | None = None

    def executor(self) -> ProcessPoolExecutor:
        """The standard executor; a new one if the last one is broken."""
        with self._lock:
            if self._executor is None:
                declared = self._declared
                self._executor = ProcessPoolExecutor(
                    declared.workers, initializer=initialize, initargs=(declared.initializer,)
                )
            return self._executor

    def submit(self, fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> Future[T]:
        """Submit a task. If a process has died since the last task, start new ones."""
        executor = self.executor()
        try:
            return executor.submit(fn, *args, **kwargs)
        except BrokenExecutor:
            with self._lock:
                if self._executor is executor:
                    self._executor = None
            return self.executor().submit(fn, *args, **kwargs)

    def new_path(self) -> str:
        """A path for a new socket, in a directory that only this user can search."""
        with self._lock:
            if self._directory is None:
                self._directory = tempfile.mkdtemp(prefix="servo-local-pool-")
            return f"{self._directory}/{uuid.uuid4().hex}"

    def close(self) -> None:
        """End the processes."""
        with self._lock:
            executor, self._executor = self._executor, None
            directory, self._directory = self._directory, None
        if executor is not None:
            executor.shutdown(cancel_futures=True)
        if directory is not None:
            shutil.rmtree(directory, ignore_errors=True)


def initialize(name: str) -> None:
    """Call the initializer of a pool. Raises whatever it raises, or ImportError.

    name   "module:function", or "" for none
    """
    if name:
        module, _, path = name.partition(":")
        function: Any = importlib.import_module(module)
        for part in path.split("."):
            function = getattr(function, part)
        function()


def serve_one(path: str) -> None:
    """In a local process: listen for one caller, and run its task.

    path   where to listen
    """
    listener = listen(path, 1)
    ours, theirs = os.pipe2(os.O_CLOEXEC)
    try:
        poller = select.poll()
        poller.register(listener, select.POLLIN)
        row = Row(memoryview(bytearray(512)).cast("Q"))
        if poller.poll(_CONNECT_S * 1000):
            TaskServer(listener, ours, row).serve_waiting()
    finally:
        listener.close()
        os.close(ours)
        os.close(theirs)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
