"""The control socket: a hundred hostile callers, and a minute of random commands and kills."""

from __future__ import annotations

import random
import statistics
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from integration import releases
from integration.server import APPS, Server, memory, wait_for
from integration.turmoil import Hostile, check_list, connect, control_path

ANSWER_LIMIT_S = 0.1
GROWTH_LIMIT_BYTES = 48 << 20


def hostile_callers(directory: Path, seconds: float, problems: list[str]) -> dict[str, float]:
    """Measure how long valid commands take beside hostile callers, during reloads and scaling."""
    releases.deploy(directory, releases.good("sync", "one"))
    server = Server("release:app", "-w", "2", cwd=directory).start()
    took: list[float] = []
    reloads = 0

    def ask(command: str, args: dict[str, object] | None = None) -> None:
        began = time.monotonic()
        with connect(server) as client:
            client.request(command, args)
        took.append(time.monotonic() - began)

    try:
        server.wait_ready(2)
        before = most = memory(server.pid)
        with Hostile(control_path(server)) as hostile:
            wait_for(lambda: hostile.rounds > 20, "the hostile callers")
            end = time.monotonic() + seconds
            while time.monotonic() < end:
                for _ in range(20):
                    ask("status")
                    ask("workers")
                ask("scale", {"to": str(2 + reloads % 2)})
                with connect(server) as client:
                    client.request("reload")
                reloads += 1
                most = max(most, memory(server.pid))
        server.stop()
    finally:
        server.kill_all()
    if max(took) > ANSWER_LIMIT_S:
        problems.append(f"control: a valid command took {max(took) * 1e3:.0f} ms")
    if most - before > GROWTH_LIMIT_BYTES:
        problems.append(f"control: the arbiter grew by {(most - before) / 1e6:.0f} MB")
    hundredths = statistics.quantiles(took, n=100)
    return {
        "commands": len(took),
        "reloads": reloads,
        "p50_ms": round(hundredths[49] * 1e3, 2),
        "p99_ms": round(hundredths[98] * 1e3, 2),
        "longest_ms": round(max(took) * 1e3, 1),
        "MB grown": round((most - before) / 1e6, 1),
    }


def true_lists(directory: Path, seconds: float, problems: list[str]) -> dict[str, float]:
    """Check that the list of workers stays correct during random reloads, scalings and kills."""
    app = f"{APPS / 'wsgi_app.py'}:app"
    server = Server(app, *("-k", "thread", "-w", "3", "--graceful-timeout", "5"), cwd=directory)
    server.start()
    comparisons = 0
    try:
        server.wait_ready(3)
        comparisons = check_list(server, random.Random(3), seconds)
        server.stop()
    except AssertionError as error:
        problems.append(f"control, the list of workers: {error}")
    finally:
        server.kill_all()
    return {
        "seconds": seconds,
        "comparisons": comparisons,
        "workers forked": server.log().count("is booting"),
    }
