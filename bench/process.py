"""Start a server's processes on one core, measure them by /proc, and end all of them."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import environment
import nginx
from servers import FLOOR, HERE, PORT, PROXY_PORT, WORK, Server, Setup, UnableError

LOG = WORK / "server.log"
# Variables that configure a server; none may reach the servers that are compared.
FOREIGN = (
    *("SERVO_", "GUNICORN_", "UVICORN_", "GRANIAN_", "HYPERCORN_", "WEB_CONCURRENCY", "PORT"),
    # The installed peers have bytecode files, so our checkout must get them, too.
    "PYTHONDONTWRITEBYTECODE",
)
CORES = sorted(os.sched_getaffinity(0))
BOOT_S = 20.0
STOP_S = 3.0
SAMPLE_S = 0.5


class FailedError(Exception):
    """A server failed; the message says how."""


@dataclass(frozen=True)
class Running:
    """A running server.

    pid      its first process, and thus the id of its session
    started  time.monotonic() of the start
    """

    pid: int
    started: float


@contextlib.contextmanager
def running(python: str, server: Server, setup: Setup) -> Iterator[Running]:
    """Run the server in its own session on the first core; end all its processes after the block.

    Raises UnableError or FailedError before it yields.
    """
    missing = environment.missing(python)
    for package in server.packages:
        if package in missing:
            raise UnableError(f"{package} is not installed: {missing[package]}")
    if server.kind == FLOOR:
        command = nginx.server_command(setup)
    else:
        command = [python, *server.command(setup)]
    env = {k: v for k, v in os.environ.items() if not k.startswith(FOREIGN)}
    if server.source is not None:
        env["PYTHONPATH"] = str(server.source)  # takes precedence over the installed package
    with started(command, LOG, server.port, env, first=True) as session:
        yield session


@contextlib.contextmanager
def proxy() -> Iterator[Running]:
    """Run nginx on PROXY_PORT in front of the server, on the load generator's core. Raises
    UnableError or FailedError before it yields."""
    log = WORK / "nginx-proxy.log"
    with started(nginx.proxy_command(), log, PROXY_PORT, None, first=False) as session:
        yield session


@contextlib.contextmanager
def started(
    command: list[str], log: Path, port: int, env: dict[str, str] | None, first: bool
) -> Iterator[Running]:
    with log.open("wb") as output:
        begun = time.monotonic()
        process = subprocess.Popen(
            command,
            cwd=HERE,
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    pin(process.pid, first=first)
    try:
        wait_open(process, log, port)
        yield Running(process.pid, begun)
    except FailedError as error:
        if process.poll() is not None:
            raise FailedError(f"the server ended with {process.returncode}; {error}") from error
        raise
    finally:
        end(process, port)


def pin(pid: int, first: bool) -> None:
    """Pin a process to the servers' core (first) or the load generator's, if there are two."""
    if len(CORES) > 1:
        os.sched_setaffinity(pid, {CORES[0 if first else 1]})


def answers(port: int = PORT) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def wait_open(process: subprocess.Popen[bytes], log: Path = LOG, port: int = PORT) -> None:
    limit = time.monotonic() + BOOT_S
    while not answers(port):
        if process.poll() is not None:
            raise FailedError(last_words(log))
        if time.monotonic() > limit:
            raise FailedError(f"did not open its port within {BOOT_S:g} s")
        time.sleep(0.002)


def end(process: subprocess.Popen[bytes], port: int = PORT) -> None:
    """Ask the server to end, kill what is left of its session, and wait until the port is free."""
    process.send_signal(signal.SIGTERM)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(STOP_S)
    for pid in members(process.pid):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    process.wait(10)
    limit = time.monotonic() + 10
    while answers(port):
        if time.monotonic() > limit:
            raise SystemExit(f"port {port} is still open: another program has it")
        time.sleep(0.05)


def last_words(log: Path) -> str:
    """The last line of a server's output."""
    lines = log.read_text(errors="replace").strip().splitlines()
    return lines[-1] if lines else "it wrote nothing"


def members(session: int) -> list[int]:
    """The live processes of a session."""
    found = []
    for entry in os.listdir("/proc"):
        fields = stat_fields(entry) if entry.isdigit() else []
        if fields and int(fields[3]) == session and fields[0] != "Z":
            found.append(int(entry))
    return found


def stat_fields(pid: str) -> list[str]:
    """The fields of /proc/PID/stat after the name: state, parent, group, session, …"""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []


def cpu_seconds(session: int) -> float:
    """User and system time of the session's processes: all threads, and reaped children."""
    ticks = 0
    for pid in members(session):
        if fields := stat_fields(str(pid)):
            ticks += sum(map(int, fields[11:15]))
    return ticks / os.sysconf("SC_CLK_TCK")


def cpu_ns(session: int) -> int:
    """CPU time of the live threads only, in ns: precise enough for a server that is almost idle."""
    total = 0
    for pid in members(session):
        for task in Path(f"/proc/{pid}/task").glob("*/schedstat"):
            with contextlib.suppress(OSError):
                total += int(task.read_text().split()[0])
    return total


def memory_mb(session: int) -> float:
    """Proportional set size of the session: a shared page counts in part for each process."""
    total = 0
    for pid in members(session):
        with contextlib.suppress(OSError):
            text = Path(f"/proc/{pid}/smaps_rollup").read_text()
            total += int((re.search(r"^Pss:\s+(\d+)", text, re.MULTILINE) or [0, 0])[1])
    return total / 1024


def loopback_bytes() -> int:
    """Bytes that the loopback interface has received so far."""
    text = Path("/proc/net/dev").read_text()
    return int((re.search(r"^\s*lo:\s*(\d+)", text, re.MULTILINE) or [0, 0])[1])


class PeakMemory:
    """Samples `memory_mb` twice a second inside the block; `peak_mb` is the largest sample."""

    def __init__(self, session: int) -> None:
        self.session = session
        self.peak_mb = 0.0
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._sample)

    def __enter__(self) -> PeakMemory:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._done.set()
        self._thread.join()

    def _sample(self) -> None:
        while True:
            self.peak_mb = max(self.peak_mb, memory_mb(self.session))
            if self._done.wait(SAMPLE_S):
                return
