"""The preflight of an upgrade: a child process checks that the new program can start.

The child runs the command of the server with the new interpreter and `--check-config`: it reads the
configuration and imports the application, but binds no address. A pipe passes its output to the
arbiter. If the program can take over a running server, it also writes an answer to a file in
memory. An older Servo, or any other program, writes no answer.
"""

from __future__ import annotations

import os
import signal
import sys
from functools import partial
from typing import TYPE_CHECKING

from servo.arbiter import process_info, reexec
from servo.arbiter.core import events
from servo.arbiter.processes import spawn
from servo.arbiter.processes.pipe_child import PipeChild

if TYPE_CHECKING:
    from collections.abc import Callable

    from servo.arbiter.processes.child_table import ChildTable
    from servo.arbiter.reexec import Command

# Only the end of the output is kept: it has the error.
_MAX_OUTPUT_BYTES = 65_536
_NOT_EXECUTED = 127


class Preflight(PipeChild):
    """One preflight, from its fork until its process has ended or is killed.

    table       forks the process
    command     the command that has started this server
    python      the path of the new interpreter
    secure      whether the server uses TLS. So must the new program, because it gets the sockets
    on_result   takes the PreflightEnded event after the process has ended

    Raises OSError if the process can't be forked.
    """

    def __init__(
        self,
        table: ChildTable,
        command: Command,
        python: str,
        secure: bool,
        on_result: Callable[[events.PreflightEnded], None],
    ) -> None:
        self._python = python
        self._secure = secure
        self._on_result = on_result
        self._output = b""
        self._answer_fd = reexec.nameless_file("servo-preflight")
        # The child closes this object's descriptors, but it needs the file, so give it a copy.
        theirs = os.dup(self._answer_fd)
        try:
            super().__init__(table, partial(_run, command, python, theirs, os.getpid()))
        finally:
            os.close(theirs)

    def on_ready(self, _mask: int) -> None:
        """Read the output of the process."""
        if not self._read():
            self._table.unwatch(self)  # the exit code follows

    def on_exit(self, code: int) -> None:
        """Report whether the new program can take over, after the process has ended."""
        self._read()
        answer = reexec.read_answer(self._answer_fd)
        output = self._output.decode("utf-8", "replace").strip()
        self._forget()
        if code != 0:
            self._on_result(events.PreflightEnded(self._failure(code, output), output))
        elif answer is None:
            text = f"{self._python} runs no Servo that can take over a running server"
            self._on_result(events.PreflightEnded(text, output))
        elif answer.get("secure") is not self._secure:
            turn = "off" if self._secure else "on"
            text = f"an upgrade can't turn TLS {turn} (certfile, …): restart the server"
            self._on_result(events.PreflightEnded(text))
        else:
            self._on_result(events.PreflightEnded())

    def close_in_child(self) -> None:
        """Close this process's copies of the pipe and the file."""
        super().close_in_child()
        os.close(self._answer_fd)
        self._answer_fd = -1

    def _failure(self, code: int, output: str) -> str:
        if "No module named servo" in output or "No module named 'servo'" in output:
            return f"{self._python} has no Servo: {self._python} -m pip install servo-server"
        if code < 0:
            return f"the new program was ended by {process_info.signal_name(-code)}"
        lines = [line for line in output.splitlines() if line.strip()]
        # Servo's own errors are one line. Of a traceback, the last line is enough.
        said = [line for line in lines if line.startswith("servo: error: ")] or lines[-1:]
        text = said[0].removeprefix("servo: error: ") if said else "it said nothing"
        # Another interpreter often lacks one of the app's packages.
        is_missing = "No module named" in text and self._python != sys.executable
        hint = f"; is it installed for {self._python}?" if is_missing else ""
        return f"the new program can't start: {text} (exit code {code}){hint}"

    def _read(self) -> bool:
        """Read the available bytes. Returns False at the end of the pipe."""
        while True:
            try:
                data = os.read(self._fd, 65_536)
            except BlockingIOError:
                return True
            if not data:
                return False
            self._output = (self._output + data)[-_MAX_OUTPUT_BYTES:]


def _run(command: Command, python: str, answer_fd: int, arbiter: int, fd: int) -> int:
    """Run the child: execute the new program."""
    spawn.die_with(arbiter)
    # Ignored signals are inherited by the new program and by programs that its configuration
    # starts. So reset those that should end a program. The others stay ignored: they are commands
    # to the arbiter.
    for signum in (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT):
        signal.signal(signum, signal.SIG_DFL)
    null = os.open(os.devnull, os.O_RDONLY)
    for source, target in ((null, 0), (fd, 1), (fd, 2)):
        os.dup2(source, target)
    os.set_inheritable(answer_fd, True)
    environ = reexec.preflight_environ(command.environ, answer_fd)
    try:
        os.chdir(command.directory)
        argv = command.argv(python, "--check-config")
        os.execve(python, argv, environ)  # noqa: S606  no shell is wanted
    except OSError as error:
        os.write(2, f"servo: error: {python}: {error.strerror}\n".encode())
    return _NOT_EXECUTED
