"""The terminal of `servoctl monit`: keys without waiting for Enter, and signals as events.

In the terminal's normal ("canonical") mode, a program gets whole lines. `Terminal` turns this mode
and the echo off, and restores the settings at the end, whatever the end is. Signals only write a
byte into a pipe (`signal.set_wakeup_fd`), so no handler interrupts the drawing of a screen.
"""

from __future__ import annotations

import codecs
import os
import select
import signal
import termios
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from types import FrameType, TracebackType

_READ_BYTES = 1024
# Wait this many seconds for the rest of a key's sequence of bytes. Without a rest, it was Escape.
_ESCAPE_S = 0.05

# The sequences that xterm and its relatives send, without the leading ESC.
_SEQUENCES = {
    "[A": "up",
    "[B": "down",
    "[C": "right",
    "[D": "left",
    "OA": "up",
    "OB": "down",
    "OC": "right",
    "OD": "left",
    "[5~": "pageup",
    "[6~": "pagedown",
}
_CHARACTERS = {
    "\r": "enter",
    "\n": "enter",
    "\x7f": "backspace",
    "\x08": "backspace",
    "\x03": "ctrl-c",
}
_ENDS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class KeyReader:
    """Turns the bytes of a terminal into keys: characters, and names such as "up"."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._text = ""

    @property
    def pending(self) -> bool:
        """Whether the start of a sequence waits for its rest."""
        return bool(self._text)

    def feed(self, data: bytes) -> list[str]:
        """The keys that are complete after these bytes."""
        self._text += self._decoder.decode(data)
        keys = []
        while self._text:
            length = self._sequence_length()
            if length == 0:
                break
            part, self._text = self._text[:length], self._text[length:]
            keys += self._key(part)
        return keys

    def flush(self) -> list[str]:
        """The key of the bytes that wait: Escape, because no rest has come."""
        waits, self._text = bool(self._text), ""
        return ["escape"] if waits else []

    def _sequence_length(self) -> int:
        """The length of the first key; 0 if it is not complete."""
        text = self._text
        if text[0] != "\x1b":
            return 1
        if len(text) == 1:
            return 0
        if text[1] == "O":  # SS3, of the arrow keys in application mode
            return 3 if len(text) >= 3 else 0
        if text[1] != "[":  # Escape and then another key, or Alt with a key
            return 1
        # CSI: parameters, and a final character from @ to ~ (ECMA-48, 5.4).
        for i, character in enumerate(text[2:], start=3):
            if "@" <= character <= "~":
                return i
        return 0

    def _key(self, part: str) -> list[str]:
        if part == "\x1b":
            return ["escape"]
        if part[0] == "\x1b":
            name = _SEQUENCES.get(part[1:])
            return [name] if name else []
        if part in _CHARACTERS:
            return [_CHARACTERS[part]]
        return [part] if part.isprintable() else []


class Terminal:
    """The terminal of this process while the screen is shown.

    input_fd    a descriptor of the terminal, to read
    output_fd   a descriptor of the terminal, to ask for its size

    ended   the signal that asks this process to end; None without one
    """

    def __init__(self, input_fd: int, output_fd: int) -> None:
        self._input_fd = input_fd
        self._output_fd = output_fd
        self._keys = KeyReader()
        self._saved: list[Any] = []
        self._handlers: dict[int, Any] = {}
        self._wake_fds = (-1, -1)
        self._old_wakeup_fd = -1
        self._must_suspend = False
        self.ended: int | None = None

    def __enter__(self) -> Terminal:
        self._saved = termios.tcgetattr(self._input_fd)
        self._wake_fds = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._old_wakeup_fd = signal.set_wakeup_fd(self._wake_fds[1], warn_on_full_buffer=False)
        for number in (*_ENDS, signal.SIGWINCH, signal.SIGTSTP, signal.SIGCONT):
            self._handlers[number] = signal.signal(number, self._on_signal)
        self.take_keys()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.restore()
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._old_wakeup_fd)
        for fd in self._wake_fds:
            os.close(fd)

    @property
    def size(self) -> tuple[int, int]:
        """The terminal's width and height in characters."""
        size = os.get_terminal_size(self._output_fd)
        return size.columns or 80, size.lines or 24

    def take_keys(self) -> None:
        """Read single keys from now on, without echo."""
        try:
            mode = termios.tcgetattr(self._input_fd)
            mode[3] &= ~(termios.ICANON | termios.ECHO)
            mode[6][termios.VMIN], mode[6][termios.VTIME] = 1, 0
            termios.tcsetattr(self._input_fd, termios.TCSANOW, mode)
        except termios.error:
            self.ended = self.ended or signal.SIGHUP  # the terminal is gone

    def restore(self) -> None:
        """Give the terminal its old settings back."""
        try:
            termios.tcsetattr(self._input_fd, termios.TCSANOW, self._saved)
        except termios.error:
            self.ended = self.ended or signal.SIGHUP  # the terminal is gone

    def take_suspension(self) -> bool:
        """Whether Ctrl-Z has been pressed since the last call."""
        wanted, self._must_suspend = self._must_suspend, False
        return wanted

    def wake(self) -> None:
        """End a `wait` of another thread."""
        try:
            os.write(self._wake_fds[1], b"\0")
        except BlockingIOError:
            return  # the pipe is full, so `wait` returns anyway

    def wait(self, timeout_s: float) -> list[str]:
        """Wait for keys, a signal or `wake`, and return the keys.

        timeout_s   how long to wait, in seconds
        """
        ready = select.select([self._input_fd, self._wake_fds[0]], [], [], timeout_s)[0]
        if self._wake_fds[0] in ready:
            os.read(self._wake_fds[0], _READ_BYTES)
        keys = self._read() if self._input_fd in ready else []
        while self._keys.pending:
            if select.select([self._input_fd], [], [], _ESCAPE_S)[0]:
                keys += self._read()
            else:
                keys += self._keys.flush()
        return keys

    def _read(self) -> list[str]:
        try:
            data = os.read(self._input_fd, _READ_BYTES)
        except OSError:  # EIO: the terminal has been closed
            data = b""
        if not data:
            self.ended = self.ended or signal.SIGHUP
            return self._keys.flush()
        return self._keys.feed(data)

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        if number in _ENDS:
            self.ended = number
        elif number == signal.SIGTSTP:
            self._must_suspend = True
        elif number == signal.SIGCONT:
            self.take_keys()  # the shell may have changed the mode while this process was stopped
