"""The terminal of `servoctl monit`: bytes become keys, and a pseudo-terminal keeps its settings."""

from __future__ import annotations

import os
import pty
import signal
import struct
import termios
from collections.abc import Iterator
from contextlib import suppress
from fcntl import ioctl

import pytest

from servo.cli.monit_terminal import KeyReader, Terminal

KEYS = {
    b"\x1b[A": ["up"],
    b"\x1bOB": ["down"],
    b"\x1b[C": ["right"],
    b"\x1bOD": ["left"],
    b"\x1b[5~": ["pageup"],
    b"\x1b[6~": ["pagedown"],
    b"\r": ["enter"],
    b"\n": ["enter"],
    b"\x7f": ["backspace"],
    b"\x03": ["ctrl-c"],
    b"a+ ?": ["a", "+", " ", "?"],
    "é€".encode(): ["é", "€"],
    b"\x00\x01\x1b[15~x": ["x"],  # unknown keys
    b"\x1b[1;5Ay": ["y"],  # Ctrl with an arrow key
    b"k\x1b[Bk": ["k", "down", "k"],
}


@pytest.mark.parametrize("data", KEYS)
def test_bytes_become_keys_wherever_they_are_split(data: bytes) -> None:
    for split in range(len(data) + 1):
        reader = KeyReader()
        assert reader.feed(data[:split]) + reader.feed(data[split:]) == KEYS[data]
        assert not reader.pending


def test_escape_alone_is_a_key_if_nothing_follows() -> None:
    reader = KeyReader()
    assert reader.feed(b"\x1b") == []
    assert reader.pending
    assert reader.flush() == ["escape"]
    assert not reader.pending
    assert reader.flush() == []


def test_escape_before_another_key() -> None:
    assert KeyReader().feed(b"\x1bq") == ["escape", "q"]


def test_bytes_that_are_no_text_are_ignored_or_replaced() -> None:
    assert KeyReader().feed(b"\xff") == ["\ufffd"]


@pytest.fixture
def line() -> Iterator[tuple[int, int]]:
    """The two ends of a pseudo-terminal: ours, and the program's."""
    ours, theirs = pty.openpty()
    yield ours, theirs
    for fd in (ours, theirs):
        with suppress(OSError):  # a test has closed it
            os.close(fd)


def mode(fd: int) -> int:
    return int(termios.tcgetattr(fd)[3])


def test_the_mode_is_changed_and_restored(line: tuple[int, int]) -> None:
    _, theirs = line
    before = termios.tcgetattr(theirs)
    handlers = [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM, signal.SIGTSTP)]
    with Terminal(theirs, theirs) as terminal:
        assert not mode(theirs) & (termios.ICANON | termios.ECHO)
        terminal.restore()
        assert mode(theirs) & termios.ICANON
        terminal.take_keys()
    assert termios.tcgetattr(theirs) == before
    assert handlers == [
        signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM, signal.SIGTSTP)
    ]


def test_the_mode_is_restored_after_an_error(line: tuple[int, int]) -> None:
    _, theirs = line
    before = termios.tcgetattr(theirs)
    with pytest.raises(ZeroDivisionError), Terminal(theirs, theirs):
        raise ZeroDivisionError
    assert termios.tcgetattr(theirs) == before


def test_keys_and_the_size(line: tuple[int, int]) -> None:
    ours, theirs = line
    with Terminal(theirs, theirs) as terminal:
        os.write(ours, b"k\x1b[A")
        assert terminal.wait(10.0) == ["k", "up"]
        os.write(ours, b"\x1b")
        assert terminal.wait(10.0) == ["escape"]
        ioctl(ours, termios.TIOCSWINSZ, struct.pack("4H", 30, 100, 0, 0))
        assert terminal.size == (100, 30)


def test_a_thread_wakes_it(line: tuple[int, int]) -> None:
    with Terminal(line[1], line[1]) as terminal:
        for _ in range(100_000):  # more than the pipe holds
            terminal.wake()
        assert terminal.wait(10.0) == []
        assert terminal.ended is None


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_the_wait(line: tuple[int, int], number: int) -> None:
    with Terminal(line[1], line[1]) as terminal:
        os.kill(os.getpid(), number)
        assert terminal.wait(10.0) == []
        assert terminal.ended == number


def test_a_resize_and_ctrl_z_wake_it_and_do_not_end_it(line: tuple[int, int]) -> None:
    with Terminal(line[1], line[1]) as terminal:
        os.kill(os.getpid(), signal.SIGWINCH)
        assert terminal.wait(10.0) == []
        assert not terminal.take_suspension()
        os.kill(os.getpid(), signal.SIGTSTP)
        assert terminal.wait(10.0) == []
        assert terminal.take_suspension()
        assert not terminal.take_suspension()
        assert terminal.ended is None


def test_the_mode_is_taken_again_when_a_shell_continues_it(line: tuple[int, int]) -> None:
    with Terminal(line[1], line[1]) as terminal:
        terminal.restore()
        os.kill(os.getpid(), signal.SIGCONT)
        assert terminal.wait(10.0) == []
        assert not mode(line[1]) & termios.ICANON


def test_a_closed_terminal_is_like_a_hang_up(line: tuple[int, int]) -> None:
    ours, theirs = line
    with Terminal(theirs, theirs) as terminal:
        os.close(ours)
        assert terminal.wait(10.0) == []
        assert terminal.ended == signal.SIGHUP


def test_a_terminal_that_is_gone_when_its_keys_are_taken(line: tuple[int, int]) -> None:
    ours, theirs = line
    with Terminal(theirs, theirs) as terminal:
        os.close(ours)
        terminal.take_keys()
        assert terminal.ended == signal.SIGHUP
