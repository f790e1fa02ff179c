"""`--daemon`: the server runs in the background; the command waits until it serves or has ended.

A pipe connects the command and the server. The server writes one report: exit code 0 when a worker
is ready, or the error that has ended the server. The command prints the error and exits with the
code, so a script can tell whether the start worked.
"""

from __future__ import annotations

import json
import logging
import os
import select
import signal
import sys
import time

from servo.arbiter.core import actions
from servo.errors import BootError
from servo.logs import error_log as log_module

log = logging.getLogger("servo.error")

# After `boot_timeout` the arbiter kills the worker and ends. The command waits for the report for
# this many seconds more.
SLACK_S = 10.0
# Characters of a report. As ASCII text it fits into a pipe (64 KiB), so writing it does not block.
_REPORT_CHARACTERS = 16_384


class StartReport:
    """Reports the outcome of a daemon's start, once, to the command that started it.

    Without `--daemon` no command waits, so all methods except `detach` do nothing.
    """

    def __init__(self) -> None:
        self._fd = -1
        self._errors: list[str] = []

    def detach(self, boot_timeout_s: float) -> None:
        """Continue in a process without a terminal, with the standard streams on /dev/null.

        boot_timeout_s   seconds until a worker must be ready; 0 for no limit

        Returns only in a grandchild of the caller. The calling process waits for the report and
        exits with its code, or with BootError's code if no report comes in time.
        """
        reader, self._fd = os.pipe2(os.O_CLOEXEC)
        # Ctrl-C is meant for the command. The server ignores it until it has its own handlers.
        handler = signal.signal(signal.SIGINT, signal.SIG_IGN)
        if os.fork():
            signal.signal(signal.SIGINT, handler)
            os.close(self._fd)
            os._exit(_wait(reader, boot_timeout_s and boot_timeout_s + SLACK_S))
        os.close(reader)
        os.setsid()
        # Fork again: a session leader would get a controlling terminal when it opens one.
        if os.fork():
            os._exit(0)
        null = os.open(os.devnull, os.O_RDWR)
        for fd in (0, 1, 2):
            os.dup2(null, fd)
        if null > 2:
            os.close(null)
        log_module.follow_standard_streams()

    def on_log(self, action: actions.Log) -> None:
        """Report success once a worker is ready; until then, collect errors for a failure."""
        if isinstance(action, actions.RecordLifecycleEvent) and action.name == "ready":
            self._write(0)
        elif self._fd >= 0 and action.level in ("error", "critical"):
            self._errors.append(action.text)

    def ended(self, code: int, reason: str = "") -> None:
        """Report the end of the server, unless success was reported before.

        code     its exit code
        reason   the error that has ended it, or ""
        """
        self._write(code, "\n".join([*self._errors, *filter(None, [reason])]))

    def close_in_child(self) -> None:
        """Close this process's copy of the pipe. The command waits until all copies are closed."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _write(self, code: int, text: str = "") -> None:
        if self._fd < 0:
            return
        try:
            os.write(
                self._fd, json.dumps({"code": code, "text": text[-_REPORT_CHARACTERS:]}).encode()
            )
        except BrokenPipeError:
            log.debug("The command that has started this daemon does not wait any more")
        self.close_in_child()
        self._errors.clear()


def _wait(fd: int, limit_s: float) -> int:
    """Wait for the daemon's report, print its text to stderr, and return the exit code."""
    try:
        report = _read(fd, limit_s)
    except KeyboardInterrupt:
        _print_error("not waited for: the server goes on starting in the background")
        return 128 + signal.SIGINT
    if report is None:
        _print_error(
            f"no worker is ready after {limit_s:g} s; the server goes on in the background"
        )
        return BootError.exit_code
    values = json.loads(report or '{"code": 1, "text": "it was killed"}')
    if values["text"]:
        _print_error(f"the server has ended:\n{values['text']}")
    return int(values["code"])


def _read(fd: int, limit_s: float) -> bytes | None:
    """Read up to the end of the pipe. Returns None if the end does not come in time."""
    report = b""
    poller = select.poll()
    poller.register(fd, select.POLLIN)
    end = time.monotonic() + limit_s
    while poller.poll(max(0.0, end - time.monotonic()) * 1000 if limit_s else None):
        data = os.read(fd, 65536)
        if not data:
            return report
        report += data
    return None


def _print_error(text: str) -> None:
    sys.stderr.write(f"servo: error: {text}\n")
    sys.stderr.flush()
