"""Replaces the arbiter's program by execve(2), and passes the state to the next program.

The process stays: its pid, its children, its open descriptors, its working directory and its
blocked signals. All data of the program is lost, so the state goes into a nameless file in memory.
An environment variable tells the next program the file's descriptor. A preflight tries the new
program in a child process; there the same variable has the descriptor of a file for the answer. A
Servo that is too old to take over does not answer.

Signals are blocked during the change. They stay pending, and the next program gets them after it
has set its handlers. Without this, a SIGTERM at the wrong moment would end the process at once.
"""

from __future__ import annotations

import gc
import json
import os
import signal
import sys
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, NoReturn

from servo.arbiter.limit import LimitExceeded
from servo.arbiter.signals import HANDLED, STOPPING
from servo.arbiter.takeover_limit import TakeoverLimit
from servo.arbiter.upgrade_state import (
    STATE_VERSION,
    UnreadableStateError,
    UpgradeState,
    decode_state,
    encode_state,
)
from servo.errors import ServoError

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Mapping, MutableMapping, Sequence

# The environment variable. Its value is "restore PID FD" or "preflight FD". No setting's variable
# has two underscores in a row.
VARIABLE = "SERVO__UPGRADE"

# Seconds to take over from a program that does not say how long that may take.
DEFAULT_TAKEOVER_S = 60.0
# Seconds between two attempts of an old program to start again after a failed upgrade.
_RETRY_S = 1.0


class UpgradeError(ServoError):
    """Raised if the program can't be replaced. The text is the reason, in one line."""


@dataclass(frozen=True, slots=True)
class Command:
    """The command that has started this server, so that an upgrade can run it again.

    before      the interpreter's flags, then the program: the path of a script, or "-m" and "servo"
    arguments   the program's arguments
    directory   the working directory at the start, as the user named it
    environ     the environment at the start, including secrets
    """

    before: tuple[str, ...]
    arguments: tuple[str, ...]
    directory: str
    environ: Mapping[str, str]

    @classmethod
    def of_process(
        cls, arguments: Sequence[str], directory: str, environ: Mapping[str, str]
    ) -> Command:
        """The command of this process.

        arguments   the command line without the program's name
        directory   the directory in which the process was started
        environ     a copy of its environment at the start
        """
        given = sys.orig_argv[1:]
        end = len(given) - len(arguments)
        # If other Python code called `servo.cli.main.main([…])`, there is no command to run again.
        known = end > 0 and given[end:] == list(arguments)
        before = tuple(given[:end]) if known else ("-m", "servo")
        return cls(before, tuple(arguments), directory, environ)

    def to_state(self) -> dict[str, Any]:
        """Return the command and this interpreter as JSON values, for `from_state`."""
        return {**asdict(self), "python": sys.executable}

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Command:
        """Restore the command that the previous program has passed on.

        Raises KeyError, TypeError or ValueError for an invalid state.
        """
        return cls(
            tuple(map(str, state["before"])),
            tuple(map(str, state["arguments"])),
            str(state["directory"]),
            {str(name): str(value) for name, value in state["environ"].items()},
        )

    def argv(self, python: str, *more: str) -> list[str]:
        """The command for another interpreter: the same flags and the same arguments.

        python   the path of the interpreter
        more     arguments to insert before the others

        If the program is a script, such as `servo` in a virtual environment, and there is a script
        of the same name next to the interpreter, the command uses that script.
        """
        *flags, program = self.before
        beside = os.path.join(os.path.dirname(python), os.path.basename(program))
        if flags[-1:] != ["-m"] and python != sys.executable and os.path.isfile(beside):
            program = beside
        return [python, *flags, program, *more, *self.arguments]


def interpreter(python: str) -> str:
    """The path of the interpreter to run. Raises UpgradeError if there is none.

    python   its path, or "" for the current one
    """
    if not python:
        if not sys.executable:
            raise UpgradeError("the path of this interpreter is not known; give one with --python")
        return sys.executable
    if not os.path.isabs(python):
        raise UpgradeError(f"the path of the interpreter must be absolute, not {python!r}")
    if not os.path.isfile(python):
        raise UpgradeError(f"there is no interpreter {python}")
    if not os.access(python, os.X_OK):
        raise UpgradeError(f"{python} may not be executed")
    return python


# --- the preflight's answer -----------------------------------------------------------------------


def preflight_environ(environ: Mapping[str, str], fd: int) -> dict[str, str]:
    """The environment of a preflight. `fd` is the descriptor of the file for its answer."""
    return {**environ, VARIABLE: f"preflight {fd}"}


def answer_preflight(fd: int, *, secure: bool) -> None:
    """In the preflight: write that this program can take over. Raises OSError.

    fd       the file from the environment
    secure   whether the settings ask for TLS
    """
    os.write(fd, json.dumps({"state": STATE_VERSION, "secure": secure}).encode())


def read_answer(fd: int) -> dict[str, Any] | None:
    """The answer of a preflight; None if there is none."""
    data = os.pread(fd, 65_536, 0)
    with suppress(ValueError):
        values = json.loads(data or b"null")
        if isinstance(values, dict):
            return values
    return None


# --- the handover ---------------------------------------------------------------------------------


@contextmanager
def signals_blocked() -> Iterator[list[int]]:
    """Block the arbiter's signals inside the `with` block. Yields the previous mask, by number.

    A program that is executed inside the block inherits the blocked signals.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, HANDLED)
    try:
        yield sorted(int(number) for number in before)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def execute(command: Command, python: str, state: UpgradeState) -> NoReturn:
    """Replace this process's program. Raises UpgradeError, and never returns.

    command   the command to run again
    python    the path of the interpreter
    state     the state for the next program; its descriptors stay open
    """
    kept = set(state.descriptors)
    here = file = -1
    try:
        here = os.open(".", getattr(os, "O_PATH", os.O_RDONLY) | os.O_DIRECTORY | os.O_CLOEXEC)
        file = nameless_file("servo-upgrade")
        kept.add(file)
        data = memoryview(encode_state(state))
        while data:
            data = data[os.write(file, data) :]
        for fd in kept:
            os.set_inheritable(fd, True)
        os.chdir(command.directory)
        environ = {**command.environ, VARIABLE: f"restore {os.getpid()} {file}"}
        os.execve(python, command.argv(python), environ)  # noqa: S606  no shell is wanted
    except OSError as error:
        _undo(kept, here, file)
        raise UpgradeError(f"{python} can't be executed: {error.strerror}") from error


def _undo(kept: Iterable[int], here: int, file: int) -> None:
    for fd in kept:
        with suppress(OSError):
            os.set_inheritable(fd, False)
    if here >= 0:
        os.fchdir(here)
        os.close(here)
    if file >= 0:
        os.close(file)


def nameless_file(name: str) -> int:
    """Make a file without a path, in memory if possible. Returns its descriptor. Raises OSError.

    name  a name to show in /proc/PID/fd
    """
    if hasattr(os, "memfd_create"):
        return os.memfd_create(name, os.MFD_CLOEXEC)
    import tempfile  # imported here because it takes 5 ms, and most servers never upgrade

    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())


class Inheritance:
    """The state from this process's previous program.

    state   the state
    """

    def __init__(self, fd: int) -> None:
        """Read the state from an inherited descriptor, and close the descriptor.

        fd   the descriptor

        Raises UnreadableStateError if even the outer part can't be read.
        """
        self._copies: list[int] = []
        self._is_settled = False
        try:
            with os.fdopen(fd, "rb") as file:
                file.seek(0)
                self.state = decode_state(file.read())
        except (OSError, UnreadableStateError) as error:
            text = f"the state that the previous program has left can't be read: {error}"
            raise UnreadableStateError(text) from error
        self._limit = TakeoverLimit(_limit_of(self.state))
        for number in self.state.descriptors:
            # Other programs that the configuration starts must not inherit the descriptors. If one
            # is not open, its owner reports this later.
            with suppress(OSError):
                os.set_inheritable(number, False)

    def take(self, fd: int) -> int:
        """Return a copy of an inherited descriptor, for its owner; -1 for -1.

        fd   the descriptor

        The original stays open until `close_originals`. So if a later part of the state can't be
        read, the copies can be closed without losing anything. Raises OSError if the descriptor is
        not open.
        """
        if fd < 0:
            return -1
        copy = os.dup(fd)
        self._copies.append(copy)
        return copy

    def discard_copies(self) -> None:
        """Close all copies. Call this when nothing refers to the objects that own them."""
        # Some objects close their descriptors when they are collected. Close the other descriptors
        # here.
        gc.collect()
        while self._copies:
            with suppress(OSError):
                os.close(self._copies.pop())

    @contextmanager
    def given_back_on_error(self) -> Iterator[None]:
        """If the code in the block fails, execute the previous program again, with its state.

        The preflight finds most errors. This covers later ones, such as a configuration file that
        has just changed or now hangs, or a lack of memory. Errors are only raised if the state was
        already restored, or if a signal asks the server to stop.
        """
        self._limit.begin()
        try:
            yield
        except (Exception, SystemExit, LimitExceeded) as error:
            self._limit.end()
            if not self._is_settled:
                self._give_back(str(error).partition("\n")[0] or type(error).__name__)
            raise
        finally:
            self._limit.end()

    def _give_back(self, text: str) -> None:
        """Execute the previous program. Returns if that is impossible.

        text  why this program can't start, in one line

        The previous program reads the configuration, too, and may fail in the same way. Then it
        tries again each second. It must not exit, because the workers, which still serve, would end
        with it.
        """
        if not self.state.returned:
            self.state.returned = f"the new program could not start: {text}"
        else:
            sys.stderr.write(f"servo: the old program can't start again: {text}; repair this\n")
            sys.stderr.flush()
            if signal.sigtimedwait(STOPPING, _RETRY_S) is not None:
                return
        with suppress(KeyError, TypeError, ValueError, UpgradeError):
            python = str(self.state.command["python"])
            execute(Command.from_state(self.state.command), python, self.state)

    def close_originals(self, but: Collection[int] = ()) -> None:
        """Close the inherited descriptors. Call this after each owner has its copy.

        but  descriptors to keep open
        """
        self._limit.end()
        self._is_settled = True
        for fd in self.state.descriptors:
            if fd not in but:
                with suppress(OSError):
                    os.close(fd)


def _limit_of(state: UpgradeState) -> float:
    """The seconds that the next program has to take over: the previous program's `boot_timeout`."""
    try:
        return max(0.0, float(state.inner.get("takeover_s", DEFAULT_TAKEOVER_S)))
    except (TypeError, ValueError):
        return DEFAULT_TAKEOVER_S


@dataclass(frozen=True, slots=True)
class PreflightFile:
    """The file for the answer of this process, a preflight.

    fd   its descriptor
    """

    fd: int


def take_upgrade(environ: MutableMapping[str, str]) -> Inheritance | PreflightFile | None:
    """Read and remove the variable of an upgrade. Returns None if there is none.

    environ   the environment
    """
    kind, *numbers = environ.pop(VARIABLE, "").split() or [""]
    if not all(number.isdecimal() for number in numbers):
        return None
    if kind == "preflight" and len(numbers) == 1:
        return PreflightFile(int(numbers[0]))
    # Check the pid: a child may have inherited the variable.
    if kind == "restore" and len(numbers) == 2 and int(numbers[0]) == os.getpid():
        return Inheritance(int(numbers[1]))
    return None


def python_version() -> str:
    """The version of this interpreter: "3.13.1"."""
    return ".".join(map(str, sys.version_info[:3]))
