"""The operator of the chaos run, who changes everything, and the faults.

Every act of `Operator` is random in its details. The operators first do what is on their common
agenda, which has every act and every broken release, so even a short run does everything. Then each
does its acts in rounds: a round has all of them, some several times, in a random order.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import re
import signal
import ssl
import threading
import time
from collections import Counter
from collections.abc import Collection
from pathlib import Path
from typing import Any

import trustme
from chaos_clients import Tally
from chaos_leaks import client_ports, thread_states

from integration import releases
from integration.server import Server, alive, command_line, processes
from integration.turmoil import control_path, workers_of
from servo.control.client import ControlClient, ControlError

SOURCE = Path(__file__).with_name("chaos_app.py").read_text()
# The broken releases that don't boot.
BROKEN = {
    **releases.BROKEN,
    "crashes on import": "import os\nos.abort()\n",
    "has no app": "nothing = None\n",
}
# The broken release that boots. `bake_time` has to find it.
ANSWERS_500 = "answers 500"
# A broken release that hangs is noticed after this time.
BOOT_S = 8
WORKERS = (2, 4)
PAUSE_S = (0.2, 1.5)
# How many seconds the server may take to carry out a request. The run does not check its speed.
PATIENCE_S = 90.0
MOLD = re.compile(r"servo: mold of generation (\d+)")

# The acts of one round (methods of `Operator`), and how often a round has each of them.
ACTS = {
    "good": 3,
    "broken": 2,
    "answer_500": 1,
    "roll_back": 1,
    "scale": 2,
    "scale_by_signals": 1,
    "restart": 2,
    "terminate": 1,
    "reopen": 1,
    "upgrade": 1,
    "upgrade_in_a_hurry": 1,
    "kill": 2,
    "stop_for_a_while": 1,
    "stop_for_good": 1,
}
# Further acts: those of servers with a mold, with `refork_after`, and with TLS.
MOLD_ACTS = {"kill_mold": 1, "stop_mold": 1, "stop_mold_for_a_while": 1}
REFORK_ACTS = {"refork": 1, "disturb_refork": 2}
TLS_ACTS = {"renew": 1}
# The faults that disturb a refork: the first three befall the worker that forks the next mold.
REFORK_FAULTS = ("kill", "stop_for_good", "stop_for_a_while", "kill_mold")


def source(release: int, fails: bool = False) -> str:
    """The application of a release."""
    return SOURCE.replace("{version}", str(release)).replace("{fails}", "yes" if fails else "")


class Certificate:
    """The certificate file of the servers that speak TLS."""

    def __init__(self, authority: trustme.CA, path: Path) -> None:
        self.authority = authority
        self.path = path
        self.lock = threading.Lock()
        self.renew()

    def renew(self) -> None:
        with self.lock:
            self._renew()

    def _renew(self) -> None:
        issued = self.authority.issue_cert("localhost", "127.0.0.1")
        new = self.path.with_suffix(".new")
        issued.private_key_and_cert_chain_pem.write_to_path(str(new))
        new.replace(self.path)
        self.current = ssl.PEM_cert_to_DER_cert(issued.cert_chain_pems[0].bytes().decode())

    def is_shown(self, port: int) -> bool:
        return ssl.PEM_cert_to_DER_cert(ssl.get_server_certificate(("127.0.0.1", port))) == (
            self.current
        )


class Agenda:
    """The acts that the operators do first, each of them on any one server.

    Each operator has its own thread, so a lock protects the lists.

    faults  the broken releases to deploy next
    """

    def __init__(self, chance: random.Random) -> None:
        common = [*ACTS, *(["broken"] * (len(BROKEN) - 1))]
        chance.shuffle(common)
        # Begin with the acts that only some operators can do.
        self.acts = [*REFORK_ACTS, *MOLD_ACTS, *TLS_ACTS, *common]
        self.chance = chance
        self.faults: list[str] = []
        self.lock = threading.Lock()

    def take(self, acts: Collection[str]) -> str | None:
        """Take the next of these acts off the agenda, if there is one."""
        with self.lock:
            found = next((act for act in self.acts if act in acts), None)
            if found is not None:
                self.acts.remove(found)
            return found

    def put_back(self, act: str) -> None:
        with self.lock:
            self.acts.append(act)

    def take_fault(self) -> str:
        with self.lock:
            if not self.faults:
                self.faults = list(BROKEN)
                self.chance.shuffle(self.faults)
            return self.faults.pop()


class Operator:
    """Does random things to one server.

    agenda   common to all operators
    done     how often each act has succeeded, by name
    release  the number of the newest release, good or one that answers 500
    """

    def __init__(
        self,
        server: Server,
        tally: Tally,
        chance: random.Random,
        certificate: Certificate | None,
        agenda: Agenda,
    ) -> None:
        self.server = server
        self.tally = tally
        self.agenda = agenda
        self.chance = chance
        self.certificate = certificate
        self.preloaded = "--preload" in server.args
        self.reforked = "--refork-after" in server.args
        self.done: Counter[str] = Counter()
        self.release = 0
        self.socket = ""

    def acts(self) -> list[str]:
        """The acts of one round, by name."""
        times = Counter(ACTS)
        if self.preloaded:
            times.update(MOLD_ACTS)
        if self.reforked:
            times.update(REFORK_ACTS)
        if self.certificate is not None:
            times.update(TLS_ACTS)
        return list(times.elements())

    async def work(self, end: float) -> None:
        acts: list[str] = []
        while time.monotonic() < end:
            if not acts:
                acts = self.acts()
                self.chance.shuffle(acts)
            act = self.agenda.take(acts) or acts.pop()
            name = act.replace("_", " ")
            try:
                await getattr(self, act)()
            except (ProcessLookupError, FileNotFoundError):
                self.agenda.put_back(act)
                await asyncio.sleep(0.1)  # the process was gone already
                continue
            except TimeoutError as error:
                self.tally.failed.append(f"{self.tally.name}, operator, {name}: {error}")
                continue
            except ControlError as error:
                self.agenda.put_back(act)
                self.done[f"{name}, refused"] += 1
                if "stopping" in str(error):
                    self.tally.failed.append(f"{self.tally.name}: {error}")
                continue
            self.done[name] += 1
            await asyncio.sleep(self.chance.uniform(*PAUSE_S))

    # --- releases -----------------------------------------------------------------------------

    def deploy(self, fails: bool = False) -> int:
        """Write a new release to the disk. Returns its number."""
        self.release += 1
        releases.deploy(self.server.cwd, source(self.release, fails))
        return self.release

    async def good(self) -> None:
        self.deploy()
        self.server.signal(signal.SIGHUP)

    async def broken(self) -> None:
        """Deploy a release that doesn't boot, and then a good one."""
        fault = self.agenda.take_fault()
        await self.quiet()
        mark = self.mark()
        releases.deploy(self.server.cwd, BROKEN[fault])
        self.server.signal(signal.SIGHUP)
        # Only with a mold: without one, the killed worker's replacement would run the broken
        # release.
        if self.preloaded and len(workers_of(self.server)) > 1:
            await self.kill()
        await self.logged(r"reload \(.*\) rolled back: ", mark)
        self.deploy()
        self.server.signal(signal.SIGHUP)
        self.done[f"broken: {fault}"] += 1
        await asyncio.sleep(1.0)

    async def answer_500(self) -> None:
        """Deploy a release that boots and then answers 500, and wait until the bake ends it.

        Until all its workers have ended, its 500 responses count as correct.
        """
        await self.quiet()
        mark = self.mark()
        release = self.release + 1
        self.tally.failing[release] = float("inf")
        self.deploy(fails=True)
        self.server.signal(signal.SIGHUP)
        await self.logged(r"is rolled back to generation \d+: \S+ of its responses are 5xx", mark)
        if not self.preloaded:
            # Workers import the code that is on the disk, so deploy a good release.
            mark = self.mark()
            self.deploy()
            self.server.signal(signal.SIGHUP)
            await self.logged(r"reload \(SIGHUP\) finished", mark)
        await self.quiet()
        self.tally.failing[release] = time.monotonic()
        await asyncio.sleep(1.0)
        if self.preloaded:
            # A later upgrade reads the code from the disk, so put a good release there.
            self.deploy()
        self.done[f"broken: {ANSWERS_500}"] += 1

    async def roll_back(self) -> None:
        """Return from a good release to the one before, during the reload or after it."""
        await self.quiet()
        mark = self.mark()
        self.deploy()
        self.server.signal(signal.SIGHUP)
        early = self.chance.random() < 0.3
        await self.logged("reading the configuration" if early else "is kept for", mark)
        await self.request("rollback", {})
        await self.logged(r"rolled back.*: .* rollback", mark)
        await self.quiet()

    async def refork(self) -> None:
        """Deploy a good release, and wait until one of its workers has forked the next mold."""
        _, mark = await self.begin_refork()
        await self.logged(r"refork \(.*\) finished", mark)

    async def disturb_refork(self) -> None:
        """Deploy a good release, and disturb its refork by a fault, a reload or an upgrade."""
        pid, mark = await self.begin_refork()
        await asyncio.sleep(self.chance.choice((0.0, 0.0, 0.1, 0.3, 1.0)))
        disturbance = self.chance.choice((*REFORK_FAULTS, "good", "upgrade_in_a_hurry"))
        with contextlib.suppress(ProcessLookupError, FileNotFoundError):  # it was faster
            if disturbance == "kill":
                await self.kill(pid)
            elif disturbance == "stop_for_good":
                await self.stop_for_good(pid)
            elif disturbance == "stop_for_a_while":
                await self.stop_for_a_while(pid)
            elif disturbance == "kill_mold":
                os.kill(self.mold()[1], signal.SIGKILL)
            else:
                await getattr(self, disturbance)()
        outcome = await self.logged(r"refork \(.*\) (finished|rolled back)", mark)
        self.done[f"disturbed refork: {outcome[1]}"] += 1
        self.done[f"disturbed refork: {disturbance.replace('_', ' ')}"] += 1

    async def begin_refork(self) -> tuple[int, int]:
        """Deploy a good release, and wait until its refork begins.

        It begins after the bake. Returns the pid of the worker that forks the next mold, and a
        `mark` before the refork.
        """
        await self.quiet()
        mark = self.mark()
        self.deploy()
        self.server.signal(signal.SIGHUP)
        # The reload of an upgrade that is being prepared is also that of a HUP.
        await self.logged(r"reload \((SIGHUP|upgrade)\) finished", mark)
        mark = self.mark()
        found = await self.logged(r"refork \(worker \d+ \(pid (\d+)\) .*: it forks", mark)
        return int(found[1]), mark

    # --- workers, logs, certificates, the program ---------------------------------------------

    async def scale(self) -> None:
        await self.request("scale", {"to": str(self.chance.randint(*WORKERS))})

    async def scale_by_signals(self) -> None:
        self.server.signal(signal.SIGTTIN)
        await asyncio.sleep(self.chance.uniform(0.0, 2.0))
        self.server.signal(signal.SIGTTOU)

    async def restart(self) -> None:
        slot = self.chance.randint(1, WORKERS[0])
        await self.request("restart-worker", {"slot": slot, "wait": False})

    async def terminate(self) -> None:
        os.kill(self.some_worker(), signal.SIGTERM)

    async def reopen(self) -> None:
        self.server.signal(signal.SIGUSR1)

    async def renew(self) -> None:
        """Replace the certificate on disk; no signal tells the server."""
        assert self.certificate is not None
        self.certificate.renew()

    async def upgrade(self) -> None:
        """Replace the arbiter's program."""
        await self.quiet()
        mark = self.mark()
        self.server.signal(signal.SIGUSR2)
        await self.logged(r"upgraded: Servo", mark)

    async def upgrade_in_a_hurry(self) -> None:
        """Request an upgrade at any time; the arbiter refuses it during a reload."""
        self.server.signal(signal.SIGUSR2)
        await asyncio.sleep(2.0)

    # --- faults -------------------------------------------------------------------------------

    async def kill(self, pid: int = 0) -> None:
        pid = pid or self.some_worker()
        await self.stop(pid)
        await asyncio.sleep(self.chance.uniform(0.0, 0.3))
        os.kill(pid, signal.SIGKILL)

    async def stop_for_a_while(self, pid: int = 0) -> None:
        """Stop a worker for less than `timeout`: no request may be lost."""
        pid = pid or self.some_worker()
        os.kill(pid, signal.SIGSTOP)
        await asyncio.sleep(self.chance.uniform(0.2, 2.0))
        os.kill(pid, signal.SIGCONT)

    async def stop_for_good(self, pid: int = 0) -> None:
        """Stop a worker until the arbiter kills it like any worker that hangs."""
        pid = pid or self.some_worker()
        await self.stop(pid)
        end = time.monotonic() + PATIENCE_S
        while alive(pid):
            if time.monotonic() > end:
                os.kill(pid, signal.SIGKILL)
                raise TimeoutError(f"stopped worker {pid} lives on")
            await asyncio.sleep(0.1)

    async def kill_mold(self) -> None:
        """Kill the newest mold: its workers continue to serve, and a new mold takes its place."""
        # Wait, because the arbiter doesn't log the death of a mold that it is ending anyway.
        await self.quiet()
        mark = self.mark()
        generation, pid = self.mold()
        os.kill(pid, signal.SIGKILL)
        await self.logged(rf"the mold of generation {generation} \(pid {pid}\) ended", mark)

    async def stop_mold(self) -> None:
        """Stop the mold until the arbiter gives it up, because it forks no worker."""
        await self.quiet()
        mark = self.mark()
        generation, pid = self.mold()
        os.kill(pid, signal.SIGSTOP)
        try:
            await self.kill()
        except ProcessLookupError:
            os.kill(pid, signal.SIGCONT)
            raise
        await self.logged(rf"the mold of generation {generation} \(pid {pid}\) ended", mark)

    async def stop_mold_for_a_while(self) -> None:
        _, pid = self.mold()
        os.kill(pid, signal.SIGSTOP)
        await asyncio.sleep(self.chance.uniform(0.2, 3.0))
        os.kill(pid, signal.SIGCONT)

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

    def mold(self) -> tuple[int, int]:
        """The generation and the pid of the newest mold."""
        found = []
        for process in processes():
            if process.parent == self.server.pid and process.state != "Z":
                match = MOLD.match(command_line(process.pid))
                found += [(int(match[1]), process.pid)] if match else []
        if not found:
            raise ProcessLookupError
        return max(found)

    # --- questions and answers ----------------------------------------------------------------

    def control(self) -> ControlClient:
        self.socket = self.socket or control_path(self.server)
        return ControlClient(self.socket, PATIENCE_S)

    async def request(self, command: str, args: dict[str, Any]) -> None:
        def ask() -> None:
            with self.control() as client:
                client.request(command, args)

        await asyncio.to_thread(ask)

    async def quiet(self) -> None:
        """Wait until no change is under way: all workers are ready, and of one generation."""

        def is_quiet() -> bool:
            try:
                with self.control() as client:
                    status = client.request("status")
                    rows = client.request("workers")["workers"]
            except (ControlError, OSError):
                return False  # an upgrade is under way
            wanted = ("ready", status["generation"])
            return status["state"] == "running" and all(
                (row["state"], row["generation"]) == wanted for row in rows
            )

        end = time.monotonic() + PATIENCE_S
        while not await asyncio.to_thread(is_quiet):
            if time.monotonic() > end:
                raise TimeoutError(f"still changes after {PATIENCE_S:g} s")
            await asyncio.sleep(0.1)

    def mark(self) -> int:
        """The bytes in the server's log."""
        return self.server.log_path.stat().st_size

    async def logged(self, pattern: str, mark: int) -> re.Match[str]:
        """Wait for a log line after `mark`."""
        end = time.monotonic() + PATIENCE_S
        while True:
            with self.server.log_path.open("rb") as log:
                log.seek(mark)
                if found := re.search(pattern, log.read().decode(errors="replace")):
                    return found
            if time.monotonic() > end:
                raise TimeoutError(f"no log line /{pattern}/ within {PATIENCE_S:g} s")
            await asyncio.sleep(0.1)
