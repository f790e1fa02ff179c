"""Chaos: clients of many kinds, an operator who does anything at any time, and processes that die.

Three servers, one of each class, are loaded for a given time. Meanwhile a random operator deploys
good and broken releases, scales, restarts workers and rotates logs, and faults kill or stop
workers. Every answer is checked. A lost request is excused only if its connection was held by a
worker that was killed: the worker is stopped first, the sockets that it holds are listed from /proc
(it can't accept another one meanwhile), and only then is it killed.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import random
import signal
import socket
import ssl
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx
import trustme
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake

from integration import releases
from integration.server import Server, alive, memory, processes, wait_for
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
LIMITS = ("--boot-timeout", "4", "--timeout", "6", "--graceful-timeout", "15")
WORKERS = (2, 4)
# A client that waits longer has lost its request, whatever comes.
PATIENCE_S = 40.0
PAUSE_S = 0.03
BLOCK = bytes(range(256)) * 64
# RSS that an arbiter may gain between the first tenth of the run and its end.
GROWTH_LIMIT = 8 << 20


class Lost(Exception):  # noqa: N818
    """A request without its answer; `port` is the client's own."""

    def __init__(self, port: int, what: str) -> None:
        super().__init__(what)
        self.port = port


class Tally:
    """What came of all requests to one server."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.right: Counter[str] = Counter()
        self.failed: list[str] = []
        self.excused: Counter[str] = Counter()
        self.pending: list[tuple[float, str, int, str]] = []
        # Client ports of the connections that killed workers held.
        self.dead_ports: dict[int, float] = {}

    async def watch(self, kind: str, ask: Callable[[], Awaitable[None]]) -> None:
        """Make one request of this kind and note what came of it."""
        try:
            await asyncio.wait_for(ask(), PATIENCE_S)
        except Lost as lost:
            self.pending.append((time.time(), kind, lost.port, str(lost)))
        except (asyncio.TimeoutError, TimeoutError):
            self.failed.append(f"{self.name} {kind}: no answer within {PATIENCE_S:g} s")
        except AssertionError as error:
            self.failed.append(f"{self.name} {kind}: WRONG: {error}")
        else:
            self.right[kind] += 1

    def settle(self) -> None:
        """Judge the losses: by now the ports of every worker that was killed are known."""
        for when, kind, port, what in self.pending:
            if port in self.dead_ports:
                self.excused[kind] += 1
            else:
                stamp = time.strftime("%H:%M:%S", time.localtime(when))
                self.failed.append(f"{self.name} {kind} at {stamp} from port {port}: {what}")
        self.pending.clear()


# --- clients ------------------------------------------------------------------------------------


class Http1:
    """One HTTP/1.1 connection at a time. Each method but `exchange` and its parts is one kind of
    request."""

    def __init__(self, port: int, chance: random.Random, tls: ssl.SSLContext | None) -> None:
        self.port = port
        self.chance = chance
        self.tls = tls
        self.own_port = 0
        self.reader: asyncio.StreamReader | None = None
        self.writer: asyncio.StreamWriter | None = None

    async def open(self) -> None:
        if self.reader is not None and not self.reader.at_eof():
            return
        self.close()
        sock, self.own_port = await connected(self.port)
        try:
            self.reader, self.writer = await asyncio.open_connection(
                sock=sock,
                ssl=self.tls,
                server_hostname="localhost" if self.tls else None,
                limit=1 << 20,
            )
        except OSError as error:
            raise Lost(self.own_port, f"no TLS connection: {error!r}") from error

    def close(self) -> None:
        if self.writer is not None:
            self.writer.close()
        self.reader = self.writer = None

    async def exchange(self, *requests: bytes) -> list[bytes]:
        """Send all at once, read all answers."""
        await self.open()
        assert self.writer is not None
        port = self.own_port
        try:
            self.writer.write(b"".join(requests))
            answers = []
            for number, _ in enumerate(requests):
                body, closes = await self.read()
                answers.append(body)
                if closes:
                    self.close()
                    if number + 1 < len(requests):
                        # The server has said that it answers no more on this connection.
                        answers += await self.exchange(*requests[number + 1 :])
                    break
        except (OSError, asyncio.IncompleteReadError, ValueError) as error:
            self.close()
            partial = getattr(error, "partial", b"")
            raise Lost(port, f"{error!r} {partial[:120]!r}") from error
        return answers

    async def read(self) -> tuple[bytes, bool]:
        assert self.reader is not None
        head = await self.reader.readuntil(b"\r\n\r\n")
        if not head.startswith(b"HTTP/1.1 200"):
            raise ValueError(f"answered {head[:40]!r}")
        fields = dict(
            line.lower().split(b": ", 1) for line in head.split(b"\r\n")[1:] if b": " in line
        )
        if b"content-length" in fields:
            body = await self.reader.readexactly(int(fields[b"content-length"]))
        else:
            assert fields.get(b"transfer-encoding") == b"chunked", head
            body = b""
            while size := int(await self.reader.readuntil(b"\r\n"), 16):
                body += (await self.reader.readexactly(size + 2))[:-2]
            await self.reader.readexactly(2)
        return body, fields.get(b"connection") == b"close"

    def token(self) -> bytes:
        return b"%08x" % self.chance.getrandbits(32)

    async def kept(self) -> None:
        token = self.token()
        path = self.chance.choice([b"/", b"/", b"/", b"/slow"])
        (body,) = await self.exchange(get(path + b"?" + token))
        assert body.endswith(b" " + token), body

    async def fresh(self) -> None:
        self.close()
        token = self.token()
        (body,) = await self.exchange(get(b"/?" + token, b"Connection: close\r\n"))
        assert body.endswith(b" " + token), body
        self.close()

    async def pipelined(self) -> None:
        tokens = [self.token() for _ in range(4)]
        bodies = await self.exchange(*(get(b"/?" + token) for token in tokens))
        assert [body.split(b" ")[2] for body in bodies] == tokens, bodies

    async def uploaded(self) -> None:
        body = self.chance.randbytes(self.chance.choice([10, 5_000, 200_000]))
        pieces = [body[i : i + 50_000] for i in range(0, len(body), 50_000)]
        chunks = b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces)
        head = b"POST /upload HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
        (answer,) = await self.exchange(head + chunks + b"0\r\n\r\n")
        assert answer.endswith(hashlib.sha256(body).hexdigest().encode()), answer

    async def downloaded(self) -> None:
        blocks = self.chance.choice([1, 20, 200])
        (body,) = await self.exchange(get(b"/big?%d" % blocks))
        assert body == BLOCK * blocks, f"{len(body)} bytes of {len(BLOCK) * blocks}"

    async def streamed(self) -> None:
        count = self.chance.choice([3, 20])
        (body,) = await self.exchange(get(b"/events?%d" % count))
        assert body.count(b"data: ") == count + 1, body
        assert body.endswith(b"data: end\n\n"), body


async def connected(port: int) -> tuple[socket.socket, int]:
    """A connection, and the port at this end, known even if nothing comes of it."""
    sock = socket.socket()
    sock.setblocking(False)
    try:
        await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", port))
    except OSError as error:
        sock.close()
        raise Lost(0, f"not connected: {error!r}") from error
    return sock, int(sock.getsockname()[1])


def get(target: bytes, fields: bytes = b"") -> bytes:
    return b"GET %b HTTP/1.1\r\nHost: x\r\n%b\r\n" % (target, fields)


class Http2:
    """httpx over HTTP/2, several requests at a time on one connection."""

    def __init__(self, port: int, chance: random.Random, tls: ssl.SSLContext) -> None:
        self.port = port
        self.chance = chance
        self.ports: list[int] = [0]
        limits = httpx.Limits(max_connections=1)
        self.client = httpx.AsyncClient(
            http1=False, http2=True, verify=tls, limits=limits, timeout=PATIENCE_S, trust_env=False
        )

    async def trace(self, name: str, info: dict[str, Any]) -> None:
        if name == "connection.connect_tcp.complete":
            address = info["return_value"].get_extra_info("client_addr")
            self.ports.append(address[1] if address else 0)

    async def asked(self) -> None:
        token = f"{self.chance.getrandbits(32):08x}"
        try:
            response = await self.client.get(
                f"https://localhost:{self.port}/?{token}", extensions={"trace": self.trace}
            )
        except httpx.HTTPError as error:
            raise Lost(self.ports[-1], repr(error)) from error
        assert response.http_version == "HTTP/2"
        if response.status_code != 200:
            raise Lost(self.ports[-1], f"status {response.status_code}")
        assert response.text.endswith(f" {token}"), response.text


async def websocket(tally: Tally, port: int, tls: ssl.SSLContext, end: float) -> None:
    """Echoes on one WebSocket after the other; 1012 (the worker retires) is no loss."""
    while time.monotonic() < end:
        own = 0
        try:
            sock, own = await connected(port)
            async with connect(
                f"wss://localhost:{port}/",
                sock=sock,
                ssl=tls,
                open_timeout=PATIENCE_S,
                ping_interval=None,
            ) as client:
                number = 0
                while time.monotonic() < end:
                    await client.send(str(number))
                    answer = await asyncio.wait_for(client.recv(), PATIENCE_S)
                    if answer != str(number):
                        tally.failed.append(f"{tally.name} websocket: WRONG: {answer!r}")
                    tally.right["websocket"] += 1
                    number += 1
                    await asyncio.sleep(PAUSE_S)
        except ConnectionClosed as error:
            if error.rcvd is None or error.rcvd.code != 1012:
                tally.pending.append((time.time(), "websocket", own, repr(error)))
        except (Lost, OSError, InvalidHandshake, asyncio.TimeoutError, TimeoutError) as error:
            tally.pending.append((time.time(), "websocket", own, repr(error)))


async def repeat(
    tally: Tally, kind: str, ask: Callable[[], Awaitable[None]], end: float, pause_s: float
) -> None:
    while time.monotonic() < end:
        await tally.watch(kind, ask)
        await asyncio.sleep(pause_s)


# --- the operator, and faults ---------------------------------------------------------------------


class Operator:
    """Does anything to one server, at random."""

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
        # Workers that die now are replaced by the broken release, so none is harmed meanwhile.
        await asyncio.sleep(5.5 if "hangs" in fault else 1.5)
        self.deploy()
        self.server.signal(signal.SIGHUP)
        await asyncio.sleep(1.0)

    async def scale(self) -> None:
        await self.request("scale", {"to": str(self.chance.randint(*WORKERS))})

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
        os.kill(pid, signal.SIGKILL)

    async def stop_for_a_while(self) -> None:
        """Shorter than `timeout`: nothing may be lost."""
        pid = self.some_worker()
        os.kill(pid, signal.SIGSTOP)
        await asyncio.sleep(self.chance.uniform(0.2, 2.0))
        os.kill(pid, signal.SIGCONT)

    async def stop_for_good(self) -> None:
        """Until the arbiter kills it, as a worker that hangs."""
        pid = self.some_worker()
        await self.stop(pid)
        end = time.monotonic() + 60
        while alive(pid):
            if time.monotonic() > end:
                self.tally.failed.append(f"{self.tally.name}: stopped worker {pid} lives on")
                os.kill(pid, signal.SIGKILL)
            await asyncio.sleep(0.1)

    async def stop(self, pid: int) -> None:
        """Stop a worker, and note whose connections it holds: they die with it."""
        os.kill(pid, signal.SIGSTOP)
        while state(pid) not in ("T", "Z", ""):
            await asyncio.sleep(0.001)
        for port in client_ports(pid, self.server.port):
            self.tally.dead_ports[port] = time.time()

    def some_worker(self) -> int:
        pids = workers_of(self.server)
        # Of one worker alone nobody would be served while it is replaced.
        if len(pids) < 2:
            raise ProcessLookupError
        return self.chance.choice(pids)


def state(pid: int) -> str:
    """The state letter of a process; "" for none."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return ""


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


# --- the run --------------------------------------------------------------------------------------


def chaos(directory: Path, seconds: float, seed: int, problems: list[str]) -> dict[str, Any]:
    """All of it. Returns a row of figures for each class."""
    print(f"chaos: {seconds:g} s, seed {seed}", flush=True)
    authority = trustme.CA()
    pair = authority.issue_cert("localhost", "127.0.0.1")
    pair.private_key_and_cert_chain_pem.write_to_path(str(directory / "pair.pem"))
    # Two: httpx offers HTTP/2 through the one that it is given.
    tls, tls_http2 = ssl.create_default_context(), ssl.create_default_context()
    authority.configure_trust(tls)
    authority.configure_trust(tls_http2)
    servers = {}
    try:
        for name, (attribute, flags) in CLASSES.items():
            place = directory / name
            place.mkdir()
            releases.deploy(place, SOURCE.replace("{version}", "0"))
            more = ("--certfile", str(directory / "pair.pem")) if name == "async" else ()
            logs = ("--access-logfile", str(place / "access.log"))
            servers[name] = Server(
                f"release:{attribute}", *flags, "-w", "3", *LIMITS, *more, *logs, cwd=place
            ).start()
        for server in servers.values():
            server.wait_ready(3)
        rows = asyncio.run(_run(servers, (tls, tls_http2), seconds, seed, problems))
        for name, server in servers.items():
            _stop(name, server, problems)
    finally:
        for server in servers.values():
            server.kill_all()
    return rows


async def _run(
    servers: dict[str, Server],
    contexts: tuple[ssl.SSLContext, ssl.SSLContext],
    seconds: float,
    seed: int,
    problems: list[str],
) -> dict[str, Any]:
    tls, tls_http2 = contexts
    end = time.monotonic() + seconds
    tallies = {name: Tally(name) for name in servers}
    operators = {}
    tasks = []
    for number, (name, server) in enumerate(servers.items()):
        chance = random.Random(seed + number)
        tally = tallies[name]
        secure = tls if name == "async" else None
        operators[name] = Operator(server, tally, chance)
        tasks.append(operators[name].work(end - min(10.0, seconds / 4)))
        kinds = ["kept", "kept", "fresh", "pipelined", "uploaded", "downloaded"]
        for kind in [*kinds, *(["streamed"] if name == "async" else [])]:
            client = Http1(server.port, chance, secure)
            ask = getattr(client, kind)
            tasks.append(repeat(tally, kind, ask, end, PAUSE_S * (4 if kind == "fresh" else 1)))
        if name == "async":
            for _ in range(2):
                http2 = Http2(server.port, chance, tls_http2)
                tasks += [repeat(tally, "http2", http2.asked, end, PAUSE_S) for _ in range(4)]
            tasks += [websocket(tally, server.port, tls, end) for _ in range(3)]
    running = asyncio.gather(*tasks)
    await asyncio.sleep(seconds / 10)
    before = {name: memory(server.pid) for name, server in servers.items()}
    descriptors = {name: open_files(server.pid) for name, server in servers.items()}
    await running
    rows = {}
    for name, server in servers.items():
        tally, operator = tallies[name], operators[name]
        await asyncio.to_thread(_settle, server)
        tally.settle()
        grown = memory(server.pid) - before[name]
        if grown > GROWTH_LIMIT:
            tally.failed.append(f"{name}: the arbiter has grown by {grown} bytes")
        leaked = leaks(server, descriptors[name])
        tally.failed += [f"{name}: {leak}" for leak in leaked]
        problems += tally.failed
        rows[name] = {
            "answers": tally.right.total(),
            **{f"of them {kind}": count for kind, count in sorted(tally.right.items())},
            "lost or wrong": len(
                [each for each in tally.failed if "WRONG" in each or "at " in each]
            ),
            "on connections of killed workers": tally.excused.total(),
            **{f"operator: {what}": count for what, count in sorted(operator.done.items())},
            "leaked or unlisted": len(leaked),
            "arbiter MB grown": round(grown / 1e6, 2),
        }
    return rows


def _settle(server: Server) -> None:
    """Wait until nothing is under way: as many ready workers as are wanted, and none besides."""
    with control(server) as client:
        wanted = client.request("scale", {"to": "3"})["workers"]

        def settled() -> bool:
            rows = client.request("workers")["workers"]
            return [row["state"] for row in rows] == ["ready"] * wanted

        wait_for(settled, "three ready workers", 60)


def open_files(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))


def leaks(server: Server, descriptors: int) -> list[str]:
    """What an arbiter must not have: more descriptors, zombies, workers that it does not list."""
    found = []
    # Workers, operators' connections and a check of the configuration come and go.
    if open_files(server.pid) > descriptors + 8:
        found.append(f"{open_files(server.pid)} descriptors, {descriptors} before")
    zombies = [each.pid for each in processes() if each.parent == server.pid and each.state == "Z"]
    if zombies:
        found.append(f"zombies: {zombies}")
    with control(server) as client:
        listed = {row["pid"] for row in client.request("workers")["workers"]}
    unlisted = set(workers_of(server)) ^ listed
    if unlisted:
        found.append(f"unlisted or missing workers: {sorted(unlisted)}")
    return found


def _stop(name: str, server: Server, problems: list[str]) -> None:
    sockets = list(Path(server.env["XDG_RUNTIME_DIR"], "servo").glob("*"))
    code = server.stop()
    if code != 0:
        problems.append(f"{name}: the server ended with {code}")
    left = [path.name for path in sockets if path.exists() and str(server.pid) in path.name]
    if left:
        problems.append(f"{name}: left behind: {left}")
    if "Traceback" in server.log().replace("this release is broken", ""):
        tracebacks = [
            part for part in server.log().split("Traceback")[1:] if "release.py" not in part[:3000]
        ]
        problems += [f"{name}: a traceback in the log: {part[:600]}" for part in tracebacks[:3]]
