"""A child process that reports to the arbiter through a pipe: the config check and the watcher."""

from __future__ import annotations

import os
import signal
from abc import ABC, abstractmethod
from functools import partial
from typing import TYPE_CHECKING

from servo.arbiter import process_info

if TYPE_CHECKING:
    from collections.abc import Callable

    from servo.arbiter.processes.child_table import ChildTable


class PipeChild(ABC):
    """Base class of children with a pipe; a `ChildProcess`. The constructor forks the process.

    table   forks and watches the process
    main    runs in the process, with the pipe's write end; its result is the exit code

    Raises OSError.
    """

    def __init__(self, table: ChildTable, main: Callable[[int], int]) -> None:
        self.pid = 0
        self._table = table
        self._fd, writer = os.pipe2(os.O_CLOEXEC)
        os.set_blocking(self._fd, False)
        try:
            table.start(self, partial(main, writer))
        except OSError:
            self.close_in_child()
            raise
        finally:
            os.close(writer)

    def fileno(self) -> int:
        """The pipe's read end; -1 after it is closed."""
        return self._fd

    @abstractmethod
    def on_ready(self, mask: int) -> None:
        """Read the pipe; see ChildProcess."""

    @abstractmethod
    def on_exit(self, code: int) -> None:
        """Handle the exit of the process; see ChildProcess."""

    def close_in_child(self) -> None:
        """Close this process's copy of the pipe."""
        os.close(self._fd)
        self._fd = -1

    def kill(self) -> None:
        """End the process, and forget it. Does nothing after its end."""
        if self._fd >= 0:
            process_info.send_signal(self.pid, signal.SIGKILL)
            self._forget()

    def _forget(self) -> None:
        """Close the pipe, and remove the child from the table."""
        self._table.remove(self)
        self.close_in_child()
