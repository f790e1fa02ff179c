"""The resources of a server in the chaos run: descriptors, memory, processes and sockets."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import time
from collections import Counter, defaultdict
from pathlib import Path

from integration.server import Process, Server, command_line, memory, processes
from integration.turmoil import connect as control
from integration.turmoil import workers_of

# uvloop opens this file with a worker's first connection, as a spare descriptor: by closing it,
# uvloop can accept a connection even if no descriptor is free.
SPARE = "/dev/null"


class Possessions:
    """The resources of a settled server before the load, for a comparison at the end."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.arbiter = descriptors(server.pid)
        self.worker = [descriptors(pid) for pid in workers_of(server)]
        self.others = others(server)
        # Its helpers and its mold, by command line.
        self.helpers: defaultdict[str, list[Counter[str]]] = defaultdict(list)
        for name, pid in helpers(server):
            self.helpers[name].append(descriptors(pid))
        self.memfds = memfds(server)
        self.sockets = socket_files(server)
        self.memory = memory(server.pid)

    def leaks(self) -> list[str]:
        """The resources of which the settled server has more than before."""
        found = [f"arbiter: {kind} +{n}" for kind, n in added(self.server.pid, [self.arbiter])]
        for pid in workers_of(self.server):
            found += [f"worker {pid}: {kind} +{n}" for kind, n in added(pid, self.worker)]
            if ports := client_ports(pid, self.server.port):
                found.append(f"worker {pid}: connections from ports {sorted(ports)}")
        for name, pid in helpers(self.server):
            found += [f"{name}: {kind} +{n}" for kind, n in added(pid, self.helpers[name])]
        more = memfds(self.server) - self.memfds
        found += [f"memfd: {name} +{n}" for name, n in more.items()]
        found += [f"socket file: {name}" for name in socket_files(self.server) - self.sockets]
        found += [f"zombie of {each.parent}: {each.pid}" for each in zombies(self.server)]
        more = others(self.server) - self.others
        found += [f"process: {name} +{n}" for name, n in more.items()]
        with control(self.server) as client:
            listed = {row["pid"] for row in client.request("workers")["workers"]}
        if unlisted := set(workers_of(self.server)) ^ listed:
            found.append(f"unlisted or missing workers: {sorted(unlisted)}")
        return found

    def wait_for_leaks(self, patience_s: float) -> list[str]:
        """The leaks that remain: recently closed resources have `patience_s` seconds to
        disappear."""
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
    now[SPARE] -= 1
    return [
        (kind, count - most)
        for kind, count in now.items()
        if count > (most := max((each[kind] for each in before), default=0))
    ]


def others(server: Server) -> Counter[str]:
    """The number of processes that are neither arbiter nor worker, by command line."""
    return Counter(name for name, _ in helpers(server))


def helpers(server: Server) -> list[tuple[str, int]]:
    """The processes that are neither arbiter nor worker: their command lines and pids."""
    known = {server.pid, *workers_of(server)}
    return [
        (re.sub(r"generation \d+", "a generation", command_line(each.pid)), each.pid)
        for each in server.members()
        if each.pid not in known
    ]


def memfds(server: Server) -> Counter[str]:
    """The files in memory that any process of the server has open or mapped, by name."""
    found: set[tuple[str, int]] = set()
    for process in server.members():
        with contextlib.suppress(OSError):  # it has ended meanwhile
            for fd in Path(f"/proc/{process.pid}/fd").iterdir():
                with contextlib.suppress(OSError):
                    if (link := os.readlink(fd)).startswith("/memfd:"):
                        found.add((link, fd.stat().st_ino))
            for line in Path(f"/proc/{process.pid}/maps").read_text().splitlines():
                if "/memfd:" in line:
                    inode, name = line.split(maxsplit=5)[4:]
                    found.add((name, int(inode)))
    return Counter(re.sub(r"\d+", "", name) for name, _ in found)


def socket_files(server: Server) -> set[str]:
    """The files that a server has in its runtime directory: they have its pid in their names."""
    directory = Path(server.env["XDG_RUNTIME_DIR"], "servo")
    return {path.name for path in directory.glob(f"*{server.pid}*")}


def zombies(server: Server) -> list[Process]:
    return [each for each in processes() if each.session in server.sessions and each.state == "Z"]


class Growth:
    """The memory that workers gain from their third sample on. Samples are taken once a second."""

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


def thread_states(pid: int) -> set[str]:
    """The state letters of all threads. One thread may still accept after another has stopped."""
    found = set()
    for thread in Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(OSError):  # it has ended meanwhile
            found.add((thread / "stat").read_text().rpartition(")")[2].split()[0])
    return found


def client_ports(pid: int, port: int) -> set[int]:
    """The clients' ports of the connections to `port` that a process holds.

    The kernel lists connections in several reads, and one that comes or goes meanwhile can hide
    another. So the list is read until it has all sockets of the process.
    """
    held = set()
    for fd in os.listdir(f"/proc/{pid}/fd"):
        with contextlib.suppress(OSError):
            link = os.readlink(f"/proc/{pid}/fd/{fd}")
            if link.startswith("socket:["):
                held.add(link.removeprefix("socket:[").rstrip("]"))
    held -= {line.split()[6] for line in Path("/proc/net/unix").read_text().splitlines()[1:]}
    remote: dict[str, int] = {}
    for _ in range(20):
        for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
            fields = line.split()
            if int(fields[1].rpartition(":")[2], 16) == port:
                remote[fields[9]] = int(fields[2].rpartition(":")[2], 16)
        if held <= remote.keys():
            break
    return {remote[inode] for inode in held if remote.get(inode)}
