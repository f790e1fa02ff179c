"""`servoctl logs` shows what the application prints and logs, and the access log."""

from __future__ import annotations

import json
import re
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import requests

from integration.server import APPS, Server, memory, wait_for
from integration.test_control import ctl, follow, servoctl

pytestmark = pytest.mark.slow

Serve = Callable[..., Server]
APP = {"sync": "wsgi", "thread": "wsgi", "async": "asgi"}


def args(worker_class: str, *more: str) -> tuple[str, ...]:
    return (f"{APPS / 'output_app.py'}:{APP[worker_class]}", "-k", worker_class, *more)


def get(server: Server, path: str) -> None:
    requests.get(f"{server.url}{path}", timeout=30)


def records(server: Server, *options: str) -> list[dict[str, Any]]:
    found = ctl(server, "logs", "--lines", "1000", *options)
    return found if isinstance(found, list) else [found]


def find(server: Server, text: str) -> dict[str, Any]:
    """The only record of a server with this text."""
    return only(records(server), text)


def only(found: list[dict[str, Any]], text: str) -> dict[str, Any]:
    (record,) = [record for record in found if text in record["text"]]
    return record


@pytest.mark.parametrize(
    ("preload", "unbuffered"),
    [
        pytest.param(False, False, id="plain"),
        pytest.param(False, True, id="unbuffered"),
        pytest.param(True, False, id="preload"),
    ],
)
def test_what_the_application_writes(
    serve: Serve, worker_class: str, preload: bool, unbuffered: bool
) -> None:
    flags = ("--preload",) if preload else ()
    env = {"PYTHONUNBUFFERED": "1" if unbuffered else None}
    server = serve(*args(worker_class, "-w", "1", *flags), env=env)
    for path in ("/print", "/log", "/fail", "/replaced", "/child"):
        get(server, path)
    (pid,) = server.children() if not preload else server.worker_pids()
    worker = {"slot": 1, "pid": pid}
    found = records(server)
    times = [record["time"] for record in found]
    assert times == sorted(times)
    printed = only(found, "printed by a request")
    assert printed == {
        **worker,
        "time": printed["time"],
        "level": "info",
        "stream": "stdout",
        "text": "printed by a request",
    }
    logged = only(found, "logged by a request")
    assert logged == {
        **worker,
        "time": logged["time"],
        "level": "warning",
        "logger": "shop",
        "text": "shop said logged by a request",
    }
    failure = only(found, "the second on purpose")
    assert (failure["level"], failure["stream"]) == ("error", "stderr")
    assert failure["text"].startswith("Traceback (most recent call last):\n")
    assert "ValueError: the first on purpose\n\nDuring handling" in failure["text"]
    assert failure["text"].endswith("KeyError: 'the second on purpose'")
    assert only(found, "another stream")["stream"] == "stderr"
    imported = only(found, "printed by the import")
    assert imported.get("mold", 0) == (1 if preload else 0)
    # The output of other processes goes only to the server's own standard output.
    assert not [record for record in found if "printed by a c" in record["text"]]
    server.wait_log("printed by a child")
    server.wait_log("printed by a program")
    if unbuffered:
        for text in ("printed by a request", "shop said logged", "KeyError: 'the second"):
            assert server.log().count(text) == 1
    plain = servoctl("--pid", str(server.pid), "logs").stdout
    assert re.search(rf"worker 1 \[{pid}\] STDOUT printed by a request$", plain, re.MULTILINE)


def test_a_line_arrives_while_its_request_waits(
    serve: Serve, tmp_path: Path, worker_class: str
) -> None:
    release = tmp_path / "release"
    server = serve(*args(worker_class, "-w", "1"), env={"RELEASE": str(release)})
    with follow("--pid", str(server.pid), "logs", "-f", "--worker", "1") as shown:
        get(server, "/log")
        wait_for(lambda: "logged by a request" in shown.text(), "the first line")
        waiting = threading.Thread(target=get, args=(server, "/wait"))
        waiting.start()
        wait_for(lambda: "printed while the request waits" in shown.text(), "the second line")
        assert waiting.is_alive()
        assert not release.exists()
        release.touch()
        waiting.join()
        assert "arbiter" not in shown.text()


@pytest.mark.parametrize("preload", [False, True], ids=["", "preload"])
def test_the_last_words_of_a_killed_worker(serve: Serve, worker_class: str, preload: bool) -> None:
    server = serve(*args(worker_class, "-w", "1", *(("--preload",) if preload else ())))
    (pid,) = server.worker_pids()
    with follow("--pid", str(server.pid), "logs", "-f") as shown:
        wait_for(lambda: "is ready" in shown.text(), "the past lines")
        with pytest.raises(requests.ConnectionError):
            get(server, "/die")
        wait_for(lambda: "without its end" in shown.text(), "the last words")
        server.wait_replaced([pid])
    words = find(server, "last words")
    assert (words["slot"], words["pid"]) == (1, pid)
    assert find(server, "and a line without its end")["pid"] == pid
    text = shown.text()
    assert text.index("last words") < text.index(f"(pid {pid}) ended")


def test_reloads_and_upgrades_keep_the_lines(serve: Serve, worker_class: str) -> None:
    server = serve(*args(worker_class, "-w", "1"))
    (first,) = server.worker_pids()
    get(server, "/print")
    with follow("--pid", str(server.pid), "logs", "-f", "--grep", "printed by a req") as shown:
        wait_for(lambda: str(first) in shown.text(), "the past line")
        assert ctl(server, "reload")
        (second,) = wait_for(lambda: [*set(server.worker_pids()) - {first}])
        get(server, "/print")
        wait_for(lambda: str(second) in shown.text(), "the line after the reload")
        assert servoctl("--pid", str(server.pid), "upgrade").returncode == 0
        (third,) = wait_for(lambda: [*set(server.worker_pids()) - {first, second}])
        get(server, "/print")
        wait_for(lambda: str(third) in shown.text(), "the line after the upgrade")
        assert len(shown.text().splitlines()) == 3
    found = [record for record in records(server) if "printed by a req" in record["text"]]
    assert [record["pid"] for record in found] == [first, second, third]


def test_a_hostile_application(serve: Serve, worker_class: str) -> None:
    """It prints without end, control characters and garbage: that harms nobody."""
    server = serve(*args(worker_class, "-w", "1"))
    before = memory(server.pid)
    with follow("--pid", str(server.pid), "logs", "-f", "--json") as shown:
        wait_for(lambda: "is ready" in shown.text(), "the past lines")
        get(server, "/flood")
        wait_for(lambda: "lines of this worker are missing here" in shown.text(), "a lost line")

        def is_shown() -> bool:
            """Whether a line is shown: the follower may still be behind, and lose some."""
            get(server, "/garbage")
            return "red" in shown.text()

        wait_for(is_shown, "a line after the flood", every_s=0.5)
    for line in shown.text().split("\n")[:-1]:  # the last line may be incomplete
        if not line.startswith("servoctl: "):  # that it is too slow
            json.loads(line)
    shown_text = servoctl("--pid", str(server.pid), "logs", "--lines", "1000").stdout
    assert "\x1b" not in shown_text + shown.text()
    assert "bytes left out" in shown_text
    assert "\u202e" not in shown_text
    assert memory(server.pid) - before < 30 << 20
    assert ctl(server, "status")["state"] == "running"
    get(server, "/print")
    assert find(server, "printed by a request")


# --- access log -------------------------------------------------------------------------------


def test_an_access_log_that_is_off(serve: Serve) -> None:
    server = serve(*args("thread", "-w", "1"))
    done = servoctl("--pid", str(server.pid), "logs", "--access")
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert "the access log is off: --access-logfile -" in line


@pytest.mark.parametrize("kind", ["stdout", "file", "json", "logconfig"])
def test_the_access_log(serve: Serve, tmp_path: Path, worker_class: str, kind: str) -> None:
    config = tmp_path / "log.json"
    handler = {"class": "logging.FileHandler", "filename": str(tmp_path / "own.log")}
    config.write_text(
        json.dumps({"handlers": {"f": handler}, "loggers": {"servo.access": {"handlers": ["f"]}}})
    )
    flags = {
        "stdout": ("--access-logfile", "-"),
        "file": ("--access-logfile", str(tmp_path / "access.log")),
        "json": ("--access-logfile", "-", "--access-logformat", "json"),
        "logconfig": ("--log-config-json", str(config)),
    }
    server = serve(*args(worker_class, "-w", "2", *flags[kind]), ready=2)
    with follow("--pid", str(server.pid), "logs", "--access", "-f") as shown:
        get(server, "/first")
        wait_for(lambda: "/first" in shown.text(), "the first line")
        get(server, "/missing")
        wait_for(lambda: "/missing" in shown.text(), "the second line")
        assert "is ready" not in shown.text()
        assert "printed" not in shown.text()
    found = ctl(server, "logs", "--access")
    assert [record["stream"] for record in found] == ["access", "access"]
    assert "GET" in found[0]["text"]
    missing = ctl(server, "logs", "--access", "--level", "warning")
    assert "/missing" in missing["text"]
    # They are not among the other lines.
    assert not records(server, "--grep", "GET|missing")


def test_the_access_log_of_a_killed_worker(serve: Serve, worker_class: str) -> None:
    server = serve(*args(worker_class, "-w", "1", "--access-logfile", "-"))
    (pid,) = server.worker_pids()
    get(server, "/first")
    wait_for(lambda: "/first" in servoctl("-p", str(server.pid), "logs", "--access").stdout)
    server.signal_worker(pid, signal.SIGKILL)
    server.wait_replaced([pid])
    get(server, "/second")

    def both() -> list[int]:
        found = ctl(server, "logs", "--access", "--lines", "2")
        return [record["pid"] for record in found] if isinstance(found, list) else []

    pids = wait_for(lambda: (found := both()) and len(found) == 2 and found, "both lines")
    assert pids[0] == pid
    assert pids[1] != pid
