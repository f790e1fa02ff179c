"""Keep a thousand WebSockets busy through repeated rolling reloads."""

from __future__ import annotations

import asyncio
import json
import resource
import signal
import time
from pathlib import Path

from websockets.asyncio.client import connect

from integration.server import APPS, Server
from integration.websocket import keep_through

CONNECTIONS = 1000


def kept_websockets(directory: Path, reloads: int, problems: list[str]) -> dict[str, float]:
    """Check that each connection gets its last five echoes, then 1012, and reconnects."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 65536), hard))
    server = Server(
        f"{APPS / 'websocket_app.py'}:app",
        *("-w", "2", "--worker-connections", str(2 * CONNECTIONS)),
        cwd=directory,
    ).start()
    took = []
    try:
        server.wait_ready(2)
        for number in range(reloads):
            old = server.worker_pids()
            begun: list[float] = []

            def reload(begun: list[float] = begun) -> None:
                begun.append(time.monotonic())
                server.signal(signal.SIGHUP)

            try:
                asyncio.run(keep_through(server.port, CONNECTIONS, reload))
            except Exception as error:  # noqa: BLE001  any failure is a finding
                problems.append(f"websockets, reload {number + 1}: {error!r}")
                break
            took.append(time.monotonic() - begun[0])
            server.wait_replaced(old)
        memory = asyncio.run(memory_of_idle(server))
        server.stop()
        if "killing" in server.log():
            problems.append("websockets: a worker had to be killed")
    finally:
        server.kill_all()
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    return {
        "connections": CONNECTIONS,
        "reloads": len(took),
        "closed, answered and back_s": round(max(took, default=0.0), 2),
        "KiB for an idle connection": round(memory, 1),
    }


async def memory_of_idle(server: Server) -> float:
    """Resident memory (KiB) that a worker needs for a connection with compression."""
    before = resident_kb(server)
    url = f"ws://127.0.0.1:{server.port}/echo"
    clients = await asyncio.gather(*(connect(url, open_timeout=60) for _ in range(CONNECTIONS)))
    for client in clients:
        await client.send(json.dumps({"some": "message"}))
        await client.recv()
    cost = (resident_kb(server) - before) / CONNECTIONS
    await asyncio.gather(*(client.close() for client in clients))
    return cost


def resident_kb(server: Server) -> float:
    text = "".join(Path(f"/proc/{pid}/smaps_rollup").read_text() for pid in server.worker_pids())
    return sum(int(line.split()[1]) for line in text.splitlines() if line.startswith("Pss:"))
