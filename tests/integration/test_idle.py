"""Workers without requests wake less often than once a second, without any effect for clients."""

from __future__ import annotations

import re
import signal
import socket
import time
from collections.abc import Callable
from email.utils import parsedate_to_datetime
from pathlib import Path

import pytest
import requests

from integration.load import read_response
from integration.server import APPS, Server

pytestmark = pytest.mark.slow

# With `timeout` off a worker sleeps for 5 s.
SLEEPS = ("--timeout", "0")
KINDS = pytest.mark.parametrize("kind", ["sync", "thread", "async"])


def wakes(pid: int) -> int:
    """How often the main thread of this process has slept."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.split("voluntary_ctxt_switches:")[1].split()[0])


@KINDS
def test_an_idle_worker_sleeps_and_its_next_response_has_the_right_date(
    serve: Callable[..., Server], kind: str
) -> None:
    app = "asgi_app.py" if kind == "async" else "wsgi_app.py"
    server = serve(f"{APPS / app}:app", "-k", kind, *SLEEPS)
    (pid,) = server.worker_pids()
    requests.get(server.url, timeout=30)
    # Its end, and one more look around.
    time.sleep(1.5)
    begun = wakes(pid)
    time.sleep(3)
    assert wakes(pid) - begun <= 1
    before = time.time()
    # It finds the connection and the request in one.
    server.signal_worker(pid, signal.SIGSTOP)
    with socket.create_connection(("127.0.0.1", server.port), timeout=30) as client:
        client.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
        server.signal_worker(pid, signal.SIGCONT)
        head, _ = read_response(client)
    (date,) = re.findall(rb"\r\nDate: ([^\r]+)", head)
    assert parsedate_to_datetime(date.decode()).timestamp() >= int(before) - 1
