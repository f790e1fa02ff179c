"""A real Servo for a test: its process, log, signals and remaining files."""

from __future__ import annotations

import atexit
import functools
import itertools
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

APPS = Path(__file__).parent / "apps"
REPOSITORY = Path(__file__).parents[2]

# The longest that anything here may take on a slow, busy machine. Nothing asserts that it is fast.
DEADLINE_S = 30.0

T = TypeVar("T")


def wait_for(
    condition: Callable[[], T],
    what: str = "",
    deadline_s: float = DEADLINE_S,
    every_s: float = 0.02,
) -> T:
    """The first true value of `condition()`; after the deadline an AssertionError with `what`."""
    end = time.monotonic() + deadline_s
    while True:
        if value := condition():
            return value
        assert time.monotonic() < end, f"no {what or condition} within {deadline_s} s"
        time.sleep(every_s)


def free_ports() -> Iterator[int]:
    """Loopback ports outside the kernel's ephemeral range: no client's socket takes one first.

    Each pytest-xdist worker has a range of its own.
    """
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0")[2:])
    first = 20_000 + worker * 1_500
    start = os.getpid() % 1_500
    for offset in itertools.count(start):
        port = first + offset % 1_500
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        yield port


_ports = free_ports()


def free_port() -> int:
    return next(_ports)


class Process:
    """One line of /proc, as it was when read."""

    def __init__(self, pid: int, parent: int, session: int, state: str) -> None:
        self.pid = pid
        self.parent = parent
        self.session = session
        self.state = state


def processes() -> list[Process]:
    found = []
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                stat = Path("/proc", entry, "stat").read_text()
            except OSError:
                continue  # it ended meanwhile
            state, parent, _, session = stat.rpartition(")")[2].split()[:4]
            found.append(Process(int(entry), int(parent), int(session), state))
    return found


def command_line(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode().strip()
    except OSError:
        return ""


def alive(pid: int) -> bool:
    return any(process.pid == pid and process.state != "Z" for process in processes())


def memory(pid: int) -> int:
    """Resident bytes of a process."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


class Server:
    """`servo ARGS` in a session of its own, whose every process is ended, by pid, with `stop()`.

    args           the command line; `--bind 127.0.0.1:PORT` is added unless it has one or
                   `bind=False`
    cwd            its working directory
    env            added to the environment; None as a value removes a name
    log_directory  where the file is that its standard output and error go to; else `cwd`

    log_path       that file
    """

    def __init__(
        self,
        *args: str,
        cwd: Path,
        env: dict[str, str | None] | None = None,
        bind: bool = True,
        pass_fds: tuple[int, ...] = (),
        command: tuple[str, ...] = (sys.executable, "-m", "servo"),
        log_directory: Path | None = None,
    ) -> None:
        self.port = free_port()
        self.args = [*args]
        if bind and not any(arg in ("-b", "--bind") or arg.startswith("--bind=") for arg in args):
            self.args += ["--bind", f"127.0.0.1:{self.port}"]
        self.cwd = cwd
        self.env = environment(env)
        self.log_path = (log_directory or cwd.resolve()) / f"servo-{self.port}.log"
        self.pass_fds = pass_fds
        self.command = command
        self.process: subprocess.Popen[bytes] | None = None
        self.sessions: set[int] = set()
        self.failed_to_stop = False

    # --- life ---------------------------------------------------------------------------------

    def start(self) -> Server:
        with self.log_path.open("ab") as log:
            self.process = subprocess.Popen(
                [*self.command, *self.args],
                cwd=self.cwd,
                env=self.env,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                pass_fds=self.pass_fds,
                start_new_session=True,
            )
        self.sessions.add(self.process.pid)
        return self

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def exited(self) -> bool:
        return self.process is not None and self.process.poll() is not None

    def wait_ready(self, workers: int = 1, deadline_s: float = DEADLINE_S) -> Server:
        """Until `workers` workers have said that they are ready."""

        def ready() -> bool:
            assert not self.exited(), f"servo ended with {self.process.returncode}"  # type: ignore[union-attr]
            return len(self.ready_pids()) >= workers

        wait_for(ready, f"{workers} ready workers", deadline_s)
        return self

    def wait_exit(self, deadline_s: float = DEADLINE_S) -> int:
        """The exit code, when the arbiter has ended."""
        assert self.process is not None
        try:
            return self.process.wait(deadline_s)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"servo still runs after {deadline_s} s") from None

    def stop(self, signum: int = signal.SIGTERM, deadline_s: float = DEADLINE_S) -> int | None:
        """End it; its exit code. Fails when any process of it survives."""
        if self.process is None:
            return None
        try:
            if not self.exited():
                self.process.send_signal(signum)
            code = self.wait_exit(deadline_s)
            wait_for(lambda: not self.members(), "end of every process of the server")
        finally:
            self.kill_all()
        return code

    def kill_all(self) -> None:
        for process in self.members():
            try:
                os.kill(process.pid, signal.SIGKILL)
            except ProcessLookupError:
                continue  # ended by itself meanwhile
        if self.process is not None:
            self.process.wait(DEADLINE_S)

    def members(self) -> list[Process]:
        """Every live process that the server started: those of its session."""
        return [p for p in processes() if p.session in self.sessions and p.state != "Z"]

    # --- what an operator does ----------------------------------------------------------------

    def signal(self, signum: int) -> None:
        os.kill(self.pid, signum)

    def signal_worker(self, pid: int, signum: int) -> None:
        assert pid in self.worker_pids()
        os.kill(pid, signum)

    def worker_pids(self) -> list[int]:
        """The live workers that the log has named, booting ones too, by pid.

        Not simply the arbiter's children: a file watcher or a check of the configuration is one.
        """
        said = {int(pid) for pid in NAMED.findall(self.log())}
        return sorted(pid for pid in self.children() if pid in said)

    def children(self) -> list[int]:
        """The pids of all live children of the process that was started."""
        return [p.pid for p in processes() if p.parent == self.pid and p.state != "Z"]

    def ready_pids(self) -> list[int]:
        """The live workers that have said in the log that they are ready."""
        said = {int(pid) for pid in READY.findall(self.log())}
        return [pid for pid in self.worker_pids() if pid in said]

    def wait_workers(self, count: int, deadline_s: float = DEADLINE_S) -> list[int]:
        """Until exactly `count` workers exist, all of them ready; their pids."""

        def settled() -> list[int] | None:
            ready = self.ready_pids()
            return ready if len(ready) == count == len(self.worker_pids()) else None

        return wait_for(settled, f"{count} workers", deadline_s)

    def wait_replaced(self, old: list[int], count: int | None = None) -> list[int]:
        """Until none of the `old` workers is left, and as many new ones are ready; their pids."""
        wanted = len(old) if count is None else count

        def replaced() -> list[int] | None:
            ready = self.ready_pids()
            # An old one may end between the two looks.
            gone = not set(old) & {*ready, *self.worker_pids()}
            return ready if gone and len(ready) == wanted == len(self.worker_pids()) else None

        return wait_for(replaced, "new workers in the place of all old ones")

    # --- its log ------------------------------------------------------------------------------

    def log(self) -> str:
        return self.log_path.read_text(errors="replace") if self.log_path.exists() else ""

    def mark(self) -> int:
        """Where the log ends now: `wait_log(…, since=mark)` looks only after it."""
        return len(self.log())

    def wait_log(
        self, pattern: str, since: int = 0, deadline_s: float = DEADLINE_S
    ) -> re.Match[str]:
        expression = re.compile(pattern, re.MULTILINE)

        def found() -> re.Match[str] | None:
            over = self.exited() and not self.members()
            match = expression.search(self.log(), since)
            assert match or not over, f"the server has ended without a log line /{pattern}/"
            return match

        return wait_for(found, f"log line /{pattern}/", deadline_s)


# "worker 3 (pid 4711) is ready after 0.21 s": the arbiter's own word for it.
NAMED = re.compile(r"worker \d+ \(pid (\d+)\)")
READY = re.compile(r"\(pid (\d+)\) is ready")


def assert_no_noise(server: Server) -> None:
    """The log of a server has no error, and nothing that Python complains of."""
    log = server.log()
    for noise in (
        "Traceback",
        " [ERROR] ",
        " [CRITICAL] ",
        "was never",
        "returning true from eof_received",
    ):
        assert noise not in log


@functools.cache
def runtime_directory() -> str:
    """Where the servers of this test run put their control sockets: a short path, as it must be."""
    directory = tempfile.mkdtemp(prefix="servo-run-")
    atexit.register(shutil.rmtree, directory, ignore_errors=True)
    return directory


def environment(changes: dict[str, str | None] | None = None) -> dict[str, str]:
    """This process's environment without what would configure a server, and with `changes`."""
    drop = ("SERVO_", "GUNICORN_", "UVICORN_", "LISTEN_", "NOTIFY_")
    names = ("PORT", "WEB_CONCURRENCY", "FORWARDED_ALLOW_IPS", "NO_COLOR")
    env = {k: v for k, v in os.environ.items() if not k.startswith(drop) and k not in names}
    env["PYTHONPATH"] = str(REPOSITORY)
    env["XDG_RUNTIME_DIR"] = runtime_directory()
    env["PYTHONDONTWRITEBYTECODE"] = "1"
    for name, value in (changes or {}).items():
        env.pop(name, None)
        if value is not None:
            env[name] = value
    return env


def run_servo(
    *args: str, cwd: Path, env: dict[str, str | None] | None = None
) -> subprocess.CompletedProcess[str]:
    """`servo ARGS` for a command that ends by itself."""
    return subprocess.run(
        [sys.executable, "-m", "servo", *args],
        cwd=cwd,
        env=environment(env),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        check=False,
    )
