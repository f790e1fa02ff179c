"""`--daemon`: the server goes to the background; the command waits until it serves or has ended."""

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

# What a worker that has outlasted `boot_timeout` may take to end, and the server after it.
SLACK_S = 10.0
_MAX_TEXT = 16_384


class Launch:
    """The server's word to the command that has started it, given once: how the start went.

    Of a server that is no daemon nobody waits, so all but `detach` do nothing.
    """

    def __init__(self) -> None:
        self._fd = -1
        self._said: list[str] = []

    def detach(self, boot_timeout_s: float) -> None:
        """Go on in a process without a terminal, with stdio on /dev/null.

        The caller's process ends here, with the exit code that it is told, or BootError's when it
        is told nothing in time (0: there is no limit). Its grandchild returns.
        """
        reader, self._fd = os.pipe2(os.O_CLOEXEC)
        # Until its own handlers are there: Ctrl-C is meant for the command.
        handler = signal.signal(signal.SIGINT, signal.SIG_IGN)
        if os.fork():
            signal.signal(signal.SIGINT, handler)
            os.close(self._fd)
            os._exit(_wait(reader, boot_timeout_s and boot_timeout_s + SLACK_S))
        os.close(reader)
        os.setsid()
        # A session leader could still get a controlling terminal by opening one.
        if os.fork():
            os._exit(0)
        null = os.open(os.devnull, os.O_RDWR)
        for fd in (0, 1, 2):
            os.dup2(null, fd)
        if null > 2:
            os.close(null)
        log_module.follow_standard_streams()

    def hear(self, action: actions.Log) -> None:
        """Something is logged: that a worker is ready, or what may be the reason of an end."""
        if isinstance(action, actions.RecordLifecycleEvent) and action.name == "ready":
            self._tell(0)
        elif self._fd >= 0 and action.level in ("error", "critical"):
            self._said.append(action.text)

    def ended(self, code: int, reason: str = "") -> None:
        """The server has ended before a worker was ready, if it has."""
        self._tell(code, "\n".join([*self._said, *filter(None, [reason])]))

    def close_in_child(self) -> None:
        """In a forked child: close its copy, or the end of the server would not be seen."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _tell(self, code: int, text: str = "") -> None:
        if self._fd < 0:
            return
        try:
            os.write(self._fd, json.dumps({"code": code, "text": text[-_MAX_TEXT:]}).encode())
        except BrokenPipeError:
            log.debug("Nobody waits for the start of the daemon any more")
        self.close_in_child()
        self._said.clear()


def _wait(fd: int, limit_s: float) -> int:
    """What the daemon says; its text goes to stderr. Returns the exit code."""
    try:
        words = _read(fd, limit_s)
    except KeyboardInterrupt:
        _say("not waited for: the server goes on starting in the background")
        return 128 + signal.SIGINT
    if words is None:
        _say(f"no worker is ready after {limit_s:g} s; the server goes on in the background")
        return BootError.exit_code
    told = json.loads(words or '{"code": 1, "text": "it was killed"}')
    if told["text"]:
        _say(f"the server has ended:\n{told['text']}")
    return int(told["code"])


def _read(fd: int, limit_s: float) -> bytes | None:
    """Everything up to the end; None when that does not come in time."""
    words = b""
    poller = select.poll()
    poller.register(fd, select.POLLIN)
    end = time.monotonic() + limit_s
    while poller.poll(max(0.0, end - time.monotonic()) * 1000 if limit_s else None):
        data = os.read(fd, 65536)
        if not data:
            return words
        words += data
    return None


def _say(text: str) -> None:
    sys.stderr.write(f"servo: error: {text}\n")
    sys.stderr.flush()
