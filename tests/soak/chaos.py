"""Chaos: clients of many kinds, a random operator, and processes that die.

Five servers are loaded for a given time by 32 clients each: one of each class, one with a mold, and
one whose workers fork the next mold. Meanwhile a random operator deploys good and broken releases,
rolls back, scales, restarts workers, upgrades Servo in place, and renews logs and certificates;
`max_requests` recycles workers. Faults kill or stop workers and molds. Every answer is checked. A
lost request is excused only if a killed worker held its connection. To know that, the run first
stops the worker, then lists its sockets from /proc (a stopped worker can't accept another one), and
only then kills it.

The run inspects each server before and after the load, both times when the server has settled.
After the load, the server may not have more descriptors of any kind, memfds, zombies, processes or
socket files than before, and its memory may have grown only within limits.
"""

from __future__ import annotations

import asyncio
import random
import re
import ssl
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import trustme
from chaos_clients import SECURE, Tally, clients
from chaos_leaks import Growth, Possessions, client_ports
from chaos_operator import BOOT_S, Agenda, Certificate, Operator, source

from integration import releases
from integration.server import Server, memory, wait_for
from integration.turmoil import connect as control
from integration.turmoil import workers_of

# Requests after which a worker may fork the next mold: fewer than `max_requests`.
REFORK_AFTER = 40
CLASSES = {
    "sync": ("wsgi", ("-k", "sync")),
    "thread": ("wsgi", ("-k", "thread", "--threads", "4")),
    "async": ("asgi", ("-k", "async")),
    "preload": ("asgi", ("-k", "async", "--preload")),
    # Class async can't be reforked.
    "refork": (
        "wsgi",
        ("-k", "thread", "--threads", "4", "--preload", "--refork-after", str(REFORK_AFTER)),
    ),
}
# Seconds that an old generation is kept. A release that answers 500 is noticed within this time.
BAKE_S = 12
LIMITS = (
    *("--boot-timeout", str(BOOT_S), "--timeout", "8", "--graceful-timeout", "60"),
    *("--bake-time", str(BAKE_S), "--max-requests", "200", "--max-requests-jitter", "100"),
)
SETTLED = 3
WARM_UP_S = 3.0
# Bytes of RSS that an arbiter may gain in the run, and that a worker may gain (see `Growth`).
ARBITER_GROWTH = 8 << 20
WORKER_GROWTH = 64 << 20
# Events that the servers cause by themselves, each with a pattern of its log line.
BY_ITSELF = {
    "recycled after max_requests": re.compile(r"will be replaced: recycled \(served"),
    "loaded a new certificate": re.compile(r"Certificate files have changed: new connections"),
    "killed for no heartbeat": re.compile(r"ended after .*: killed by the arbiter"),
    "made another mold": re.compile(r"reload \(generation \d+ has no mold\)"),
    "reforked": re.compile(r"refork \(.*\) finished after"),
}

T = TypeVar("T")


def chaos(directory: Path, seconds: float, seed: int, problems: list[str]) -> dict[str, Any]:
    """Run everything. Returns a row of figures for each class."""
    print(f"chaos: {seconds:g} s, seed {seed}", flush=True)
    authority = trustme.CA()
    certificate = Certificate(authority, directory / "pair.pem")
    agenda = Agenda(random.Random(f"{seed} agenda"))
    runs = {}
    try:
        for name, (attribute, flags) in CLASSES.items():
            place = directory / name
            place.mkdir()
            releases.deploy(place, source(0))
            tls_flags = ("--certfile", str(certificate.path), "--certfile-watch", "1")
            more = tls_flags if name in SECURE else ()
            logs = ("--access-logfile", str(place / "access.log"))
            workers = ("-w", str(SETTLED))
            server = Server(
                f"release:{attribute}", *flags, *workers, *LIMITS, *more, *logs, cwd=place
            )
            own = certificate if name in SECURE else None
            runs[name] = Run(
                name, server.start(), f"{seed} {name}", own, agenda, _contexts(authority)
            )
        each = list(runs.values())
        for run in each:
            run.server.wait_ready(SETTLED)
        # Descriptors that a worker opens once, at its first connections, are no leak.
        _on_each(each, lambda run: asyncio.run(run.load(WARM_UP_S, disturbed=False)))
        _on_each(each, Run.begin)
        _on_each(each, lambda run: asyncio.run(run.load(seconds, disturbed=True)))
        rows = dict(zip(runs, _on_each(each, Run.row), strict=True))
        _on_each(each, Run.stop)
        for run in each:
            problems += run.tally.failed
    finally:
        for run in runs.values():
            run.server.kill_all()
    return rows


def _contexts(authority: trustme.CA) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    found = ssl.create_default_context(), ssl.create_default_context()
    for context in found:
        authority.configure_trust(context)
    return found


def _on_each(runs: list[Run], step: Callable[[Run], T]) -> list[T]:
    """Call `step` for all servers at the same time.

    Each server has its own thread, so it also has its own event loop. In a single loop, 160 clients
    would wait for each other on a busy machine.
    """
    with ThreadPoolExecutor(len(runs)) as threads:
        return list(threads.map(step, runs))


class Run:
    """One server, its clients and its operator."""

    def __init__(
        self,
        name: str,
        server: Server,
        seed: str,
        certificate: Certificate | None,
        agenda: Agenda,
        contexts: tuple[ssl.SSLContext, ssl.SSLContext],
    ) -> None:
        self.name = name
        self.certificate = certificate
        self.contexts = contexts
        self.server = server
        self.seed = seed
        self.tally = Tally(name)
        chance = random.Random(f"{seed} operator")
        self.operator = Operator(server, self.tally, chance, certificate, agenda)
        self.growth = Growth()

    async def load(self, seconds: float, disturbed: bool) -> None:
        end = time.monotonic() + seconds
        tasks = clients(self.tally, self.server.port, self.contexts, self.seed, end)
        if disturbed:
            # The operator ends earlier, so that its last action is over when the clients end.
            tasks.append(self.operator.work(end - min(10.0, seconds / 4)))
            tasks.append(self.growth.watch(self.server, end))
        await asyncio.gather(*tasks)

    def begin(self) -> None:
        self.settle()

        def quiet() -> bool:
            return not any(client_ports(pid, self.server.port) for pid in workers_of(self.server))

        wait_for(quiet, "end of all connections")
        self.before = Possessions(self.server)

    def settle(self) -> None:
        """Wait until exactly SETTLED workers are there and ready, and no refork is going on."""
        with control(self.server) as client:
            client.request("scale", {"to": str(SETTLED)})

            def settled() -> bool:
                if client.request("status")["state"] != "running":
                    return False
                rows = client.request("workers")["workers"]
                return [row["state"] for row in rows] == ["ready"] * SETTLED

            wait_for(settled, f"{SETTLED} ready workers", 60)

    def row(self) -> dict[str, float]:
        """The figures, after all clients have ended."""
        tally = self.tally
        self.settle()
        tally.settle()
        if self.certificate is not None:
            shown = [self.certificate.is_shown(self.server.port) for _ in range(SETTLED * 4)]
            if not all(shown):
                tally.failed.append(f"{self.name}: a worker shows an old certificate")
        leaked = self.before.wait_for_leaks(BAKE_S + 15.0)
        tally.failed += [f"{self.name}: leaked {leak}" for leak in leaked]
        grown = memory(self.server.pid) - self.before.memory
        if grown > ARBITER_GROWTH:
            tally.failed.append(f"{self.name}: the arbiter has grown by {grown} bytes")
        if self.growth.most > WORKER_GROWTH:
            tally.failed.append(f"{self.name}: a worker has grown by {self.growth.most} bytes")
        return {
            "answers": tally.right.total(),
            **{f"of them {kind}": count for kind, count in sorted(tally.right.items())},
            "wrong answers": tally.wrong,
            "lost": tally.lost.total(),
            **{f"lost: {cause}": count for cause, count in sorted(tally.lost.items())},
            "on connections of killed workers": tally.excused.total(),
            "sent again after GOAWAY": tally.again.total(),
            "faults of httpx itself": tally.faulty.total(),
            "answered 500 by a broken release": tally.errors.total(),
            **{f"operator: {what}": n for what, n in sorted(self.operator.done.items())},
            **{
                f"server: {what}": len(line.findall(self.server.log()))
                for what, line in BY_ITSELF.items()
            },
            "workers seen": len(self.growth.seen),
            "leaked or unlisted": len(leaked),
            "arbiter MB grown": round(grown / 1e6, 2),
            "worker MB grown, most": round(self.growth.most / 1e6, 2),
        }

    def stop(self) -> None:
        """Stop the server. Nothing may be left, and only the releases may cause tracebacks."""
        server = self.server
        sockets = list(Path(server.env["XDG_RUNTIME_DIR"], "servo").glob(f"*{server.pid}*"))
        code = server.stop()
        failed = self.tally.failed
        if code != 0:
            failed.append(f"{self.name}: the server ended with {code}")
        if left := [path.name for path in sockets if path.exists()]:
            failed.append(f"{self.name}: left behind: {left}")
        tracebacks = server.log().split("Traceback")[1:]
        ours = [part for part in tracebacks if "release.py" not in part[:3000]]
        failed += [f"{self.name}: a traceback in the log: {part[:600]}" for part in ours[:3]]
