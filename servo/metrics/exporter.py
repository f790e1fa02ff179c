"""The process that serves metrics and probes, over the shared memory.

The arbiter forks it, so that neither a scraper nor a balancer's probe, however hostile, can hold up
the supervision or a worker. It ends when the arbiter says so, or dies.

/metrics      Prometheus' text or OpenMetrics, as the client asks
/-/live       200 while the arbiter does its work
/-/ready      200 while requests are welcome; 503 from the moment that a stop is asked for
/status.json  the same numbers for people and scripts
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
from servo.metrics.http_server import Answer, SmallServer

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Sequence

    from servo.http.events import Request
    from servo.metrics.families import Reader
    from servo.metrics.prometheus import Exposition
    from servo.metrics.statsd import StatsdClient

log = logging.getLogger("servo.error")

TICK_S = 1.0
# Scrapes within this time get the same text, whoever asks how often.
CACHE_S = 0.25

_TEXT = "text/plain; charset=utf-8"
_LIVE_FILE = re.compile(r"gauge_live\w*_(\d+)\.db", re.ASCII)


@dataclass(frozen=True)
class ExporterSetup:
    """What the process is made of.

    listeners    the sockets that it serves on; none: only statsd
    reader       looks at the server
    end_fd       readable, or closed at its other end, when the process is to end
    arbiter_pid  whose end is this process's, too
    directory    PROMETHEUS_MULTIPROC_DIR, or None
    statsd       a client to send by, or None
    """

    listeners: Sequence[socket.socket]
    reader: Reader
    end_fd: int
    arbiter_pid: int
    directory: str | None = None
    statsd: StatsdClient | None = None


def export(setup: ExporterSetup) -> int:
    """Serve until told to end; the exit code."""
    pages = Pages(setup.reader, setup.directory) if setup.listeners else None
    server = SmallServer(setup.listeners, pages.answer if pages is not None else _nothing)
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
            next_tick = time.monotonic() + TICK_S
            server.sweep()
            if pages is not None:
                pages.tick()
            if setup.statsd is not None:
                setup.statsd.look(setup.reader)
    if setup.statsd is not None:
        # What was counted since the last second.
        setup.statsd.look(setup.reader)
        setup.statsd.close()
    server.close()
    return 0


class Pages:
    """What is served. prometheus-client is imported here, and nowhere else in Servo."""

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
        """The answer to a request."""
        page = self._pages.get(request.path)
        if page is None:
            names = b"".join(b"%b\n" % name for name in self._pages)
            return Answer(404, _TEXT, b"There are:\n" + names)
        if request.method not in ("GET", "HEAD"):
            return Answer(405, _TEXT, b"Only GET and HEAD\n")
        try:
            return page(request)
        except Exception:
            # A bug in one page must not end the probes.
            log.exception("%s can't be served", request.target.decode("latin-1"))
            return Answer(500, _TEXT, b"See the server's log\n")

    def tick(self) -> None:
        """Once a second: remove what workers that are gone have left of themselves.

        By their files: a worker may come and go between two looks at the scoreboard.
        """
        left = _pids_of_files(self._directory)
        for pid in left.difference(row.pid for row in self._reader.scoreboard.snapshot()):
            if not os.path.exists(f"/proc/{pid}"):  # else it is a worker's child, say
                self._exposition.forget(pid)

    def _metrics(self, request: Request) -> Answer:
        # Several Accept fields mean one list (RFC 9110 section 5.3).
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
        age = self._reader.facts.read().beat_age_s
        if age < ARBITER_SILENT_S:
            return Answer(200, _TEXT, b"live\n")
        return Answer(503, _TEXT, b"the arbiter has done nothing for %.0f s\n" % age)

    def _ready(self, _request: Request) -> Answer:
        why = why_not_ready(self._reader.facts.read(), self._reader.scoreboard.snapshot())
        return Answer(503 if why else 200, _TEXT, f"{why or 'ready'}\n".encode())

    def _fresh(self, key: str, render: Callable[[], Answer]) -> Answer:
        """What was rendered under this key a moment ago, or now."""
        now = self._clock()
        self._cached = {k: v for k, v in self._cached.items() if now - v[0] < CACHE_S}
        if key not in self._cached:
            self._cached[key] = now, render()
        return self._cached[key][1]


def _pids_of_files(directory: str | None) -> set[int]:
    """Whose living-process metrics lie there."""
    if directory is None or not os.path.isdir(directory):
        return set()
    return {
        int(match[1]) for name in os.listdir(directory) if (match := _LIVE_FILE.fullmatch(name))
    }


def _nothing(_request: Request) -> Answer:
    return Answer(404, _TEXT, b"")
