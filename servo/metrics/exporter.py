"""The metrics process: serves metrics and health probes, and sends statsd's datagrams.

It reads its numbers from shared memory and /proc. It is a separate process so that scrapers and
probes don't slow down the arbiter or a worker. It ends when the arbiter asks it to, or dies.

/metrics      Prometheus' text format or OpenMetrics, by the client's Accept field
/-/live       200 while the arbiter's loop turns
/-/ready      200 while the server wants requests; 503 as soon as it begins to stop
/status.json  the same numbers as JSON
"""

from __future__ import annotations

import json
import logging
import os
import re
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from servo.metrics.families import ARBITER_SILENT_S, status, why_not_ready
from servo.metrics.http_server import Answer, MetricsHTTPServer

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Sequence

    from servo.http.events import Request
    from servo.metrics.families import Reader
    from servo.metrics.prometheus import Exposition
    from servo.metrics.statsd import StatsdClient

log = logging.getLogger("servo.error")

EXPORT_INTERVAL_S = 1.0
# When the process is told to end, accepted clients have this many seconds for their requests. The
# arbiter waits 1 s for the process.
FINISH_S = 0.5
# A rendered page is reused for this many seconds, so that frequent scrapes cost little.
CACHE_S = 0.25

_TEXT = "text/plain; charset=utf-8"
_LIVE_FILE = re.compile(r"gauge_live\w*_(\d+)\.db", re.ASCII)


@dataclass(frozen=True)
class ExporterSetup:
    """The inputs of the metrics process.

    listeners    the sockets to serve on; empty if only statsd is used
    reader       collects the numbers
    end_fd       a pipe; the process ends when it becomes readable or its other end is closed
    arbiter_pid  the arbiter's process id; the metrics process also ends when the arbiter does
    directory    PROMETHEUS_MULTIPROC_DIR, or None
    statsd       the statsd client, or None
    """

    listeners: Sequence[socket.socket]
    reader: Reader
    end_fd: int
    arbiter_pid: int
    directory: str | None = None
    statsd: StatsdClient | None = None


def export(setup: ExporterSetup) -> int:
    """Serve until the arbiter asks the process to end, or dies. Returns the exit code."""
    pages = Pages(setup.reader, setup.directory) if setup.listeners else None
    server = MetricsHTTPServer(setup.listeners, pages.answer if pages is not None else _not_found)
    ended: list[bool] = []
    server.call_when_readable(setup.end_fd, lambda: ended.append(True))
    if hasattr(os, "pidfd_open"):
        try:
            pidfd = os.pidfd_open(setup.arbiter_pid)
        except ProcessLookupError:
            return 0
        server.call_when_readable(pidfd, lambda: ended.append(True))
    next_tick = 0.0
    while not ended:
        server.turn(max(next_tick - time.monotonic(), 0.0))
        if time.monotonic() >= next_tick:
            next_tick = time.monotonic() + EXPORT_INTERVAL_S
            server.sweep()
            if pages is not None:
                pages.tick()
            if setup.statsd is not None:
                setup.statsd.send_changes(setup.reader)
    if setup.statsd is not None:
        # Send the counts since the last tick.
        setup.statsd.send_changes(setup.reader)
        setup.statsd.close()
    server.finish(FINISH_S)
    server.close()
    return 0


class Pages:
    """The pages that the metrics process serves.

    reader     collects the numbers
    directory  PROMETHEUS_MULTIPROC_DIR, or None
    clock      returns monotonic seconds

    Only this class imports prometheus-client, which saves memory in the arbiter and the workers.
    """

    def __init__(
        self,
        reader: Reader,
        directory: str | None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        from servo.metrics.prometheus import Exposition, negotiate

        self._negotiate = negotiate
        self._reader = reader
        self._clock = clock
        self._exposition: Exposition = Exposition(reader, directory)
        self._directory = directory
        self._cached: dict[str, tuple[float, Answer]] = {}
        self._pages: dict[bytes, Callable[[Request], Answer]] = {
            b"/metrics": self._metrics,
            b"/-/live": self._live,
            b"/-/ready": self._ready,
            b"/status.json": self._status,
        }

    def answer(self, request: Request) -> Answer:
        """Return the answer to a request. Never raises."""
        page = self._pages.get(request.path)
        if page is None:
            names = b"".join(b"%b\n" % name for name in self._pages)
            return Answer(404, _TEXT, b"Not found. The pages are:\n" + names)
        if request.method not in ("GET", "HEAD"):
            return Answer(405, _TEXT, b"Only GET and HEAD are allowed\n")
        try:
            return page(request)
        except Exception:
            # A bug in one page must not end the probes.
            log.exception("The metrics page %s failed", request.target.decode("latin-1"))
            return Answer(500, _TEXT, b"Internal error. See the server's log\n")

    def tick(self) -> None:
        """Remove the live-process metrics of processes that have ended. Called once a second.

        This looks at the files, not at the rows of the scoreboard, because a worker may start and
        end between two ticks.
        """
        left = _pids_of_files(self._directory)
        for pid in left.difference(row.pid for row in self._reader.scoreboard.snapshot()):
            # Look at /proc, because a process without a row may be a live child of a worker.
            if not os.path.exists(f"/proc/{pid}"):
                self._exposition.forget(pid)

    def _metrics(self, request: Request) -> Answer:
        # Several Accept fields are one list (RFC 9110 section 5.3).
        given = [value for name, value in request.headers if name.lower() == b"accept"]
        content_type = self._negotiate(b",".join(given).decode("latin-1"))

        def render() -> Answer:
            self.tick()
            return Answer(200, content_type, self._exposition.render(content_type))

        return self._fresh(content_type, render)

    def _status(self, _request: Request) -> Answer:
        def render() -> Answer:
            text = json.dumps(status(self._reader.read()), indent=1)
            return Answer(200, "application/json", text.encode() + b"\n")

        return self._fresh("status", render)

    def _live(self, _request: Request) -> Answer:
        age = self._reader.facts.read().heartbeat_age_s
        if age < ARBITER_SILENT_S:
            return Answer(200, _TEXT, b"live\n")
        return Answer(503, _TEXT, b"the arbiter has been silent for %.0f s\n" % age)

    def _ready(self, _request: Request) -> Answer:
        why = why_not_ready(self._reader.facts.read(), self._reader.scoreboard.snapshot())
        return Answer(503 if why else 200, _TEXT, f"{why or 'ready'}\n".encode())

    def _fresh(self, key: str, render: Callable[[], Answer]) -> Answer:
        """The answer with this key, from the cache or rendered now."""
        now = self._clock()
        self._cached = {k: v for k, v in self._cached.items() if now - v[0] < CACHE_S}
        if key not in self._cached:
            self._cached[key] = now, render()
        return self._cached[key][1]


def _pids_of_files(directory: str | None) -> set[int]:
    """The processes with `gauge_live` files in the directory: metrics of live processes."""
    if directory is None or not os.path.isdir(directory):
        return set()
    return {
        int(match[1]) for name in os.listdir(directory) if (match := _LIVE_FILE.fullmatch(name))
    }


def _not_found(_request: Request) -> Answer:
    return Answer(404, _TEXT, b"")
