"""System calls about processes: their titles, signals to them, and kills for lack of memory."""

from __future__ import annotations

import importlib.util
import logging
import os
import signal
from pathlib import Path

log = logging.getLogger("servo.error")


def set_title(title: str) -> None:
    """Set the name that `ps` shows for this process, if setproctitle is installed."""
    if importlib.util.find_spec("setproctitle") is not None:
        import setproctitle

        setproctitle.setproctitle(title)


def signal_name(number: int) -> str:
    """The name of a signal: SIGSEGV for 11."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def send_signal(pid: int, signum: int, owner: int | None = None) -> bool:
    """Send a signal to one of the server's processes. If this is not allowed, log it.

    pid     the process
    signum  the signal's number
    owner   the user that the process runs as, or None

    Returns whether the signal was sent.

    In a container without CAP_KILL, root may not signal a process of another user. Then the signal
    is sent as that user.
    """
    try:
        os.kill(pid, signum)
    except ProcessLookupError:
        log.debug("Process %d has ended: %s not sent", pid, signal_name(signum))
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
        # The saved user id is unchanged, so no capability is needed to change back.
        os.seteuid(own)
    return True


class OutOfMemoryCounter:
    """Counts the processes of this cgroup that the kernel has killed for lack of memory.

    The exit status of a killed process does not show who sent the SIGKILL. The kernel sent it if
    the kernel's counter has increased. Without a cgroup with a memory controller there is no
    counter, and `took_one` returns False.

    root  the mount point of the cgroup file system
    own   the file that names this process's cgroups
    """

    def __init__(self, root: str = "/sys/fs/cgroup", own: str = "/proc/self/cgroup") -> None:
        self._files = _counter_files(Path(root), Path(own))
        self._seen = self._read()

    def took_one(self) -> bool:
        """Whether the kernel has killed another process. Returns True once for each of them."""
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
    """The files that may hold the counter: memory.events (cgroup v2), memory.oom_control (v1)."""
    try:
        lines = own.read_text().splitlines()
    except OSError:
        return []
    files = []
    for line in lines:
        _, controllers, path = (*line.split(":", 2), "", "")[:3]
        relative = path.lstrip("/")
        # In a container the file may show the host's path, while the cgroup is mounted at the root.
        if not controllers:
            files += [root / relative / "memory.events", root / "memory.events"]
        elif "memory" in controllers.split(","):
            base = root / "memory"
            files += [base / relative / "memory.oom_control", base / "memory.oom_control"]
    return files
