"""Measure one server with one workload for one round.

`Workload.how` names the function. Each one returns a Sample. If a server fails, or can't do it, the
sample is {"error": reason}.
"""

from __future__ import annotations

import contextlib
import http.client
import ssl
import time
from collections.abc import Callable, Sequence

import lifecycle
import load
from process import (
    LOG,
    FailedError,
    PeakMemory,
    Running,
    cpu_seconds,
    loopback_bytes,
    proxy,
    running,
)
from servers import PORT, PROXY_PORT, Server, UnableError
from workloads import WORKLOADS, Workload

# Figures under the names of the columns in report.py, or only "error".
Sample = dict[str, "float | str"]

WARM_UP_S = 1.0
# What OpenSSL and rustls choose by default.
CIPHER = ("TLSv1.3", "TLS_AES_256_GCM_SHA384")
IDLE_CONNECTIONS = 1000
# Every server gets the same rate: this share of what the slowest one can do, but at most
# OFFERED_MOST requests/s. Records of November 2026 and before had the same limit.
OFFERED_SHARE = 0.4
OFFERED_MOST = 2000.0
# Requests/s, and one in how many is slow. Evenly spread, that blocks each of 4 workers for 12 % of
# the time. This has to be more than a tenth: below it, slow requests would not reach the p90, and
# all servers would look alike.
MIXED_RATE = 240.0
SLOW_EVERY = 50
# How long a server may buffer lines of its access log, s.
LOG_FLUSH_S = 3.0


def measure(
    python: str, server: Server, workloads: Sequence[Workload], seconds: float, rate: float
) -> dict[str, Sample]:
    """Measure these workloads on one server, and restart it if one needs another setup.

    seconds  the length of each measurement
    rate     requests/s that a paced workload sends
    """
    found: dict[str, Sample] = {}
    queue = list(workloads)
    while queue:
        workload, setup = queue[0], queue[0].setup
        try:
            with running(python, server, setup) as session:
                while queue and queue[0].setup == setup:
                    workload = queue[0]
                    case = Case(python, server, session, workload, seconds, rate)
                    found[workload.name] = rounded(METHODS[workload.how](case))
                    queue.pop(0)
        except (UnableError, FailedError) as error:
            # The text becomes a cell of a Markdown table: one short line without "|".
            found[workload.name] = {"error": " ".join(str(error).replace("|", "/").split())[:200]}
            queue.pop(0)
    return found


def rounded(sample: Sample) -> Sample:
    """Round to four digits after the point, because people read the records, too."""
    return {name: round(float(figure), 4) for name, figure in sample.items()}


def offered_rate(python: str, servers: Sequence[Server]) -> float:
    """A rate for paced workloads (requests/s) that all of these servers can easily serve."""
    hello = WORKLOADS["hello"]
    capacities = []
    for server in servers:
        if server.kind in hello.kinds:
            with contextlib.suppress(FailedError), running(python, server, hello.setup):
                found = load.closed(hello, WARM_UP_S)
                capacities.append(found["requests"] / found["seconds"])
    return round(min([OFFERED_MOST, *(OFFERED_SHARE * c for c in capacities)]))


class Case:
    """The argument of each method: a running server and the workload."""

    def __init__(
        self,
        python: str,
        server: Server,
        session: Running,
        workload: Workload,
        seconds: float,
        rate: float,
    ) -> None:
        self.python = python
        self.server = server
        self.session = session
        self.workload = workload
        self.seconds = seconds
        self.rate = rate

    def under(self, generate: Callable[[float], load.Load], seconds: float | None = None) -> Sample:
        """Warm up, run the load for `seconds`, and measure its cost for the server."""
        generate(WARM_UP_S)
        window = self.seconds if seconds is None else seconds
        with PeakMemory(self.session.pid) as memory:
            before = cpu_seconds(self.session.pid)
            found = generate(window)
            used = cpu_seconds(self.session.pid) - before
        return {
            "cpu_us": used / found["requests"] * 1e6,
            "rps": found["requests"] / found["seconds"],
            **{name: found[name] for name in found if name.endswith(("_ms", "_percent"))},
            "pss_mb": memory.peak_mb,
            "errors": found["errors"],
        }


def closed(case: Case) -> Sample:
    probe(case.workload)
    return case.under(lambda seconds: complete(case.workload, seconds))


def complete(workload: Workload, seconds: float) -> load.Load:
    """Run the load. Raises FailedError if fewer bytes went over the wire than the bodies have, or
    if lines are missing in the access log. The load generator itself does not notice if a server
    answers an upload before it has read all of it."""
    request = workload.request
    answer = request.answer if isinstance(request.answer, int) else len(request.answer)
    before, log_end = loopback_bytes(), LOG.stat().st_size
    found = load.closed(workload, seconds)
    each = (loopback_bytes() - before) / found["requests"]
    if each < len(request.body) + answer:
        raise FailedError(f"only {each:.0f} bytes went over the wire for each request")
    if workload.setup.access_log:
        expect_lines(found["requests"], log_end)
    return found


def expect_lines(number: float, start: int) -> None:
    """Wait until the log has `number` lines after `start` (bytes). Raises FailedError."""
    limit = time.monotonic() + LOG_FLUSH_S
    while (lines := LOG.read_bytes()[start:].count(b"\n")) < number:
        if time.monotonic() > limit:
            raise FailedError(f"logged {lines} lines for {number:.0f} requests")
        time.sleep(0.1)


def beside_idle(case: Case) -> Sample:
    if not case.server.keeps_alive:
        raise UnableError("closes after each response: no connection stays idle")
    with load.idle_connections(IDLE_CONNECTIONS, case.workload.request):
        return closed(case)


def echo(case: Case) -> Sample:
    return case.under(lambda seconds: load.echo(case.workload, seconds))


def http2(case: Case) -> Sample:
    return case.under(lambda seconds: load.http2(case.workload, seconds))


def paced(case: Case) -> Sample:
    """Measure for twice the time, because few requests decide the p99.9."""
    probe(case.workload)
    rate = case.workload.rate or case.rate
    sample = case.under(lambda s: load.paced(case.workload, s, rate), 2 * case.seconds)
    return {**sample, "offered_rps": rate}


def resumed(case: Case) -> Sample:
    probe(case.workload)
    return case.under(lambda seconds: load.resumed(case.workload, seconds))


def behind_nginx(case: Case) -> Sample:
    """The load goes through nginx; the figures are the server's own, and nginx's CPU time."""
    probe(case.workload)
    with proxy() as front:
        before = cpu_seconds(front.pid)
        requests = 0.0

        def generate(seconds: float) -> load.Load:
            nonlocal requests
            found = load.closed(case.workload, seconds, PROXY_PORT, polls=False)
            requests += found["requests"]
            return found

        sample = case.under(generate)
        used = cpu_seconds(front.pid) - before
    return {**sample, "nginx_us": used / requests * 1e6}


def mixed(case: Case) -> Sample:
    probe(case.workload)
    alone = case.under(lambda s: load.mixed(case.workload, s, MIXED_RATE, 0))
    sample = case.under(
        lambda s: load.mixed(case.workload, s, MIXED_RATE, SLOW_EVERY), 2 * case.seconds
    )
    return {**sample, "p90_alone_ms": alone["p90_ms"], "p99_alone_ms": alone["p99_ms"]}


def start_up(case: Case) -> Sample:
    setup = case.workload.setup
    return {**lifecycle.start_up(case.python, case.session, setup.app)}


def reload(case: Case) -> Sample:
    if not case.server.family.reloads:
        raise UnableError("has no reload by a signal")
    return {**lifecycle.reload(case.session, case.workload.setup.workers)}


def idle(case: Case) -> Sample:
    return {**lifecycle.idle(case.session)}


def start_all(case: Case) -> Sample:
    return {**lifecycle.start_all(case.session, case.workload.setup.workers)}


def memory_under_load(case: Case) -> Sample:
    return closed(case)


def memory(case: Case) -> Sample:
    return {**lifecycle.memory(case.session)}


def respawn(case: Case) -> Sample:
    return {**lifecycle.respawn(case.session)}


METHODS: dict[str, Callable[[Case], Sample]] = {
    f.__name__: f
    for f in (
        *(closed, beside_idle, behind_nginx, echo, http2, paced, mixed, resumed),
        *(start_up, start_all, reload, idle, memory, memory_under_load, respawn),
    )
}


def probe(workload: Workload) -> None:
    """Check one response in full, because a load only counts responses. Raises FailedError."""
    request = workload.request
    connection: http.client.HTTPConnection
    if workload.setup.tls:
        context = ssl._create_unverified_context()
        connection = http.client.HTTPSConnection("127.0.0.1", PORT, timeout=10, context=context)
    else:
        connection = http.client.HTTPConnection("127.0.0.1", PORT, timeout=10)
    with contextlib.closing(connection):
        try:
            if workload.setup.tls:
                expect_cipher(connection)
            method = "POST" if request.body else "GET"
            connection.request(method, request.path, request.body or None, dict(request.fields))
            response = connection.getresponse()
            body = response.read()
        except (OSError, http.client.HTTPException) as error:
            raise FailedError(f"did not answer: {error!r}") from error
    whole = (
        len(body) == request.answer if isinstance(request.answer, int) else body == request.answer
    )
    if response.status != 200 or not whole:
        raise FailedError(f"answered {response.status} with {len(body)} bytes: {body[:40]!r}")


def expect_cipher(connection: http.client.HTTPConnection) -> None:
    """Fail unless the server chooses CIPHER, because the costs of others can't be compared."""
    connection.connect()
    name, version, _ = connection.sock.cipher()
    if (version, name) != CIPHER:
        raise FailedError(f"chose {version} with {name}")
