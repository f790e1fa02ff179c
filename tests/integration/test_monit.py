"""`servoctl monit` in a real terminal: tmux gives it keys, and shows the screen as text."""

from __future__ import annotations

import os
import re
import signal
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import requests

from integration.server import APPS, DEADLINE_S, Server, environment, wait_for
from integration.terminal import TMUX, Terminal

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(TMUX is None, reason="tmux is not installed"),
]

Serve = Callable[..., Server]
WSGI = f"{APPS / 'wsgi_app.py'}:app"
STUCK = f"{APPS / 'stuck_app.py'}:wsgi"
# So that no error message is wrapped.
WIDE = (300, 30)


Open = Callable[..., Terminal]


@pytest.fixture
def monit() -> Iterator[Open]:
    """Starts `servoctl ARGUMENTS monit` in a terminal."""
    terminals: list[Terminal] = []
    with tempfile.TemporaryDirectory(prefix="servo-tmux-") as directory:

        def start(*arguments: str, **options: Any) -> Terminal:
            path = Path(directory, str(len(terminals)))
            terminals.append(Terminal(path, *arguments, "monit", **options))
            return terminals[-1]

        try:
            yield start
        finally:
            for terminal in terminals:
                terminal.close()


def of(server: Server) -> tuple[str, str]:
    """The options that select a server."""
    return "--pid", str(server.pid)


@pytest.fixture
def background() -> Iterator[Callable[[str], None]]:
    """Requests a URL in a thread, and ignores the end of its connection."""
    threads: list[threading.Thread] = []

    def get(url: str) -> None:
        with suppress(requests.RequestException):
            requests.get(url, timeout=DEADLINE_S)

    def start(url: str) -> None:
        threads.append(threading.Thread(target=get, args=(url,)))
        threads[-1].start()

    yield start
    for thread in threads:
        thread.join(DEADLINE_S)


def test_every_key(serve: Serve, monit: Open) -> None:
    server = serve(WSGI, "-w", "2", ready=2)
    screen = monit(*of(server))
    screen.wait(r"2/2 ready")
    screen.wait(r"^>  1 +\d+ ready")

    screen.press("Down")
    screen.wait(r"^>  2 ")
    screen.press("Up")
    screen.wait(r"^>  1 ")

    screen.press("+")
    screen.wait(r"scaled from 2 to 3 workers")
    screen.wait(r"3/3 ready")
    screen.press("-")
    screen.wait(r"Run one worker fewer\? \(y/n\)")
    screen.press("n")
    screen.wait(r"^not done")
    screen.press("-", "y")
    screen.wait(r"scaled from 3 to 2 workers")
    screen.wait(r"2/2 ready")

    old = server.wait_workers(2)
    screen.press("r")
    screen.wait(r"Reload: .*\(y/n\)")
    screen.press("y")
    screen.wait(r"reloaded: 2 workers replaced in .*, generation 2")
    screen.wait(r"generation 2")
    new = server.wait_replaced(old)

    # The row of the old worker may still be there: the screen shows each second's answer.
    victim = int(screen.wait(rf"^>  1 +({'|'.join(map(str, new))}) ready")[1])
    screen.press("k")
    screen.wait(rf"Restart worker 1 \(pid {victim}\)\? \(y/n\)")
    screen.press("y")
    successor = screen.wait(rf"worker 1 replaced: pid {victim} -> (\d+)")[1]
    screen.wait(rf"^>  1 +{successor} ready")

    screen.press("s")
    screen.wait(rf"worker 1 \(pid {successor}\), ready")
    screen.wait(r"thread .*most recent call")
    screen.press("PageDown")
    screen.wait_without(f"worker 1 (pid {successor}), ready")
    screen.press("PageUp")
    screen.wait(rf"worker 1 \(pid {successor}\), ready")
    screen.press("x")
    screen.wait(r"─ events")

    screen.press("p")
    screen.wait(r"profiling worker 1 for 5 s")
    # A machine may have no py-spy, or not allow it to trace a process: then the reason is shown.
    found = screen.wait(rf"profile of worker 1 \(pid {successor}\): (\S+\.svg)|^profile: (.+)")
    if found[1] is not None:
        assert "<svg" in Path(found[1]).read_text()
        Path(found[1]).unlink()

    screen.press("/")
    screen.wait(r"Enter: apply")
    screen.press("is ready a", "BSpace", "BSpace", "Enter")
    screen.wait(r"─ log lines that match /is ready/")
    screen.press("Escape")
    screen.wait(r"─ log ─")

    screen.press("?")
    screen.wait(r"select a worker")
    screen.press("Escape")
    screen.wait_without("select a worker")

    screen.press("l")
    screen.wait(r"choose a server")
    screen.wait(rf" {server.pid} +running")
    screen.press("q")
    screen.wait(r"^code 0")
    assert screen.settings_are_restored()


def test_a_killed_worker_appears(serve: Serve, monit: Open) -> None:
    server = serve(WSGI, "-w", "2", ready=2)
    screen = monit(*of(server))
    victim = int(screen.wait(r"^>  1 +(\d+) ready")[1])
    server.signal_worker(victim, signal.SIGKILL)
    screen.wait(rf"worker 1 \(pid {victim}\) ended after .*SIGKILL")
    successor = int(screen.wait(rf"^>  1 +(?!{victim})(\d+) ready")[1])
    assert successor in server.worker_pids()


def test_a_reload_and_its_failure_appear(serve: Serve, monit: Open, tmp_path: Path) -> None:
    app = tmp_path / "shop.py"
    app.write_text((APPS / "wsgi_app.py").read_text())
    server = serve("shop:app", "-w", "1")
    screen = monit(*of(server))
    screen.wait(r"generation 1")
    server.signal(signal.SIGHUP)
    screen.wait(r"generation 2")
    app.write_text("raise RuntimeError('a bad release')\n")
    server.signal(signal.SIGHUP)
    screen.wait(r"rolled back")
    screen.wait(r"RuntimeError: a bad release")
    app.write_text((APPS / "wsgi_app.py").read_text())


def test_a_blocked_worker_appears(
    serve: Serve, monit: Open, background: Callable[[str], None]
) -> None:
    server = serve(STUCK, "-w", "2", "-k", "sync", "--timeout", "60", ready=2)
    screen = monit(*of(server))
    screen.wait(r"2/2 ready")
    background(f"http://127.0.0.1:{server.port}/sleep")
    slot = screen.wait(r"^[> ]  (\d) +\d+ blocked \d")[1]
    screen.wait(r"2/2 ready, 1 blocked")
    blocked = re.search(r"\x1b\[([\d;]*)mblocked \d", screen.screen("-e"))
    assert blocked is not None
    assert "31" in blocked[1].split(";")  # red
    if slot == "2":
        screen.press("Down")
    screen.wait(rf"^>  {slot} ")
    screen.press("s")
    screen.wait(rf"worker {slot} \(pid")
    screen.wait(r"in sleep")
    server.kill_all()


def test_requests_appear(serve: Serve, monit: Open) -> None:
    server = serve(WSGI, "-w", "1")
    screen = monit(*of(server))
    screen.wait(r"1/1 ready")
    url = f"http://127.0.0.1:{server.port}"

    def seen() -> bool:
        requests.get(f"{url}/", timeout=DEADLINE_S)
        return bool(re.search(r"^>  1 +\d+ ready +[1-9][\d.]* .*ms", screen.screen(), re.MULTILINE))

    wait_for(seen, "rate and latency on the screen", every_s=0.1)


def test_it_follows_the_size_of_the_terminal(serve: Serve, monit: Open) -> None:
    screen = monit(*of(serve(WSGI, "-w", "1")), size=(40, 10))
    screen.wait(r"^This terminal has 40x10 characters\.$")
    screen.wait(r"needs 80x24")
    screen.press("+")  # does nothing
    screen.resize(80, 24)
    screen.wait(r"1/1 ready")
    assert len(screen.screen().splitlines()) == 24
    screen.resize(140, 50)
    screen.wait("─{120}")
    screen.wait(r"1/1 ready")
    screen.resize(79, 24)
    screen.wait(r"has 79x24")
    screen.press("q")
    screen.wait(r"^code 0")


@pytest.mark.parametrize("key", ["C-c", "q"])
def test_the_terminal_is_restored(serve: Serve, monit: Open, key: str) -> None:
    screen = monit(*of(serve(WSGI, "-w", "1")))
    screen.wait(r"1/1 ready")
    screen.press(key)
    screen.wait(r"^code 0")
    assert screen.settings_are_restored()
    assert "1/1 ready" not in screen.screen()


def test_a_signal_ends_it_with_the_terminal_restored(serve: Serve, monit: Open) -> None:
    screen = monit(*of(serve(WSGI, "-w", "1")))
    screen.wait(r"1/1 ready")
    os.kill(screen.pid(), signal.SIGTERM)
    screen.wait(r"^code 143")
    assert screen.settings_are_restored()


@pytest.mark.parametrize(("term", "environ"), [("tmux-256color", {"NO_COLOR": "1"}), ("vt100", {})])
def test_without_colours(serve: Serve, monit: Open, term: str, environ: dict[str, str]) -> None:
    screen = monit(*of(serve(WSGI, "-w", "1")), term=term, environ=environ)
    screen.wait(r"^>  1 +\d+ ready")
    codes = {
        code
        for sequence in re.findall(r"\x1b\[([\d;]*)m", screen.screen("-e"))
        for code in sequence.split(";")
    }
    # Plain, bold, dim, reversed; 39 and 49 are the default colours.
    assert codes <= {"", "0", "1", "2", "7", "39", "49"}


def test_a_stopped_server_is_waited_for(serve: Serve, monit: Open) -> None:
    server = serve(WSGI, "-w", "1")
    screen = monit(*of(server), "--timeout", "2")
    screen.wait(r"1/1 ready")
    server.signal(signal.SIGSTOP)
    try:
        screen.wait(r"no answer for \d+ s|lost for \d+ s, reconnecting")
        screen.wait(r"lost for \d+ s, reconnecting: it does not answer")
        screen.press("?")  # keys work meanwhile
        screen.wait(r"select a worker")
        screen.press("x")
    finally:
        server.signal(signal.SIGCONT)
    screen.wait(r"1/1 ready")


def test_a_server_that_starts_again_is_found(serve: Serve, monit: Open, tmp_path: Path) -> None:
    name = f"monit-{os.getpid()}"
    server = serve(WSGI, "-w", "1", "--name", name)
    screen = monit("--name", name)
    screen.wait(rf"^ {name} +running")
    first = server.pid
    server.stop()
    screen.wait(r"lost for \d+ s, reconnecting: it has ended")
    second = serve(WSGI, "-w", "1", "--name", name)
    pid = second.worker_pids()[0]
    screen.wait(rf"^>  1 +{pid} ready")
    assert second.pid != first


def test_several_servers_are_listed_first(serve: Serve, monit: Open) -> None:
    name = f"twins-{os.getpid()}"
    servers = [serve(WSGI, "-w", str(count), "--name", name, ready=count) for count in (1, 2)]
    screen = monit("--name", name)
    screen.wait(r"choose a server")
    rows = {
        int(pid): int(count)
        for pid, count in re.findall(
            rf"{name} +(\d+) +running +\d/(\d)", screen.wait(rf"(?s){name}.*{name}.*running").string
        )
    }
    assert rows == {servers[0].pid: 1, servers[1].pid: 2}
    second = list(rows.values())[1]
    screen.press("Down")
    screen.wait(rf"(?s){name}.*^> {name}")
    screen.press("Enter")
    screen.wait(rf"{second}/{second} ready")
    screen.press("q")
    screen.wait(r"^code 0")


# --- terminals and servers that it can't use ------------------------------------------------------


def test_a_dumb_terminal(serve: Serve, monit: Open) -> None:
    screen = monit(*of(serve(WSGI, "-w", "1")), term="dumb")
    screen.wait(r"^servoctl: error: this terminal can't show a screen \(TERM=dumb\)")
    screen.wait(r"^code 2")


def test_without_rich(serve: Serve, monit: Open, tmp_path: Path) -> None:
    # Python imports this module at its start. It hides rich, as if it were not installed.
    (tmp_path / "sitecustomize.py").write_text(
        "import importlib.util as util\n"
        "find = util.find_spec\n"
        "util.find_spec = lambda name, *rest: None if name == 'rich' else find(name, *rest)\n"
    )
    path = os.pathsep.join([str(tmp_path), environment()["PYTHONPATH"]])
    screen = monit(*of(serve(WSGI, "-w", "1")), environ={"PYTHONPATH": path})
    screen.wait(r"^servoctl: error: monit needs rich: pip install 'rich>=13'$")
    screen.wait(r"^code 1")


def test_a_dead_and_a_stopped_server(serve: Serve, monit: Open) -> None:
    screen = monit("--socket", "/nowhere/servo.sock", size=WIDE)
    screen.wait(r"^servoctl: error: there is no server: .*/nowhere/servo\.sock does not exist")
    screen.wait(r"^code 3")
    server = serve(WSGI, "-w", "1")
    server.signal(signal.SIGSTOP)
    try:
        screen = monit(*of(server), "--timeout", "1", size=WIDE)
        screen.wait(r"^servoctl: error: .*does not answer within 1 s: it may be stopped \(SIGSTOP")
        screen.wait(r"^code 1")
    finally:
        server.signal(signal.SIGCONT)
