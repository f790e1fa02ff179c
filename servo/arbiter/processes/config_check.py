"""The check of a changed configuration, in a temporary child process.

A configuration file is a Python program. At a reload it may raise, hang, call `sys.exit`, or crash
the interpreter. So a child reads it first. The child writes an error to a pipe, and exits; the
arbiter reads the pipe in its loop, and checks the exit code. If there is no error, the arbiter
reads the configuration itself. If the child takes longer than `boot_timeout`, the supervisor
cancels the check, and rolls the reload back.
"""

from __future__ import annotations

import os
import traceback
from functools import partial
from typing import TYPE_CHECKING

from servo.arbiter import process_info
from servo.arbiter.core import events
from servo.arbiter.processes import spawn
from servo.arbiter.processes.pipe_child import PipeChild
from servo.errors import ServoError
from servo.logs.standard_streams import prints_never_block

if TYPE_CHECKING:
    from collections.abc import Callable

    from servo.arbiter.processes.child_table import ChildTable


class ConfigCheck(PipeChild):
    """One check of a configuration, from its fork until its process has ended or is killed.

    table        forks the process
    generation   the number of the new generation
    read         reads the configuration; called in the child
    on_result    takes the ConfigChecked event, after the process has ended

    Raises OSError if the process can't be forked.
    """

    def __init__(
        self,
        table: ChildTable,
        generation: int,
        read: Callable[[], object],
        on_result: Callable[[events.ConfigChecked], None],
    ) -> None:
        self._generation = generation
        self._on_result = on_result
        self._text = b""
        super().__init__(table, partial(_check, read, os.getpid()))

    def on_ready(self, _mask: int) -> None:
        """Read the child's report."""
        if not self._read():
            self._table.unwatch(self)  # the exit code follows

    def on_exit(self, code: int) -> None:
        """Report the result, from the pipe and the exit code."""
        self._read()
        error = None
        if code != 0:
            text = self._text.decode("utf-8", "replace").strip()
            error = text or f"reading it ended the process (exit code {code})"
        self._forget()
        self._on_result(events.ConfigChecked(self._generation, error))

    def _read(self) -> bool:
        """Read the available bytes. Returns False at the end of the pipe."""
        while True:
            try:
                data = os.read(self._fd, 65536)
            except BlockingIOError:
                return True
            if not data:
                return False
            self._text += data


def _check(read_settings: Callable[[], object], arbiter: int, fd: int) -> int:
    spawn.die_with(arbiter)
    process_info.set_title("servo: reading the configuration")
    with prints_never_block():
        text = configuration_error(read_settings)
    if text is None:
        return 0
    # A long text fills the pipe, so the write blocks until the arbiter reads.
    data = text.encode("utf-8", "backslashreplace")
    while data:
        data = data[os.write(fd, data) :]
    return 1


def configuration_error(read_settings: Callable[[], object]) -> str | None:
    """Read the configuration. Returns None, or the error in it.

    read_settings   reads the configuration; any exception counts as an error in it
    """
    try:
        read_settings()
    except ServoError as error:
        return str(error)
    except SystemExit as error:
        return f"it called sys.exit({error.code!r})\n{traceback.format_exc()}"
    except BaseException:  # noqa: BLE001  KeyboardInterrupt, too, is reported with its traceback
        return traceback.format_exc()
    return None
