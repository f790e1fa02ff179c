"""The errors of pools, as the caller of a task gets them.

If a task itself raises an exception, the caller gets that exception. The errors here are the
others: the task did not run, or its process ended before the task did.
"""

from __future__ import annotations

import pickle
import queue
from concurrent.futures import BrokenExecutor


class PoolError(Exception):
    """The base class of the errors of pools."""


class NoSuchPool(PoolError, LookupError):  # noqa: N818
    """Raised if the configuration declares no pool of this name."""


class QueueFull(PoolError, queue.Full):  # noqa: N818
    """Raised if the queue of a pool is full. The task did not run."""


class NotPicklable(PoolError, pickle.PicklingError):  # noqa: N818
    """Raised if a function, an argument or a result can't be sent to another process."""


class TaskNotLoaded(PoolError):  # noqa: N818
    """Raised if the pool process can't import the function, or can't unpickle an argument."""


class RemoteError(PoolError):
    """Replaces an exception of a task that can't be pickled; has its type and its text."""


class PoolUnavailable(PoolError, BrokenExecutor):  # noqa: N818
    """Raised if no process listens for the tasks of a pool: its server has ended."""


class ProcessDied(PoolError, BrokenExecutor):  # noqa: N818
    """Raised if the process of a task ended before the task did.

    pid     its process id; 0 if it is not known
    reason  why it ended, such as "killed by SIGKILL"
    """

    def __init__(self, pid: int, reason: str) -> None:
        super().__init__(pid, reason)
        self.pid = pid
        self.reason = reason

    def __str__(self) -> str:
        return f"the pool process {self.pid} ended while it ran this task: {self.reason}"


class TaskTimeout(ProcessDied, TimeoutError):  # noqa: N818
    """Raised if the server ended a task's process because the task ran longer than `timeout`."""
