"""Pools: processes for heavy work, beside those that serve requests. The application imports this.

    from servo import pools

    ml = pools.executor("ml")
    label = ml.submit(classify, image).result()                  # in sync and thread workers
    label = await loop.run_in_executor(ml, classify, image)      # in async workers
    for line in ml.stream(transcribe, sound): ...                # a generator, item by item

The configuration declares the pools (`[pools.ml]`), and the server runs their processes. The
executor is a `concurrent.futures.Executor`. Outside of a server, the same code uses a local
`ProcessPoolExecutor`.

A process without tasks has no thread and no connection for this, and the modules with the code are
not even imported.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from servo.pools.backend import declare, executor, names
    from servo.pools.errors import (
        NoSuchPool,
        NotPicklable,
        PoolError,
        PoolUnavailable,
        ProcessDied,
        QueueFull,
        RemoteError,
        TaskNotLoaded,
        TaskTimeout,
    )
    from servo.pools.pool_executor import PoolExecutor
    from servo.pools.task_stream import TaskStream

__all__ = [
    "NoSuchPool",
    "NotPicklable",
    "PoolError",
    "PoolExecutor",
    "PoolUnavailable",
    "ProcessDied",
    "QueueFull",
    "RemoteError",
    "TaskNotLoaded",
    "TaskStream",
    "TaskTimeout",
    "declare",
    "executor",
    "names",
]

_BACKEND = ("declare", "executor", "names")


def __getattr__(name: str) -> Any:
    # Imported at the first use. The arbiter imports other modules of this package, and must not
    # import `threading` and `concurrent.futures` with them.
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if name in _BACKEND:
        from servo.pools import backend

        return getattr(backend, name)
    if name == "PoolExecutor":
        from servo.pools.pool_executor import PoolExecutor

        return PoolExecutor
    if name == "TaskStream":
        from servo.pools.task_stream import TaskStream

        return TaskStream
    from servo.pools import errors

    return getattr(errors, name)
