"""The arbiter as a process of its system: named, sending signals, and told when memory ran out."""

from __future__ import annotations

import importlib.util
import logging
import os
import signal
from pathlib import Path

log = logging.getLogger("servo.error")


def set_title(title: str) -> None:
    """Name the process for `ps`, if setproctitle is installed."""
    if importlib.util.find_spec("setproctitle") is not None:
        import setproctitle

        setproctitle.setproctitle(title)


def signal_name(number: int) -> str:
    """SIGSEGV for 11, and so on."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def send_signal(pid: int, signum: int, owner: int | None = None) -> bool:
    """Send a signal to a process of ours. False, with a log line, when that is not allowed.

    Root in a container without CAP_KILL may not signal a process of another user. It may become
    that user for the moment, if it could become it for good.

    owner   the user that the process has become, if any
    """
    try:
        os.kill(pid, signum)
    except ProcessLookupError:
        log.debug("Process %d is gone: it gets no %s", pid, signal_name(signum))
    except PermissionError as error:
        if owner is not None and _send_as(owner, pid, signum):
            return True
        log.error(
            "Process %d can't be sent %s: %s (is CAP_KILL missing?)",
            pid,
            signal_name(signum),
            error.strerror,
        )
        return False
    return True


def _send_as(user: int, pid: int, signum: int) -> bool:
    own = os.geteuid()
    try:
        os.seteuid(user)
    except OSError:
        return False
    try:
        os.kill(pid, signum)
    except OSError:
        return False
    finally:
        # The saved user id is still ours, so this needs no capability.
        os.seteuid(own)
    return True


class OutOfMemoryCounter:
    """How many processes of our own cgroup the kernel has killed for lack of memory.

    The counter tells a SIGKILL of the kernel's from a person's. Outside of a cgroup with a memory
    controller it never counts, and nothing is claimed then.
    """

    def __init__(self, root: str = "/sys/fs/cgroup", own: str = "/proc/self/cgroup") -> None:
        self._files = _counter_files(Path(root), Path(own))
        self._seen = self._read()

    def took_one(self) -> bool:
        """Whether the kernel has killed one more than was accounted for; accounts for it."""
        if self._read() > self._seen:
            self._seen += 1
            return True
        return False

    def _read(self) -> int:
        for file in self._files:
            try:
                lines = file.read_text().splitlines()
            except OSError:
                continue
            for line in lines:
                name, _, value = line.partition(" ")
                if name == "oom_kill" and value.isdecimal():
                    return int(value)
        return 0


def _counter_files(root: Path, own: Path) -> list[Path]:
    """Where the counter may be: cgroup v2's memory.events, v1's memory.oom_control."""
    try:
        lines = own.read_text().splitlines()
    except OSError:
        return []
    files = []
    for line in lines:
        _, controllers, path = (*line.split(":", 2), "", "")[:3]
        relative = path.lstrip("/")
        # In a container the path may be the host's, while our cgroup is mounted as the root.
        if not controllers:
            files += [root / relative / "memory.events", root / "memory.events"]
        elif "memory" in controllers.split(","):
            base = root / "memory"
            files += [base / relative / "memory.oom_control", base / "memory.oom_control"]
    return files
