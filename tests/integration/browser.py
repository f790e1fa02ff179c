"""A page in headless Chromium, driven through the DevTools protocol: keys, clicks and its logs."""

from __future__ import annotations

import base64
import json
import os
import shutil
import signal
import subprocess
import time
import urllib.request
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from websockets.sync.client import connect

from integration.server import DEADLINE_S, wait_for

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--no-proxy-server",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
    "--remote-debugging-port=0",
)
# The keys that tests press: the name in the protocol, its code, and the text that it types.
_KEYS = {
    "Tab": ("Tab", 9, ""),
    "Enter": ("Enter", 13, "\r"),
    "Escape": ("Escape", 27, ""),
    "Space": (" ", 32, " "),
}


class Browser:
    """A Chromium of its own with one page. Close it with `stop()`.

    directory   for its profile and its log

    problems    the errors in the page's console: exceptions, refused content, failed loads
    urls        what the page has asked for
    """

    def __init__(self, directory: Path) -> None:
        assert CHROMIUM is not None
        self.problems: list[str] = []
        self.urls: list[str] = []
        self._called = 0
        self._log = directory / "chromium.log"
        profile = directory / "profile"
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [CHROMIUM, *FLAGS, f"--user-data-dir={profile}", "about:blank"],
                env={**os.environ, "HOME": str(directory), "TZ": "UTC"},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self._closing = ExitStack()
        try:
            url = self._page_url(profile / "DevToolsActivePort")
            client = connect(url, max_size=None, compression=None)
            self._devtools = self._closing.enter_context(client)
            for domain in ("Page", "Runtime", "Log", "Network"):
                self.call(f"{domain}.enable")
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        # Chromium does not answer the closing handshake, so end it first.
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait(30)
        self._closing.close()
        print(self._log.read_text(errors="replace")[-2000:])

    def _page_url(self, port_file: Path) -> str:
        def page() -> str | None:
            if not port_file.exists() or not (lines := port_file.read_text().splitlines()):
                return None
            with urllib.request.urlopen(f"http://127.0.0.1:{lines[0]}/json/list") as answer:
                targets = json.load(answer)
            urls = [each["webSocketDebuggerUrl"] for each in targets if each["type"] == "page"]
            return urls[0] if urls else None

        # Chromium takes long to start on a busy machine.
        return wait_for(page, "page of Chromium", deadline_s=60)

    # --- the protocol -----------------------------------------------------------------------------

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """Call a method of the DevTools protocol, and return its result."""
        self._called += 1
        self._devtools.send(json.dumps({"id": self._called, "method": method, "params": params}))
        end = time.monotonic() + DEADLINE_S
        while True:
            message = json.loads(self._devtools.recv(max(0.1, end - time.monotonic())))
            if message.get("id") == self._called:
                assert "error" not in message, message["error"]
                return dict(message["result"])
            self._note(message)

    def _note(self, event: dict[str, Any]) -> None:
        match event.get("method"):
            case "Runtime.exceptionThrown":
                self.problems.append(str(event["params"]["exceptionDetails"]))
            case "Runtime.consoleAPICalled" if event["params"]["type"] in ("error", "assert"):
                self.problems.append(str(event["params"]["args"]))
            case "Log.entryAdded" if event["params"]["entry"]["level"] == "error":
                self.problems.append(str(event["params"]["entry"]))
            case "Network.requestWillBeSent":
                self.urls.append(event["params"]["request"]["url"])

    # --- the page ---------------------------------------------------------------------------------

    def open(self, url: str) -> None:
        """Open a page, and wait until it is loaded."""
        self.call("Page.navigate", url=url)
        self.wait("document.readyState === 'complete' && location.href !== 'about:blank'")

    def evaluate(self, expression: str) -> Any:
        """The value of a JavaScript expression, or of the promise that it is."""
        result = self.call(
            "Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True
        )
        assert "exceptionDetails" not in result, result["exceptionDetails"]
        return result["result"].get("value")

    def wait(self, expression: str, deadline_s: float = DEADLINE_S) -> Any:
        """The first true value of a JavaScript expression."""
        return wait_for(lambda: self.evaluate(expression), expression, deadline_s, every_s=0.1)

    def text(self, selector: str) -> str:
        """The text of the first element that a CSS selector names, or ""."""
        found = self.evaluate(f"document.querySelector({json.dumps(selector)})?.innerText ?? ''")
        return str(found)

    def wait_text(self, selector: str, part: str, deadline_s: float = DEADLINE_S) -> str:
        """Wait until the text of an element has a part, and return it whole."""
        return wait_for(
            lambda: text if part in (text := self.text(selector)) else None,
            f"{part!r} in {selector}",
            deadline_s,
            every_s=0.1,
        )

    def press(self, name: str, *, shift: bool = False) -> None:
        """Press a key, and release it."""
        key, code, text = _KEYS[name]
        values: dict[str, Any] = {"key": key, "code": name, "windowsVirtualKeyCode": code}
        values["modifiers"] = 8 if shift else 0
        typed = {"text": text} if text else {}
        kind = "keyDown" if text else "rawKeyDown"
        self.call("Input.dispatchKeyEvent", type=kind, **values, **typed)
        self.call("Input.dispatchKeyEvent", type="keyUp", **values)

    def type(self, text: str) -> None:
        """Type a text into the field that has the focus."""
        self.call("Input.insertText", text=text)

    def click(self, selector: str) -> None:
        """Click the middle of an element with the mouse."""
        where = self.evaluate(
            f"""(() => {{
                const target = document.querySelector({json.dumps(selector)});
                target.scrollIntoView({{block: "center"}});
                const box = target.getBoundingClientRect();
                return {{x: box.x + box.width / 2, y: box.y + box.height / 2}};
            }})()"""
        )
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, button="left", clickCount=1, **where)

    def resize(self, width: int, height: int, scale: float = 1) -> None:
        """Show the page on a screen of this size in CSS pixels."""
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=scale,
            mobile=width < 500,
        )

    def prefer(self, scheme: str) -> None:
        """Prefer a colour scheme: "light" or "dark"."""
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self.call("Emulation.setEmulatedMedia", features=features)

    def screenshot(self, path: Path, *, whole: bool = False) -> None:
        """Write a picture of the screen, or of the whole page, as PNG."""
        result = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        path.write_bytes(base64.b64decode(result["data"]))
