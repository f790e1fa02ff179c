"""Takes the pictures of the documentation: the dashboard, `servoctl monit` and `servoctl workers`.

    make pictures                          everything, about four minutes
    make pictures ARGS="--seconds 40"      with less history in the charts

It starts a real server with a small load, and reloads it, scales it, kills a worker and blocks one.
Chromium shows the dashboard in light and dark; tmux shows servoctl, and rich turns its screen into
SVG. The pictures go to docs/pictures.
"""

from __future__ import annotations

import argparse
import math
import os
import random
import re
import shutil
import signal
import sys
import tempfile
import threading
import time
import urllib.request
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from rich.console import Console
from rich.terminal_theme import MONOKAI
from rich.text import Text

from integration.browser import CHROMIUM, Browser
from integration.server import Server, free_port
from integration.terminal import TMUX, Terminal

HERE = Path(__file__).parent
PICTURES = HERE.parents[1] / "docs" / "pictures"
WORKERS = 4
TOKEN = "the-token-of-the-pictures"
# The screen of the dashboard, and how much sharper its picture is.
WIDTH = 1280
MONIT = (104, 34)
# The width fits the table of workers.
TABLE = (136, 9)
PATHS = ("/", "/", "/", "/", "/search", "/search", "/search", "/order", "/old-page")


class Visitors:
    """Threads that send requests; their rate goes up and down like that of people.

    url   the address of the shop
    """

    def __init__(self, url: str) -> None:
        self._url = url
        self._ended = threading.Event()
        self._threads = [
            threading.Thread(target=self._visit, args=(number,), daemon=True) for number in range(6)
        ]

    def __enter__(self) -> Visitors:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._ended.set()
        for thread in self._threads:
            thread.join(30)

    def _visit(self, number: int) -> None:
        chance = random.Random(number)
        begun = time.monotonic()
        while not self._ended.is_set():
            wave = math.sin((time.monotonic() - begun) / 9)
            self._ended.wait(chance.expovariate(24 * (1 + 0.75 * wave)))
            fetch(self._url + chance.choice(PATHS))


def fetch(url: str) -> None:
    """Send a request, and ignore its response."""
    request = urllib.request.Request(url)
    opener = urllib.request.build_opener(NoRedirect)
    try:
        opener.open(request, timeout=30).close()
    except OSError:
        return  # some responses are errors, and a killed worker sends none


class NoRedirect(urllib.request.HTTPRedirectHandler):
    """Does not follow the redirects of the shop."""

    def redirect_request(self, *_: object) -> None:
        """See the base class."""
        return


def live(server: Server, seconds: float) -> None:
    """Let the server have a varied life for so many seconds."""
    begun = time.monotonic()

    def until(share: float) -> None:
        time.sleep(max(0, begun + share * seconds - time.monotonic()))

    until(0.25)
    server.signal(signal.SIGTTIN)
    until(0.45)
    old = server.ready_pids()
    server.signal(signal.SIGHUP)
    server.wait_replaced(old)
    until(0.75)
    os.kill(server.ready_pids()[0], signal.SIGKILL)
    until(1)
    server.wait_workers(WORKERS + 1)


def block_a_worker(server: Server) -> None:
    threading.Thread(target=fetch, args=(server.url + "/report",), daemon=True).start()


def picture_dashboard(url: str, directory: Path) -> None:
    """Write dashboard-light.png and dashboard-dark.png, and one of a phone."""
    browser = Browser(directory)
    try:
        browser.resize(WIDTH, 900)
        browser.open(f"{url}?token={TOKEN}")
        browser.wait_text("#connection", "live")
        browser.wait_text("#trouble", "is blocked for")
        for scheme in ("light", "dark"):
            browser.prefer(scheme)
            time.sleep(1.5)  # for all parts of the page, and the charts in the new colours
            browser.resize(WIDTH, browser.evaluate("document.documentElement.scrollHeight"))
            browser.screenshot(PICTURES / f"dashboard-{scheme}.png")
        browser.resize(360, 720, 2)
        time.sleep(1.5)
        browser.screenshot(PICTURES / "dashboard-phone.png")
    finally:
        browser.stop()


def picture_monit(server: Server, directory: Path) -> None:
    """Write monit.svg, with a minute of curves and a blocked worker."""
    terminal = Terminal(directory / "monit", "-n", "shop", "monit", size=MONIT)
    try:
        time.sleep(60)
        block_a_worker(server)
        terminal.wait("blocked")
        write_screen("monit", terminal.screen("-e"), MONIT[0])
    finally:
        terminal.close()


def picture_workers(server: Server, directory: Path) -> None:
    """Write workers.svg, with a blocked worker."""
    block_a_worker(server)
    time.sleep(3)
    terminal = Terminal(directory / "workers", "-n", "shop", "workers", size=TABLE)
    try:
        terminal.wait("^code 0")
        write_screen("workers", terminal.screen("-e").partition("code 0")[0], TABLE[0])
    finally:
        terminal.close()


def write_screen(name: str, screen: str, width: int) -> None:
    """Turn a terminal's screen into SVG.

    name     the command of `servoctl`, and the name of the picture
    screen   the screen, with escape sequences for colours
    width    the terminal's width
    """
    with open(os.devnull, "w") as nowhere:
        console = Console(
            record=True, width=width, file=nowhere, force_terminal=True, color_system="256"
        )
        console.print(Text.from_ansi(screen.rstrip("\n")), no_wrap=True, crop=False)
        picture = console.export_svg(title=f"servoctl {name}", theme=MONOKAI, unique_id=name)
    # rich loads a font from another host. A picture must not.
    picture = re.sub(r"\s*@font-face \{.*?\}", "", picture, flags=re.DOTALL)
    picture = picture.replace("Fira Code", "DejaVu Sans Mono")
    (PICTURES / f"{name}.svg").write_text(picture, encoding="utf-8")


def main() -> None:
    """Take all pictures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=180, help="history in the charts")
    arguments = parser.parse_args()
    missing = [name for name, path in (("chromium", CHROMIUM), ("tmux", TMUX)) if path is None]
    if missing:
        sys.exit(f"pictures need {' and '.join(missing)} (Debian: apt-get install …)")
    PICTURES.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="servo-pictures-") as name:
        directory = Path(name)
        token = directory / "token"
        token.write_text(TOKEN)
        token.chmod(0o600)
        shutil.copy(HERE / "shop.py", directory)
        port = free_port()
        server = Server(
            *("shop:app", "--name", "shop", "-w", str(WORKERS), "-k", "async"),
            *(f"--dashboard-bind=127.0.0.1:{port}", "--dashboard-control"),
            f"--dashboard-token-file={token}",
            cwd=directory,
        )
        try:
            server.start().wait_workers(WORKERS)
            with Visitors(server.url):
                live(server, arguments.seconds)
                block_a_worker(server)
                picture_dashboard(f"http://127.0.0.1:{port}/", directory)
                picture_workers(server, directory)
                picture_monit(server, directory)
            server.stop()
        finally:
            server.kill_all()
    print(f"the pictures are in {PICTURES}")


if __name__ == "__main__":
    main()
