"""The dashboard's page in headless Chromium, with a real server behind it."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tarfile
import threading
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from integration.browser import Browser
from integration.load import Load
from integration.server import APPS, Server, free_port, wait_for

pytestmark = pytest.mark.slow

Serve = Callable[..., Server]

TOKEN = "a-token-of-the-tests-4711"
AXE = "axe-core@4.14.1"
# What axe-core may find and still be no barrier: nothing. Its lesser findings are printed.
GRAVE = ("serious", "critical")


class Shown:
    """A server with a dashboard, and the page.

    server    the server
    browser   the page, signed in
    url       the address of the dashboard
    """

    def __init__(self, server: Server, browser: Browser, url: str) -> None:
        self.server = server
        self.browser = browser
        self.url = url

    def sign_in(self) -> None:
        self.browser.open(self.url)
        self.browser.wait("document.querySelector('#token') !== null")
        self.browser.evaluate("document.querySelector('#token').focus()")
        self.browser.type(TOKEN)
        self.browser.press("Enter")
        self.wait_live()

    def wait_live(self) -> None:
        self.browser.wait_text("#connection", "live")
        self.browser.wait("document.querySelectorAll('#workers tbody tr').length > 0")

    def total(self, label: str) -> str:
        """The value of one of the totals, such as "Requests/s"."""
        found = self.browser.evaluate(
            f"""[...document.querySelectorAll("#totals > div")]
                .find(each => each.querySelector("dt").textContent === {label!r})
                ?.querySelector(".value").textContent ?? ''"""
        )
        return str(found)

    def rows(self) -> list[dict[str, str]]:
        """The rows of the table of workers: texts by the title of their column."""
        found: list[dict[str, str]] = self.browser.evaluate(
            """[...document.querySelectorAll("#workers tbody tr")].map(row => Object.fromEntries(
                [...row.children].map(cell => [cell.dataset.label, cell.innerText.trim()])))"""
        )
        return found

    def timeline(self) -> list[str]:
        found: list[str] = self.browser.evaluate(
            """[...document.querySelectorAll("#timeline > li")]
                .map(each => each.innerText.replace(/\\s+/g, " "))"""
        )
        return found

    def wait_timeline(self, *parts: str) -> str:
        """Wait for an entry of the timeline that has all these parts."""
        return wait_for(
            lambda: next((t for t in self.timeline() if all(p in t for p in parts)), None),
            f"entry {parts} of the timeline",
        )

    def assert_clean(self) -> None:
        """No error in the console, and no request to another host."""
        assert self.browser.problems == []
        others = [url for url in self.browser.urls if not url.startswith(self.url)]
        assert others == []


@pytest.fixture
def show(serve: Serve, browser: Browser, tmp_path: Path) -> Callable[..., Shown]:
    """Start a server with a dashboard, and sign in: `show("wsgi_app.py:app", "-w", "2")`."""

    def start(app: str, *args: str, control: bool = True, ready: int = 1) -> Shown:
        token_file = tmp_path / "token"
        token_file.write_text(TOKEN + "\n")
        token_file.chmod(0o600)
        port = free_port()
        flags = [f"--dashboard-bind=127.0.0.1:{port}", f"--dashboard-token-file={token_file}"]
        if control:
            flags.append("--dashboard-control")
        server = serve(str(APPS / app), *args, *flags, ready=ready)
        wait_for(lambda: answers(f"http://127.0.0.1:{port}/"), "answer of the dashboard")
        shown = Shown(server, browser, f"http://127.0.0.1:{port}/")
        shown.sign_in()
        return shown

    return start


def answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5):
            return True
    except OSError:
        return False


@contextmanager
def in_background(url: str) -> Iterator[None]:
    """Send a request that may never be answered."""

    def send() -> None:
        try:
            urllib.request.urlopen(url, timeout=60).close()
        except OSError:
            return  # the test ends the worker that would have answered

    thread = threading.Thread(target=send, daemon=True)
    thread.start()
    try:
        yield
    finally:
        thread.join(60)


# --- what it shows --------------------------------------------------------------------------------


def test_figures_reloads_and_exits(show: Callable[..., Shown]) -> None:
    shown = show("wsgi_app.py:app", "-w", "2", ready=2)
    browser, server = shown.browser, shown.server
    wait_for(lambda: [row["State"] for row in shown.rows()] == ["ready", "ready"], "2 workers")
    with Load(server.port, {"raw-kept": 2}) as load:
        load.wait_answers(50)
        wait_for(lambda: len(shown.total("Requests/s")) > 1, "a rate of at least 10")
        wait_for(lambda: shown.total("p99").endswith("s"), "a latency")
        browser.wait("document.querySelectorAll('.plot canvas').length === 6")
        label = browser.evaluate("document.querySelector('.plot').getAttribute('aria-label')")
        assert label.startswith("Requests per second, last 10 minutes. 1xx: now 0")
        before = {row["pid"] for row in shown.rows()}
        server.signal(signal.SIGHUP)
        reloaded = shown.wait_timeline("reload", "finished", "SIGHUP")
        assert reloaded.endswith(("s", "ms"))
        wait_for(lambda: not before & {row["pid"] for row in shown.rows()}, "new workers")
        victim = server.wait_workers(2)[0]
        os.kill(victim, signal.SIGKILL)
        shown.wait_timeline("exit", f"pid {victim}", "SIGKILL", "crashed")
        wait_for(
            lambda: any("SIGKILL" in row["Previous worker ended"] for row in shown.rows()),
            "the reason in the table of workers",
        )
    shown.assert_clean()


def test_a_blocked_worker(show: Callable[..., Shown]) -> None:
    shown = show("stuck_app.py:asgi", "-k", "async", "-w", "2", ready=2)
    shown.browser.wait_text("#trouble", "Nothing is blocked")
    with in_background(f"{shown.server.url}/sleep"):
        told = shown.browser.wait_text("#trouble", "is blocked for")
        pid = told.partition("(pid ")[2].partition(")")[0]
        row = next(row for row in shown.rows() if row["pid"] == pid)
        # A text and an icon say it, not only the colour.
        assert row["State"].startswith("blocked ")
        icon = "tr.blocked .state .icon use"
        href = shown.browser.evaluate(f"document.querySelector('{icon}').getAttribute('href')")
        assert href == "#i-warn"
        assert "Blocked: worker" in shown.browser.text("#announcement")
        os.kill(int(pid), signal.SIGKILL)
    shown.browser.wait_text("#trouble", "Nothing is blocked")
    shown.assert_clean()


def test_a_stopped_server(show: Callable[..., Shown]) -> None:
    shown = show("wsgi_app.py:app", "-w", "1")
    shown.browser.wait_text("#state", "serving")
    shown.server.signal(signal.SIGSTOP)
    try:
        shown.browser.wait_text("#state", "lost")
        assert "does not answer" in shown.browser.text("#trouble")
        assert shown.browser.evaluate("document.title").startswith("⚠")
        assert shown.total("Requests/s") == "\N{EN DASH}"
    finally:
        shown.server.signal(signal.SIGCONT)
    shown.browser.wait_text("#state", "serving")
    shown.wait_live()
    shown.assert_clean()


def test_a_lost_connection(show: Callable[..., Shown]) -> None:
    shown = show("wsgi_app.py:app", "-w", "1")
    browser, server = shown.browser, shown.server
    shown.assert_clean()
    server.stop()
    browser.wait_text("#connection", "connection lost")
    assert browser.evaluate("document.body.classList.contains('stale')")
    server.start().wait_ready()
    # The new server has another key for cookies, so the page may have to sign in again.
    browser.wait(
        "document.querySelector('#connection').innerText === 'live'"
        " || document.querySelector('#failure').innerText.includes('Sign in again')"
    )


def test_text_of_the_server_is_no_html(show: Callable[..., Shown], tmp_path: Path) -> None:
    shown = show("wsgi_app.py:app", "-w", "1", "--name", "<b id=forged>x</b>")
    shown.browser.wait_text("#name", "<b id=forged>x</b>")
    assert shown.browser.evaluate("document.querySelector('#forged')") is None
    shown.assert_clean()


# --- control --------------------------------------------------------------------------------------


def test_keyboard_only(show: Callable[..., Shown]) -> None:
    shown = show("wsgi_app.py:app", "-w", "1")
    browser = shown.browser
    for _ in range(10):
        browser.press("Tab")
        if browser.evaluate("document.activeElement.id") == "reload":
            break
    else:
        pytest.fail("the key Tab does not lead to the button")
    outline = "getComputedStyle(document.activeElement).outlineStyle"
    assert browser.evaluate(outline) == "solid"  # the focus is visible
    browser.press("Enter")
    browser.wait("document.querySelector('#confirm').open")
    # A second Enter by mistake reloads nothing: "Cancel" has the focus.
    browser.press("Enter")
    browser.wait("!document.querySelector('#confirm').open")
    assert browser.evaluate("document.activeElement.id") == "reload"
    browser.press("Enter")
    browser.wait("document.querySelector('#confirm').open")
    browser.press("Tab")
    browser.press("Enter")
    shown.wait_timeline("reload", "finished")
    assert browser.text("#result") != ""
    assert browser.text("#failure") == ""
    assert sum("finished" in entry for entry in shown.timeline()) == 1
    shown.assert_clean()


def test_scale_and_restart(show: Callable[..., Shown]) -> None:
    shown = show("wsgi_app.py:app", "-w", "1")
    browser = shown.browser
    browser.click("#scale")
    browser.click("#confirm-more")
    browser.click("#confirm-yes")
    wait_for(lambda: [row["State"] for row in shown.rows()] == ["ready", "ready"], "2 workers")
    wait_for(lambda: "2" in browser.text("#result"), "the result")
    old = {row["Slot"]: row["pid"] for row in shown.rows()}
    browser.click("[aria-label^='Restart worker 2,']")
    assert old["2"] in browser.text("#confirm-text")
    browser.press("Escape")
    browser.wait("!document.querySelector('#confirm').open")
    browser.click("[aria-label^='Restart worker 2,']")
    browser.click("#confirm-yes")
    wait_for(
        lambda: (
            {row["pid"] for row in shown.rows() if row["Slot"] == "2"} not in ({old["2"]}, set())
            and len(shown.rows()) == 2
        ),
        "a new worker",
    )
    assert next(row["pid"] for row in shown.rows() if row["Slot"] == "1") == old["1"]
    # The button of the old worker is gone, and that of the new one has the focus.
    label = browser.evaluate("document.activeElement.getAttribute('aria-label')")
    assert label.startswith("Restart worker 2,")
    assert old["2"] not in label
    browser.click("[aria-label^='Stack of worker 1,']")
    browser.wait_text("#stack-text", "line")
    browser.press("Escape")
    browser.wait("!document.querySelector('#stack').open")
    assert browser.text("#failure") == ""
    shown.assert_clean()


def test_without_control(show: Callable[..., Shown]) -> None:
    shown = show("wsgi_app.py:app", "-w", "1", control=False)
    browser = shown.browser
    assert browser.evaluate("document.querySelector('#controls').hidden")
    assert browser.evaluate("document.querySelectorAll('#workers button').length") == 0
    assert browser.text("#read-only") == "read-only"
    shown.assert_clean()
    assert browser.evaluate(control("{'X-Servo-Control': '1'}")) == 403


def test_without_token(show: Callable[..., Shown]) -> None:
    shown = show("wsgi_app.py:app", "-w", "1")
    browser = shown.browser
    pids = shown.server.ready_pids()
    assert browser.evaluate(control("{}")) == 403  # as a foreign form would send it
    browser.click("#sign-out button")
    browser.wait("document.querySelector('#token') !== null")
    assert browser.evaluate(control("{'X-Servo-Control': '1'}")) == 401
    browser.evaluate("document.querySelector('#token').focus()")
    browser.type("a-wrong-token-of-the-tests")
    browser.press("Enter")
    browser.wait("document.querySelector('[role=alert]') !== null")
    assert shown.server.ready_pids() == pids


def control(fields: str) -> str:
    """JavaScript that sends a reload, and gives the status of the answer."""
    return f"""fetch("api/control", {{
        method: "POST",
        headers: {{"Content-Type": "application/json", ...{fields}}},
        body: '{{"command": "reload"}}',
    }}).then(answer => answer.status)"""


# --- for everybody --------------------------------------------------------------------------------


def test_phone_and_dark_mode(show: Callable[..., Shown]) -> None:
    shown = show("wsgi_app.py:app", "-w", "2", ready=2)
    browser = shown.browser
    for width in (360, 768, 1440):
        browser.resize(width, 780)
        browser.wait("document.querySelector('.plot canvas')?.getBoundingClientRect().width > 100")
        page = browser.evaluate("document.documentElement.scrollWidth")
        assert page <= width, f"{page} pixels wide on a screen of {width}"
    luminance = {}
    for scheme in ("light", "dark"):
        browser.prefer(scheme)
        luminance[scheme] = {
            name: browser.evaluate(f"({LUMINANCE})('body', '{name}')")
            for name in ("backgroundColor", "color")
        }
    assert luminance["light"]["backgroundColor"] > 0.8 > 0.1 > luminance["light"]["color"]
    assert luminance["dark"]["backgroundColor"] < 0.1 < 0.6 < luminance["dark"]["color"]
    shown.assert_clean()


# The relative luminance of a colour, WCAG 2.2.
LUMINANCE = """(selector, property) => {
    const color = getComputedStyle(document.querySelector(selector))[property];
    const parts = color.match(/[0-9.]+/g).slice(0, 3).map(Number).map(each => each / 255)
        .map(each => each <= 0.04045 ? each / 12.92 : ((each + 0.055) / 1.055) ** 2.4);
    return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2];
}"""


def test_nothing_is_a_barrier(show: Callable[..., Shown], axe: str) -> None:
    shown = show("wsgi_app.py:app", "-w", "2", ready=2)
    browser = shown.browser
    os.kill(shown.server.ready_pids()[0], signal.SIGKILL)
    shown.wait_timeline("exit", "crashed")
    found = []
    for width, scheme in ((1440, "light"), (1440, "dark"), (360, "light"), (360, "dark")):
        browser.resize(width, 900)
        browser.prefer(scheme)
        found += grave_findings(browser, axe, f"page, {width} px, {scheme}")
    browser.click("#scale")
    found += grave_findings(browser, axe, "dialog")
    browser.press("Escape")
    browser.click("#sign-out button")
    browser.wait("document.querySelector('#token') !== null")
    found += grave_findings(browser, axe, "sign-in page")
    assert found == []


def grave_findings(browser: Browser, axe: str, where: str) -> list[str]:
    browser.evaluate(f"window.axe === undefined ? (() => {{ {axe} }})() : 0; 0")
    result: dict[str, Any] = browser.evaluate("axe.run({resultTypes: ['violations']})")
    assert len(result["passes"]) > 10, "axe-core has checked nothing"
    texts = [
        f"{where}: {each['impact']}: {each['id']}: {[node['target'] for node in each['nodes']]}"
        for each in result["violations"]
    ]
    print("\n".join(texts))
    grave = [each["impact"] in GRAVE for each in result["violations"]]
    return [text for text, is_grave in zip(texts, grave, strict=True) if is_grave]


@pytest.fixture(scope="session")
def axe(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The source of axe-core, from npm; it is not part of this repository."""
    source = load_axe(tmp_path_factory.mktemp("axe"))
    if source is None:
        pytest.skip(f"npm, or its registry, does not give {AXE}")
    return source


@cache
def load_axe(directory: Path) -> str | None:
    npm = shutil.which("npm")
    if npm is None:
        return None
    command = [npm, "pack", "--silent", "--ignore-scripts", AXE]
    try:
        subprocess.run(command, cwd=directory, check=True, capture_output=True, timeout=90)
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired):
        return None
    (package,) = directory.glob("*.tgz")
    with tarfile.open(package) as archive:
        source = archive.extractfile("package/axe.min.js")
        assert source is not None
        return source.read().decode()
