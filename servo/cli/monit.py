"""`servoctl monit`: a screen that shows a running server, and keys that control it.

This is the driver: a loop that waits for keys and for the server's answers, passes them to the
screen's state (`servo.cli.monit_state`), performs the actions that it returns, and draws the state
(`servo.cli.monit_view`). The connections have threads of their own (`servo.cli.monit_link`).
"""

from __future__ import annotations

import importlib.util
import os
import queue
import signal
import sys
import time
from typing import TYPE_CHECKING

from servo.cli import monit_link as link
from servo.cli.monit_state import (
    OpenList,
    OpenServer,
    Quit,
    Send,
    ServerList,
    ServerScreen,
    fits,
)
from servo.cli.monit_terminal import Terminal
from servo.cli.target import Target, running_servers
from servo.errors import ServoError, UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from rich.live import Live

    from servo.cli.monit_state import Action
    from servo.control.instances import Instance

# Draw the screen at most every _MIN_DRAW_S seconds, unless a key was pressed, and at least every
# _MAX_DRAW_S: it shows for how long a server has not answered.
_MIN_DRAW_S = 0.1
_MAX_DRAW_S = 1.0


def run(target: Target) -> int:
    """Show a server until the operator quits; with --all, or if several match, a list of servers.

    target   the options of the command

    Returns the exit code. Raises UsageError if this is no terminal that can show a screen,
    ServoError if rich is missing, and ControlError if the server can't be reached.
    """
    _check_terminal(target, os.environ)
    instance = None
    is_one = target.socket is not None or len(target.matching(running_servers())) <= 1
    if is_one and not target.every:
        instance = target.find()
        # Report a dead or stopped server before the screen hides the command line.
        with target.connect_to(instance) as client:
            client.request("status")
    monitor = Monitor(target)
    with Terminal(sys.stdin.fileno(), sys.stdout.fileno()) as terminal:
        return monitor.run(terminal, instance)


def _check_terminal(target: Target, environ: Mapping[str, str]) -> None:
    if target.json:
        raise UsageError("monit draws a screen; for JSON use `servoctl workers --json`")
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise UsageError("monit needs a terminal; elsewhere use `servoctl workers`")
    term = environ.get("TERM", "")
    if term in ("", "dumb", "unknown"):
        raise UsageError(f"this terminal can't show a screen (TERM={term}); use `servoctl workers`")
    if importlib.util.find_spec("rich") is None:
        raise ServoError("monit needs rich: pip install 'rich>=13'")


class Monitor:
    """The loop of `servoctl monit`.

    target   the options of the command
    """

    def __init__(self, target: Target) -> None:
        self._target = target
        self._inbox: queue.SimpleQueue[tuple[int, link.Item]] = queue.SimpleQueue()
        self._screen: ServerScreen | ServerList = ServerList()
        self._link: link.ServerLink | link.ListLink | None = None
        self._opened = 0
        self._is_over = False

    def run(self, terminal: Terminal, instance: Instance | None) -> int:
        """Show the screens until the operator quits or a signal arrives. Returns the exit code.

        terminal   the terminal, in its mode for keys
        instance   the server to show first; None: the list
        """
        self._terminal = terminal
        self._live = make_live(os.environ)
        try:
            self._live.start()
            if instance is None:
                self._open_list(self._target)
            else:
                # A pid or a socket names this one server, and no later one of the same name.
                chosen = self._target.pid is not None or self._target.socket is not None
                self._open_server(instance, may_follow=not chosen)
            self._loop()
        finally:
            self._close_link()
            self._live.stop()
        # Ctrl-C is a way to quit. After another signal, exit with the code that a shell expects.
        if terminal.ended in (None, signal.SIGINT):
            return 0
        return 128 + terminal.ended

    def _loop(self) -> None:
        drawn_at, is_changed = 0.0, True
        while not self._is_over and self._terminal.ended is None:
            now = time.monotonic()
            if now - drawn_at >= (_MIN_DRAW_S if is_changed else _MAX_DRAW_S):
                self._draw(now)
                drawn_at, is_changed = now, False
            wait_s = drawn_at + (_MIN_DRAW_S if is_changed else _MAX_DRAW_S) - now
            size = self._terminal.size
            keys = self._terminal.wait(max(0.0, wait_s))
            if self._terminal.take_suspension():
                self._suspend()
                drawn_at = 0.0
            for key in keys:
                self._on_key(key)
            is_changed = self._take_items() or is_changed
            if keys or self._terminal.size != size:
                drawn_at, is_changed = 0.0, True

    def _draw(self, now: float) -> None:
        from servo.cli import monit_view  # needs rich

        console = self._live.console
        width, height = console.size = self._terminal.size
        ascii_only = console.options.ascii_only
        text = monit_view.draw(self._screen, width, height, now, ascii_only=ascii_only)
        self._live.update(text, refresh=True)

    def _suspend(self) -> None:
        """Stop this process, as Ctrl-Z does, with the terminal as it was before."""
        self._live.stop()
        self._terminal.restore()
        os.kill(os.getpid(), signal.SIGSTOP)
        self._terminal.take_keys()
        self._live.start()

    # --- inputs -----------------------------------------------------------------------------------

    def _on_key(self, key: str) -> None:
        if key == "ctrl-c" or (key == "q" and not fits(*self._terminal.size)):
            self._is_over = True
        elif fits(*self._terminal.size):  # don't act on keys while the screen can't show the effect
            self._act(self._screen.on_key(key))

    def _act(self, action: Action | None) -> None:
        if isinstance(action, Quit):
            self._is_over = True
        elif isinstance(action, OpenList):
            self._open_list(Target(timeout_s=self._target.timeout_s))
        elif isinstance(action, OpenServer):
            self._open_server(action.instance, may_follow=True)
        elif isinstance(action, Send) and isinstance(self._link, link.ServerLink):
            self._link.send(action)

    def _take_items(self) -> bool:
        """Pass the items of the inbox to the screen. Returns whether there were any."""
        is_changed = False
        while True:
            try:
                opened, item = self._inbox.get_nowait()
            except queue.Empty:
                return is_changed
            if opened == self._opened:  # not of a screen that was left
                is_changed = True
                self._take(item)

    def _take(self, item: link.Item) -> None:
        screen = self._screen
        if isinstance(screen, ServerList):
            if isinstance(item, link.Servers):
                screen.on_servers(item.instances, item.rows)
            return
        match item:
            case link.Snapshot(status, workers):
                screen.on_snapshot(status, workers, time.monotonic())
            case link.Lost(problem):
                screen.on_lost(problem)
            case link.NotesRestarted(name):
                screen.on_notes_restarted(name)
            case link.Note(name, note):
                screen.on_note(name, note)
            case link.Progress(text):
                screen.on_progress(text)
            case link.Result(send, result):
                screen.on_result(send, result)
            case link.Failure(send, error):
                screen.on_failure(send, error)

    # --- screens ----------------------------------------------------------------------------------

    def _open_list(self, target: Target) -> None:
        self._close_link()
        self._screen = ServerList()
        opened = self._opened
        self._link = link.ListLink(target, lambda item: self._put(opened, item))
        self._link.start()

    def _open_server(self, instance: Instance, *, may_follow: bool) -> None:
        self._close_link()
        self._screen = ServerScreen(instance.name or os.path.basename(instance.socket))
        opened = self._opened
        finder = link.Finder(instance, self._target.timeout_s, may_follow=may_follow)
        self._link = link.ServerLink(finder, lambda item: self._put(opened, item))
        self._link.start()

    def _close_link(self) -> None:
        self._opened += 1
        if self._link is not None:
            self._link.close()
            self._link = None

    def _put(self, opened: int, item: link.Item) -> None:
        """Put an item into the inbox. The threads call this.

        opened   the number of the screen that it is for
        """
        self._inbox.put((opened, item))
        self._terminal.wake()


def make_live(environ: Mapping[str, str]) -> Live:
    """Make rich's Live for a whole screen.

    environ   the environment; with NO_COLOR, or a terminal without colours, there are only bold,
              dim and reversed characters
    """
    from rich.console import Console
    from rich.live import Live

    no_color = bool(environ.get("NO_COLOR")) or not _has_colours(environ["TERM"])
    console = Console(
        force_terminal=True, force_interactive=True, no_color=no_color, highlight=False
    )
    return Live(
        console=console,
        screen=True,
        auto_refresh=False,
        redirect_stdout=False,
        redirect_stderr=False,
    )


def _has_colours(term: str) -> bool:
    """Whether a terminal has colours, by the terminfo database; True if it does not know it."""
    try:
        import curses
    except ImportError:  # a Python that was built without it
        return True
    try:
        curses.setupterm(term, sys.stdout.fileno())
    except curses.error:
        return True
    return curses.tigetnum("colors") >= 8
