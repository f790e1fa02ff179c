"""System calls of the arbiter fail, by strace's fault injection: it continues, and still stops."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import requests

from integration.conftest import CLASSES, Serve
from integration.server import APPS, DEADLINE_S, Server, wait_for
from integration.test_control import servoctl

if TYPE_CHECKING:
    from collections.abc import Iterator

STRACE = shutil.which("strace")


def may_trace() -> bool:
    """Whether this system lets us trace a process of ours, with faults."""
    if STRACE is None:
        return False
    probe = [STRACE, "-qq", "-o", "/dev/null", "-e", "inject=getppid:error=EPERM", "true"]
    return subprocess.run(probe, capture_output=True, timeout=60, check=False).returncode == 0


pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(STRACE is None, reason="strace is not installed"),
    pytest.mark.skipif(not may_trace(), reason="this system does not allow ptrace"),
]


@contextmanager
def faults(pid: int, *injections: str) -> Iterator[None]:
    """System calls of one thread of a process fail: "write:error=ENOSPC"."""
    assert STRACE is not None
    flags = [flag for injection in injections for flag in ("-e", f"inject={injection}")]
    names = ",".join(injection.partition(":")[0] for injection in injections)
    tracer = subprocess.Popen(
        [STRACE, "-qq", "-o", "/dev/null", "-e", f"trace={names}", *flags, "-p", str(pid)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    try:
        wait_for(lambda: tracer_of(pid) == tracer.pid, "the tracer")
        yield
    finally:
        tracer.terminate()
        assert tracer.stderr is not None
        print(tracer.stderr.read().decode())
        tracer.stderr.close()
        tracer.wait(DEADLINE_S)


def tracer_of(pid: int) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("TracerPid:"):
            return int(line.split()[1])
    return 0


# Each without an end, unless that would keep the arbiter from the event itself.
FAULTS = [
    "write:error=ENOSPC",
    "write:error=EAGAIN",
    "write:error=EIO",
    "openat:error=EMFILE",
    "openat:error=EACCES",
    "?clone,?clone3,?fork,?vfork:error=EAGAIN",
    "?clone,?clone3,?fork,?vfork:error=ENOMEM",
    "kill:error=EPERM",
    "wait4:error=ECHILD:when=1",
    "wait4:error=EINTR:when=1",
    "epoll_ctl:error=ENOMEM:when=1",
    "epoll_ctl:error=ENOSPC",
    "epoll_wait:error=EINTR:when=1",
    "memfd_create:error=EMFILE",
    "memfd_create:error=ENOSYS",
    "socketpair:error=EMFILE",
    "pipe2:error=EMFILE",
    "sendto:error=ENOBUFS:when=1",
    "recvfrom:error=ECONNRESET:when=1",
    "accept4:error=EPERM:when=1",
    "accept4:error=EMFILE:when=1",
    "?newfstatat,?fstat,?stat,?lstat,?statx:error=EACCES",
    "ftruncate:error=EIO",
    "pread64:error=EIO",
    "dup3:error=EMFILE",
    "?fchown,?fchmod:error=EPERM",
    "getsockopt:error=ENOBUFS",
    "ioctl:error=EIO",
    "close:error=EIO:when=2",
]


def ready_pids(server: Server) -> list[int]:
    """By the arbiter's own word; not by its log, which is among what fails."""
    shown = servoctl("--pid", str(server.pid), "workers", "--json")
    if shown.returncode != 0:
        return []
    rows = json.loads(shown.stdout)["workers"]
    ready = [row["pid"] for row in rows if row["state"] == "ready"]
    return ready if len(ready) == len(rows) == 2 else []


def answers(server: Server) -> bool:
    return requests.get(f"{server.url}/", timeout=DEADLINE_S).ok


@pytest.mark.parametrize("fault", FAULTS)
def test_the_arbiter_goes_on(serve: Serve, fault: str) -> None:
    app = f"{APPS / 'stuck_app'}.py:wsgi"
    server = serve(app, "-k", "sync", "-w", "2", "--pid", "pid", ready=2)
    victim, _ = wait_for(lambda: ready_pids(server), "two ready workers")
    with faults(server.pid, fault):
        server.signal(signal.SIGUSR1)
        mark = server.mark()
        # Replaced by a fork, and waited for. Killed, one after the other would back off.
        os.kill(victim, signal.SIGTERM)
        assert answers(server)
        server.signal(signal.SIGHUP)
        servoctl("--pid", str(server.pid), "status")
        servoctl("--pid", str(server.pid), "stack", "1")
        assert answers(server)
        assert not server.exited(), server.log()[mark:]
    assert len(wait_for(lambda: ready_pids(server), "two ready workers", 60)) == 2
    assert server.stop() == 0


ENDS = [
    "write:error=ENOSPC",
    "kill:error=EPERM",
    "openat:error=EMFILE",
    "unlink:error=EACCES",
    "?unlinkat,?rename,?renameat:error=EROFS",
    "?newfstatat,?fstat,?stat,?lstat,?statx:error=EACCES",
    "epoll_ctl:error=ENOMEM",
    "close:error=EIO:when=1",
    "sendto:error=ENOBUFS:when=1",
    "flock:error=EINTR",
]


@pytest.mark.parametrize("fault", ENDS)
def test_a_stop_goes_through(serve: Serve, tmp_path: Path, fault: str) -> None:
    app = f"{APPS / 'stuck_app'}.py:wsgi"
    limits = ("--graceful-timeout", "5", "--pid", "pid")
    server = serve(app, "-w", "2", *limits, "--bind", f"unix:{tmp_path}/s", ready=2)
    with faults(server.pid, fault):
        assert server.stop() == 0


CLIENT_LOST = ["EPERM", "EPROTO", "ENETDOWN", "EHOSTUNREACH", "ENOPROTOOPT", "ETIMEDOUT"]


@pytest.mark.parametrize("worker_class", CLASSES)
def test_a_worker_goes_on_when_clients_are_lost(serve: Serve, worker_class: str) -> None:
    interface = "asgi" if worker_class == "async" else "wsgi"
    app = f"{APPS / 'stuck_app'}.py:{interface}"
    server = serve(app, "-w", "1", *CLASSES[worker_class][1])
    (pid,) = server.worker_pids()
    for error in CLIENT_LOST:
        with faults(pid, f"?accept,?accept4:error={error}:when=1"):
            assert requests.get(f"{server.url}/", timeout=DEADLINE_S).text == str(pid)
    assert server.worker_pids() == [pid]
