"""A server that can't start logs the reason, has the right exit code, and leaves no files."""

from __future__ import annotations

import re
import signal
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from integration import releases
from integration.conftest import CLASSES
from integration.server import APPS, Server, free_port

pytestmark = pytest.mark.slow

Serve = Callable[..., Server]

CASES = {
    "raises on import": (4, "this release is broken"),
    "syntax error": (4, "SyntaxError"),
    "sys.exit on import": (4, "(?i)exit"),
    "hangs on import": (3, "boot.?timeout"),
    "lifespan startup fails": (3, "this lifespan is broken"),
}


@pytest.mark.parametrize("problem", CASES)
def test_first_generation_cannot_boot(serve: Serve, tmp_path: Path, problem: str) -> None:
    worker_class = "async" if problem == "lifespan startup fails" else "sync"
    releases.deploy(tmp_path, releases.broken(worker_class)[problem])
    code, says = CASES[problem]
    path = tmp_path / "app.sock"
    server = serve(
        "release:app",
        *CLASSES[worker_class][1],
        # Only what hangs has to outlast it; the others may take their time on a busy machine.
        *("--boot-timeout", "1" if problem == "hangs on import" else "30"),
        *("-w", "2", "--bind", f"unix:{path}", "--pid", "servo.pid"),
        ready=0,
    )
    assert server.wait_exit() == code
    server.wait_log(says)
    if code == 4:
        server.wait_log(r"Traceback|release\.py.*, line 2")
    assert not server.members()
    assert not path.exists()
    assert not (tmp_path / "servo.pid").exists()


@pytest.mark.parametrize(
    ("app", "says"),
    [
        ("no_such_module:app", "no_such_module"),
        ("release:no_such_name", "no_such_name"),
        ("release:VERSION", "VERSION|callable"),
        ("missing.py:app", r"missing\.py"),
    ],
)
def test_app_that_is_not_there(serve: Serve, tmp_path: Path, app: str, says: str) -> None:
    (tmp_path / "release.py").write_text("VERSION = '1'\n")
    server = serve(app, ready=0)
    assert server.wait_exit() == 4
    server.wait_log(says)


def test_no_app_at_all(serve: Serve) -> None:
    server = serve(ready=0)
    assert server.wait_exit() in (1, 2)
    server.wait_log("(?i)app")


def test_taken_port(serve: Serve) -> None:
    port = free_port()
    with socket.create_server(("127.0.0.1", port)):
        server = serve(f"{APPS / 'wsgi_app.py'}:app", "--bind", f"127.0.0.1:{port}", ready=0)
        assert server.wait_exit() == 1
    server.wait_log(f"127.0.0.1:{port}")
    server.wait_log("in use")
    assert "Traceback" not in server.log()


def test_taken_port_takes_nothing_else_down(serve: Serve, tmp_path: Path) -> None:
    """The other addresses, bound before the failure, are released and cleaned up."""
    path = tmp_path / "app.sock"
    port = free_port()
    with socket.create_server(("127.0.0.1", port)):
        server = serve(
            f"{APPS / 'wsgi_app.py'}:app",
            *("--bind", f"unix:{path}", "--bind", f"127.0.0.1:{port}", "--pid", "servo.pid"),
            ready=0,
        )
        assert server.wait_exit() == 1
    assert not path.exists()
    assert not (tmp_path / "servo.pid").exists()


def test_a_server_that_has_served_gives_up(serve: Serve, tmp_path: Path) -> None:
    releases.deploy(tmp_path, releases.good("sync", "1"))
    server = serve("release:app", "--max-boot-failures", "3", ready=1)
    releases.deploy(tmp_path, releases.broken("sync")["raises on import"])
    server.signal_worker(server.worker_pids()[0], signal.SIGKILL)
    assert server.wait_exit() == 4
    server.wait_log(r"no worker could boot 3 times in a row \(max_boot_failures\)")
    assert len(re.findall("is booting", server.log())) == 4
    assert not server.members()
