"""Reading a changed configuration in a throw-away child: it may fail, hang, or end its process."""

from __future__ import annotations

import os
import signal
import traceback
from typing import TYPE_CHECKING

from servo.arbiter import process_info
from servo.arbiter.processes import spawn
from servo.errors import ServoError
from servo.logs.standard_streams import prints_never_block

if TYPE_CHECKING:
    from collections.abc import Callable


class ConfigCheck:
    """One check under way, seen from the arbiter. It is over when its child is reaped."""

    def __init__(
        self, generation: int, read_settings: Callable[[], object], close: Callable[[], None]
    ) -> None:
        """Fork the child. Raises OSError."""
        self.generation = generation
        arbiter = os.getpid()
        reader, writer = os.pipe2(os.O_CLOEXEC)
        os.set_blocking(reader, False)
        self._fd = reader
        self._text = b""

        def close_all() -> None:
            close()
            os.close(reader)

        try:
            self.pid = spawn.fork(lambda: _check(read_settings, writer, arbiter), close_all)
        except OSError:
            os.close(reader)
            raise
        finally:
            os.close(writer)

    def fileno(self) -> int:
        """For a selector: readable when there is something to `read`."""
        return self._fd

    def read(self) -> bool:
        """Take in what the child has written. False at the end."""
        while True:
            try:
                data = os.read(self._fd, 65536)
            except BlockingIOError:
                return True
            if not data:
                return False
            self._text += data

    def result(self, code: int) -> str | None:
        """None when the configuration is good, else what is wrong. `code` is the exit code."""
        self.read()
        text = self._text.decode("utf-8", "replace").strip()
        if code == 0:
            return None
        return text or f"reading it ended the process (exit code {code})"

    def cancel(self) -> None:
        """End the child; its result no longer matters."""
        process_info.send_signal(self.pid, signal.SIGKILL)

    def close(self) -> None:
        """Close the pipe."""
        os.close(self._fd)


def _check(read_settings: Callable[[], object], fd: int, arbiter: int) -> int:
    spawn.die_with(arbiter)
    process_info.set_title("servo: reading the configuration")
    with prints_never_block():
        text = configuration_error(read_settings)
    if text is None:
        return 0
    # Blocks while the arbiter is busy, then goes on.
    data = text.encode("utf-8", "backslashreplace")
    while data:
        data = data[os.write(fd, data) :]
    return 1


def configuration_error(read_settings: Callable[[], object]) -> str | None:
    """Read the configuration; None, or what is wrong with it. A config file may raise anything."""
    try:
        read_settings()
    except ServoError as error:
        return str(error)
    except SystemExit as error:
        return f"it called sys.exit({error.code!r})\n{traceback.format_exc()}"
    except BaseException:  # noqa: BLE001  KeyboardInterrupt, too, is reported with its traceback
        return traceback.format_exc()
    return None
