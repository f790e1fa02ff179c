"""`servoctl` in a real terminal: tmux gives it keys, and shows the screen as text."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

from integration.server import DEADLINE_S, alive, environment, processes, wait_for

TMUX = shutil.which("tmux")
COMMAND = [sys.executable, "-m", "servo.cli.ctl"]


class Terminal:
    """A program in a terminal of tmux, which has a server of its own for each test.

    socket       the path of the socket of tmux's server
    arguments    the arguments of servoctl
    size         the terminal's width and height
    term         its $TERM
    environ      added to the program's environment
    """

    def __init__(
        self,
        socket: Path,
        *arguments: str,
        size: tuple[int, int] = (100, 30),
        term: str = "tmux-256color",
        environ: dict[str, str] | None = None,
    ) -> None:
        self._command = [str(TMUX), "-S", str(socket), "-f", os.devnull]
        self._environ = environment({"TMUX": None, "LC_ALL": "C.UTF-8"})
        changes = [f"TERM={term}", *(f"{name}={value}" for name, value in (environ or {}).items())]
        program = shlex.join(["env", *changes, *COMMAND, *arguments])
        width, height = size
        # After the program, the shell shows its exit code and the terminal's settings.
        script = f"stty -g > {socket}.before; {program}; echo code $?; stty -g > {socket}.after"
        self.tmux(
            *("-u", "new-session", "-d", "-x", str(width), "-y", str(height)),
            *("-c", str(socket.parent)),  # where programs put their files
            f"{script}; exec sleep 1000",
        )
        self._socket = socket

    def tmux(self, *arguments: str) -> str:
        done = subprocess.run(
            [*self._command, *arguments],
            env=self._environ,
            capture_output=True,
            text=True,
            timeout=DEADLINE_S,
            check=True,
        )
        return done.stdout

    def press(self, *keys: str) -> None:
        """Press keys by tmux's names, such as "Up", "Enter" and "C-c"; others are typed."""
        self.tmux("send-keys", *keys)

    def resize(self, width: int, height: int) -> None:
        self.tmux("resize-window", "-x", str(width), "-y", str(height))

    def screen(self, *flags: str) -> str:
        return self.tmux("capture-pane", "-p", *flags)

    def wait(self, pattern: str) -> re.Match[str]:
        """Wait until the screen matches."""
        expression = re.compile(pattern, re.MULTILINE)
        try:
            return wait_for(lambda: expression.search(self.screen()), f"/{pattern}/", every_s=0.1)
        except AssertionError as error:
            raise AssertionError(f"{error}; the screen:\n{self.screen()}") from error

    def wait_without(self, text: str) -> None:
        wait_for(lambda: text not in self.screen(), f"screen without {text}", every_s=0.1)

    def pid(self) -> int:
        """The process id of servoctl."""
        shell = int(self.tmux("list-panes", "-F", "#{pane_pid}"))
        return wait_for(
            lambda: next((p.pid for p in processes() if p.parent == shell), 0), "servoctl"
        )

    def settings_are_restored(self) -> bool:
        """Whether the program has left the terminal as it was: its mode, screen and cursor."""
        before, after = (Path(f"{self._socket}.{name}") for name in ("before", "after"))
        wait_for(lambda: after.exists() and after.stat().st_size, "end of servoctl")
        flags = self.tmux("display-message", "-p", "#{alternate_on} #{cursor_flag}").split()
        return before.read_text() == after.read_text() and flags == ["0", "1"]

    def close(self) -> None:
        pid = int(self.tmux("display-message", "-p", "#{pid}"))
        self.tmux("kill-server")
        wait_for(lambda: not alive(pid), "end of tmux")
