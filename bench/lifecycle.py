"""Measure what a server does besides requests: starting, reloading, waiting."""

from __future__ import annotations

import http.client
import os
import signal
import statistics
import subprocess
import threading
import time

from process import FailedError, Running, cpu_ns, memory_mb, stat_fields
from servers import HERE, PORT

FIRST_ANSWER_S = 10.0
IMPORTS = 3

ASKERS = 8
PAUSE_S = 0.01
FIND_S = 10.0
RELOAD_S = 30.0

MEMORY_REQUESTS = 10_000
IMPORTED_S = 60.0
SUCCESSOR_S = 30.0
GROWN_UP_S = 7.0

SETTLE_S = 2.0
# A server that needs less CPU time than this (ms per second) has started all its workers.
STARTED_MS = 50.0
SETTLED_S = 20.0
IDLE_S = 5.0


def start_up(python: str, session: Running, app: str) -> dict[str, float]:
    """Time the start until the first response (ms), and an interpreter that only imports the app.
    The difference is the server's own time."""
    wait_answer("/", FIRST_ANSWER_S)
    total = time.monotonic() - session.started
    imports = statistics.median(import_time(python, app) for _ in range(IMPORTS))
    return {
        "start_ms": (total - imports) * 1e3,
        "total_ms": total * 1e3,
        "import_ms": imports * 1e3,
        "pss_mb": memory_mb(session.pid),
    }


def start_all(session: Running, workers: int) -> dict[str, float]:
    """Time the start until as many workers have answered (ms)."""
    with Askers() as askers:
        limit = time.monotonic() + IMPORTED_S
        while len(askers.seen) < workers:
            if time.monotonic() > limit:
                raise FailedError(
                    f"{len(askers.seen)} of {workers} workers answered within {IMPORTED_S:g} s"
                )
            time.sleep(0.001)
        total = time.monotonic() - session.started
    return {"all_ms": total * 1e3, "pss_mb": memory_mb(session.pid)}


def wait_answer(path: str, limit_s: float) -> None:
    """Wait for a response to this path. Raises FailedError after `limit_s` seconds."""
    limit = time.monotonic() + limit_s
    while get(path) is None:
        if time.monotonic() > limit:
            raise FailedError(f"did not answer within {limit_s:g} s")


def import_time(python: str, app: str) -> float:
    """Seconds that an interpreter takes to import the app. It runs on the load generator's core,
    because a server may be busy even without requests."""
    begun = time.monotonic()
    process = subprocess.Popen([python, "-c", f"import {app}"], cwd=HERE)
    if process.wait(60):
        raise FailedError(f"{app} cannot be imported")
    return time.monotonic() - begun


def reload(session: Running, workers: int) -> dict[str, float]:
    """Time a reload under load: seconds from HUP until every old worker has ended and as many new
    ones have answered. Counts the requests that got no response meanwhile."""
    with Askers() as askers:
        limit = time.monotonic() + FIND_S
        while len(askers.seen) < workers:
            if time.monotonic() > limit:
                raise FailedError(
                    f"{len(askers.seen)} of {workers} workers answered before the reload"
                )
            time.sleep(0.01)
        old = set(askers.seen)
        asked, lost = askers.asked, askers.lost
        begun = time.monotonic()
        os.kill(session.pid, signal.SIGHUP)
        while len(askers.seen - old) < workers or any(map(alive, old)):
            if time.monotonic() - begun > RELOAD_S:
                new = len(askers.seen - old)
                raise FailedError(f"{new} of {workers} workers were new {RELOAD_S:g} s after HUP")
            time.sleep(0.01)
        taken = time.monotonic() - begun
        return {
            "reload_s": taken,
            "lost": askers.lost - lost,
            "asked": askers.asked - asked,
        }


def idle(session: Running) -> dict[str, float]:
    """CPU time of the whole server without requests (ms per second), and its memory."""
    limit = time.monotonic() + SETTLED_S
    while cpu_share(session, SETTLE_S) > STARTED_MS and time.monotonic() < limit:
        pass  # the workers are starting
    return {
        "idle_cpu_ms": cpu_share(session, IDLE_S),
        "pss_mb": memory_mb(session.pid),
    }


def cpu_share(session: Running, seconds: float) -> float:
    """CPU time of the whole server during the next seconds (ms per second)."""
    before, begun = cpu_ns(session.pid), time.monotonic()
    time.sleep(seconds)
    return (cpu_ns(session.pid) - before) / 1e6 / (time.monotonic() - begun)


def memory(session: Running) -> dict[str, float]:
    """Measure the memory of the whole server (PSS, MB) after requests to all workers."""
    # Some servers open the port before they have imported the app.
    wait_answer("/pid", IMPORTED_S)
    ask_all("/", MEMORY_REQUESTS)
    return {"pss_mb": memory_mb(session.pid)}


def respawn(session: Running) -> dict[str, float]:
    """Kill the only worker, and time how long it takes until its successor answers (ms)."""
    wait_answer("/pid", IMPORTED_S)
    old = get("/pid")
    if old is None:
        raise FailedError("the worker did not answer")
    # A worker that dies young may be replaced after a pause only.
    time.sleep(GROWN_UP_S)
    begun = time.monotonic()
    os.kill(int(old), signal.SIGKILL)
    while get("/pid") in (None, old):
        if time.monotonic() - begun > SUCCESSOR_S:
            raise FailedError(f"no successor answered within {SUCCESSOR_S:g} s of a kill")
        time.sleep(0.001)
    return {"successor_ms": (time.monotonic() - begun) * 1e3}


def ask_all(path: str, number: int) -> None:
    """Send this many requests on `ASKERS` connections at a time, each on a new one, so that every
    worker gets its share."""
    numbers = iter(range(number))
    lock = threading.Lock()
    failed: list[str] = []

    def ask() -> None:
        while not failed:
            with lock:
                n = next(numbers, None)
            if n is None:
                return
            if get(f"{path}?n={n}") is None:
                failed.append(f"request {n} got no response")

    threads = [threading.Thread(target=ask) for _ in range(ASKERS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failed:
        raise FailedError(failed[0])


def get(path: str) -> str | None:
    """Send one request on a new connection; return the body, or None without a 200 response."""
    connection = http.client.HTTPConnection("127.0.0.1", PORT, timeout=5)
    try:
        connection.request("GET", path, headers={"Connection": "close"})
        response = connection.getresponse()
        body = response.read().decode()
    except (OSError, http.client.HTTPException):
        return None
    finally:
        connection.close()
    return body if response.status == 200 else None


def alive(pid: int) -> bool:
    fields = stat_fields(str(pid))
    return bool(fields) and fields[0] != "Z"


class Askers:
    """Threads that ask for a worker's pid inside the block, each time on a new connection."""

    def __init__(self) -> None:
        self.seen: set[int] = set()
        self.asked = 0
        self.lost = 0
        self._lock = threading.Lock()
        self._done = threading.Event()
        self._threads = [threading.Thread(target=self._ask) for _ in range(ASKERS)]

    def __enter__(self) -> Askers:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._done.set()
        for thread in self._threads:
            thread.join()

    def _ask(self) -> None:
        while not self._done.wait(PAUSE_S):
            answer = get("/pid?pause=1")
            with self._lock:
                self.asked += 1
                if answer is None:
                    self.lost += 1
                else:
                    self.seen = self.seen | {int(answer)}
