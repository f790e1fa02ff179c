"""Chaos: clients of many kinds, a random operator, and processes that die.

Three servers, one of each class, are loaded for a given time. Meanwhile a random operator deploys
good and broken releases, scales, restarts workers and rotates logs, and faults kill or stop
workers. Every answer is checked. A lost request is excused only if a killed worker held
its connection. To know that, the run first stops the worker, then lists its sockets from /proc (a
stopped worker can't accept another one), and only then kills it.

The run looks at each server before the load and after it, both times when the server has settled.
In between, it may not have gained descriptors of any kind, zombies, processes or socket files, and
its memory may have grown only within limits.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import re
import signal
import ssl
import time
from collections import Counter
from pathlib import Path
from typing import Any

import trustme
from chaos_clients import Tally, clients

from integration import releases
from integration.server import Process, Server, alive, command_line, memory, processes, wait_for
from integration.turmoil import connect as control
from integration.turmoil import workers_of
from servo.control.client import ControlError

SOURCE = Path(__file__).with_name("chaos_app.py").read_text()
CLASSES = {
    "sync": ("wsgi", ("-k", "sync")),
    "thread": ("wsgi", ("-k", "thread", "--threads", "4")),
    "async": ("asgi", ("-k", "async")),
}
BROKEN = {
    **releases.BROKEN,
    "crashes on import": "import os\nos.abort()\n",
    "has no app": "nothing = None\n",
}
# A broken release that hangs is noticed after BOOT_S; the rest is slack for a busy machine.
BOOT_S = 8
LIMITS = ("--boot-timeout", str(BOOT_S), "--timeout", "6", "--graceful-timeout", "15")
WORKERS = (2, 4)
SETTLED = 3
WARM_UP_S = 3.0
# Bytes of RSS that an arbiter may gain in the run, and a worker (see `Growth`).
ARBITER_GROWTH = 8 << 20
WORKER_GROWTH = 64 << 20


# --- the operator, and faults ---------------------------------------------------------------------


class Operator:
    """Does random things to one server."""

    def __init__(self, server: Server, tally: Tally, chance: random.Random) -> None:
        self.server = server
        self.tally = tally
        self.chance = chance
        self.done: Counter[str] = Counter()
        self.release = 0

    async def work(self, end: float) -> None:
        actions = [
            *([self.good] * 4),
            *([self.broken] * 2),
            *([self.scale] * 2),
            self.scale_by_signals,
            *([self.restart] * 2),
            self.terminate,
            self.reopen,
            *([self.kill] * 2),
            self.stop_for_a_while,
            self.stop_for_good,
        ]
        while time.monotonic() < end:
            action = self.chance.choice(actions)
            try:
                await action()
            except (ProcessLookupError, FileNotFoundError):
                continue  # the worker was gone already
            except ControlError as error:
                self.done[f"{action.__name__}, refused"] += 1
                if "stopping" in str(error):
                    self.tally.failed.append(f"{self.tally.name}: {error}")
                continue
            self.done[action.__name__] += 1
            await asyncio.sleep(self.chance.uniform(0.2, 2.5))

    def deploy(self) -> None:
        self.release += 1
        source = SOURCE.replace("{version}", str(self.release))
        releases.deploy(self.server.cwd, source)

    async def good(self) -> None:
        self.deploy()
        self.server.signal(signal.SIGHUP)

    async def broken(self) -> None:
        fault = self.chance.choice(list(BROKEN))
        releases.deploy(self.server.cwd, BROKEN[fault])
        self.server.signal(signal.SIGHUP)
        # A worker that died now would be replaced by the broken release, so kill none meanwhile.
        await asyncio.sleep(BOOT_S + 1.5 if "hangs" in fault else 1.5)
        self.deploy()
        self.server.signal(signal.SIGHUP)
        await asyncio.sleep(1.0)

    async def scale(self) -> None:
        await self.request("scale", {"to": str(self.chance.randint(*WORKERS))})

    async def scale_by_signals(self) -> None:
        self.server.signal(signal.SIGTTIN)
        await asyncio.sleep(self.chance.uniform(0.0, 2.0))
        self.server.signal(signal.SIGTTOU)

    async def restart(self) -> None:
        await self.request(
            "restart-worker", {"slot": self.chance.randint(1, WORKERS[0]), "wait": False}
        )

    async def request(self, command: str, args: dict[str, Any]) -> None:
        def ask() -> None:
            with control(self.server) as client:
                client.request(command, args)

        await asyncio.to_thread(ask)

    async def terminate(self) -> None:
        os.kill(self.some_worker(), signal.SIGTERM)

    async def reopen(self) -> None:
        self.server.signal(signal.SIGUSR1)

    async def kill(self) -> None:
        pid = self.some_worker()
        await self.stop(pid)
        await asyncio.sleep(self.chance.uniform(0.0, 0.3))
        os.kill(pid, signal.SIGKILL)

    async def stop_for_a_while(self) -> None:
        """Stop a worker for less than `timeout`: no request may be lost."""
        pid = self.some_worker()
        os.kill(pid, signal.SIGSTOP)
        await asyncio.sleep(self.chance.uniform(0.2, 2.0))
        os.kill(pid, signal.SIGCONT)

    async def stop_for_good(self) -> None:
        """Stop a worker until the arbiter kills it like any worker that hangs."""
        pid = self.some_worker()
        await self.stop(pid)
        end = time.monotonic() + 60
        while alive(pid):
            if time.monotonic() > end:
                self.tally.failed.append(f"{self.tally.name}: stopped worker {pid} lives on")
                os.kill(pid, signal.SIGKILL)
            await asyncio.sleep(0.1)

    async def stop(self, pid: int) -> None:
        """Stop a worker, and note the client ports of its connections, which end with it."""
        os.kill(pid, signal.SIGSTOP)
        while thread_states(pid) - {"T", "Z"}:
            await asyncio.sleep(0.001)
        for port in client_ports(pid, self.server.port):
            self.tally.stops[port].append(time.monotonic())

    def some_worker(self) -> int:
        pids = workers_of(self.server)
        # With a single worker, nothing would be served until it is replaced.
        if len(pids) < 2:
            raise ProcessLookupError
        return self.chance.choice(pids)


def thread_states(pid: int) -> set[str]:
    """The state letters of all threads: one may still accept after another has stopped."""
    found = set()
    for thread in Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(OSError):  # it has ended meanwhile
            found.add((thread / "stat").read_text().rpartition(")")[2].split()[0])
    return found


def client_ports(pid: int, port: int) -> set[int]:
    """The clients' ports of the connections to `port` that a process holds."""
    remote = {}
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        fields = line.split()
        if int(fields[1].rpartition(":")[2], 16) == port:
            remote[fields[9]] = int(fields[2].rpartition(":")[2], 16)
    held = set()
    for fd in os.listdir(f"/proc/{pid}/fd"):
        with contextlib.suppress(OSError):
            link = os.readlink(f"/proc/{pid}/fd/{fd}")
            inode = link.removeprefix("socket:[").rstrip("]")
            if link.startswith("socket:[") and remote.get(inode):
                held.add(remote[inode])
    return held


# --- leaks ----------------------------------------------------------------------------------------


class Possessions:
    """The resources of a settled server before the load, for a comparison at the end."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.arbiter = descriptors(server.pid)
        self.worker = [descriptors(pid) for pid in workers_of(server)]
        self.others = others(server)
        self.memory = memory(server.pid)

    def leaks(self) -> list[str]:
        """The resources of which the settled server has more than before."""
        found = [f"arbiter: {kind} +{n}" for kind, n in added(self.server.pid, [self.arbiter])]
        for pid in workers_of(self.server):
            found += [f"worker {pid}: {kind} +{n}" for kind, n in added(pid, self.worker)]
            if ports := client_ports(pid, self.server.port):
                found.append(f"worker {pid}: connections from ports {sorted(ports)}")
        found += [f"zombie of {each.parent}: {each.pid}" for each in zombies(self.server)]
        more = others(self.server) - self.others
        found += [f"process: {name} +{n}" for name, n in more.items()]
        with control(self.server) as client:
            listed = {row["pid"] for row in client.request("workers")["workers"]}
        if unlisted := set(workers_of(self.server)) ^ listed:
            found.append(f"unlisted or missing workers: {sorted(unlisted)}")
        return found

    def wait_for_leaks(self, patience_s: float = 15.0) -> list[str]:
        """Leaks that last: resources that were just closed get `patience_s` seconds to go."""
        end = time.monotonic() + patience_s
        while (found := self.leaks()) and time.monotonic() < end:
            time.sleep(0.2)
        return found


def descriptors(pid: int) -> Counter[str]:
    """How many file descriptors of each kind a process has open."""
    kinds: Counter[str] = Counter()
    for fd in os.listdir(f"/proc/{pid}/fd"):
        with contextlib.suppress(FileNotFoundError):
            # Leave out inodes and numbers in names, so that the kind remains.
            kinds[re.sub(r"\d+", "", os.readlink(f"/proc/{pid}/fd/{fd}"))] += 1
    return kinds


def added(pid: int, before: list[Counter[str]]) -> list[tuple[str, int]]:
    now = descriptors(pid)
    return [
        (kind, count - most)
        for kind, count in now.items()
        if count > (most := max((each[kind] for each in before), default=0))
    ]


def others(server: Server) -> Counter[str]:
    """The number of processes that are neither arbiter nor worker, by command line."""
    known = {server.pid, *workers_of(server)}
    return Counter(command_line(each.pid) for each in server.members() if each.pid not in known)


def zombies(server: Server) -> list[Process]:
    return [each for each in processes() if each.session in server.sessions and each.state == "Z"]


class Growth:
    """The memory that workers gain between their third sample and their last; one per second."""

    def __init__(self) -> None:
        self.first: dict[int, int] = {}
        self.seen: Counter[int] = Counter()
        self.most = 0

    async def watch(self, server: Server, end: float) -> None:
        while time.monotonic() < end:
            for pid in workers_of(server):
                with contextlib.suppress(OSError, IndexError):  # it has ended meanwhile
                    self.look(pid, memory(pid))
            await asyncio.sleep(1.0)

    def look(self, pid: int, size: int) -> None:
        self.seen[pid] += 1
        if self.seen[pid] == 3:
            self.first[pid] = size
        self.most = max(self.most, size - self.first.get(pid, size))


# --- the run --------------------------------------------------------------------------------------


def chaos(directory: Path, seconds: float, seed: int, problems: list[str]) -> dict[str, Any]:
    """Run everything. Returns a row of figures for each class."""
    print(f"chaos: {seconds:g} s, seed {seed}", flush=True)
    authority = trustme.CA()
    pair = authority.issue_cert("localhost", "127.0.0.1")
    pair.private_key_and_cert_chain_pem.write_to_path(str(directory / "pair.pem"))
    tls, tls_http2 = ssl.create_default_context(), ssl.create_default_context()
    authority.configure_trust(tls)
    authority.configure_trust(tls_http2)
    runs = {}
    try:
        for name, (attribute, flags) in CLASSES.items():
            place = directory / name
            place.mkdir()
            releases.deploy(place, SOURCE.replace("{version}", "0"))
            more = ("--certfile", str(directory / "pair.pem")) if name == "async" else ()
            logs = ("--access-logfile", str(place / "access.log"))
            workers = ("-w", str(SETTLED))
            server = Server(
                f"release:{attribute}", *flags, *workers, *LIMITS, *more, *logs, cwd=place
            )
            runs[name] = Run(name, server.start(), f"{seed} {name}")
        contexts = (tls, tls_http2)
        for run in runs.values():
            run.server.wait_ready(SETTLED)
        # Descriptors that a worker opens once, at its first connections, are no leak.
        asyncio.run(_load(list(runs.values()), contexts, WARM_UP_S, disturbed=False))
        for run in runs.values():
            run.begin()
        asyncio.run(_load(list(runs.values()), contexts, seconds, disturbed=True))
        rows = {name: run.row() for name, run in runs.items()}
        for run in runs.values():
            run.stop()
            problems += run.tally.failed
    finally:
        for run in runs.values():
            run.server.kill_all()
    return rows


async def _load(
    runs: list[Run],
    contexts: tuple[ssl.SSLContext, ssl.SSLContext],
    seconds: float,
    disturbed: bool,
) -> None:
    end = time.monotonic() + seconds
    tasks = []
    for run in runs:
        tasks += clients(run.tally, run.server.port, contexts, run.seed, end)
        if disturbed:
            # The operator ends earlier, so that its last action is over when the clients end.
            tasks.append(run.operator.work(end - min(10.0, seconds / 4)))
            tasks.append(run.growth.watch(run.server, end))
    await asyncio.gather(*tasks)


class Run:
    """One server, its clients and its operator."""

    def __init__(self, name: str, server: Server, seed: str) -> None:
        self.name = name
        self.server = server
        self.seed = seed
        self.tally = Tally(name)
        self.operator = Operator(server, self.tally, random.Random(f"{seed} operator"))
        self.growth = Growth()

    def begin(self) -> None:
        self.settle()

        def quiet() -> bool:
            return not any(client_ports(pid, self.server.port) for pid in workers_of(self.server))

        wait_for(quiet, "end of all connections")
        self.before = Possessions(self.server)

    def settle(self) -> None:
        """Wait until exactly SETTLED workers are there and all are ready."""
        with control(self.server) as client:
            client.request("scale", {"to": str(SETTLED)})

            def settled() -> bool:
                rows = client.request("workers")["workers"]
                return [row["state"] for row in rows] == ["ready"] * SETTLED

            wait_for(settled, f"{SETTLED} ready workers", 60)

    def row(self) -> dict[str, float]:
        """The figures, after all clients have ended."""
        tally = self.tally
        self.settle()
        tally.settle()
        leaked = self.before.wait_for_leaks()
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
            **{f"operator: {what}": n for what, n in sorted(self.operator.done.items())},
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
