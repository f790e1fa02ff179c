"""The client's end of the control socket: blocking, with a time limit on each wait."""

from __future__ import annotations

import socket
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any, ClassVar

from servo.control import protocol
from servo.control.server import peer_of
from servo.errors import ServoError

if TYPE_CHECKING:
    from collections.abc import Callable

_READ_BYTES = 65_536
# The longest line, in bytes, that a server sends. A peer that sends a longer one is not Servo.
_MAX_LINE_BYTES = 16 << 20
_RETRY_S = 0.02


class ControlError(ServoError):
    """Raised if a request to a server has not succeeded."""


class NoSuchInstance(ControlError):  # noqa: N818
    """Raised if there is no such server."""

    exit_code: ClassVar[int] = 3


class NoAnswer(ControlError):  # noqa: N818
    """Raised if the server exists but doesn't answer."""


class ConnectionEnded(ControlError):  # noqa: N818
    """Raised if the server has closed the connection before its answer was complete."""


class RequestFailed(ControlError):  # noqa: N818
    """Raised if the server has answered that the request failed.

    kind      the kind of failure: "refused", "rolled back", "usage" or "denied"
    message   the reason, in one line
    details   a traceback, or ""
    """

    def __init__(self, kind: str, message: str, details: str = "") -> None:
        super().__init__(message)
        self.kind = kind
        self.details = details


class ControlClient:
    """A connection to a server's control socket.

    path        the socket's path
    timeout_s   seconds to wait for the connection, and then for each line of an answer
    owner       the user whose process must be the server; None: any user

    Raises NoSuchInstance if no server listens there, ControlError if this user isn't allowed to
    connect or another user than `owner` listens, and NoAnswer if the server doesn't accept the
    connection in time.
    """

    def __init__(self, path: str, timeout_s: float = 5.0, owner: int | None = None) -> None:
        self.path = path
        self._timeout_s = timeout_s
        self._buffer = bytearray()
        self._send_error: OSError | None = None
        self._sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self._connect()
            listens = peer_of(self._sock)[0]
            if owner not in (None, listens):
                raise ControlError(
                    f"the socket {path} is a server's of user {owner}, but user {listens} listens "
                    "there"
                )
        except BaseException:
            self._sock.close()
            raise

    def __enter__(self) -> ControlClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def server_pid(self) -> int:
        """The server's pid as this process sees it; a server in a container sees another one."""
        return peer_of(self._sock)[1]

    def request(
        self,
        command: str,
        args: dict[str, Any] | None = None,
        on_note: Callable[[dict[str, Any]], None] | None = None,
        on_lost: Callable[[int], None] | None = None,
    ) -> dict[str, Any]:
        """Send a request and return its result.

        command   the command's name
        args      its arguments by name
        on_note   called with each note of the answer
        on_lost   called with the number of notes left out because this client read too slowly

        Raises RequestFailed, NoAnswer, ConnectionEnded and NoSuchInstance.
        """
        try:
            self._sock.sendall(protocol.request_line(command, args or {}))
        except TimeoutError as error:
            raise self._no_answer() from error
        except OSError as error:
            # The server may have sent a reason before it closed the connection; it is read below.
            self._send_error = error
        while True:
            answer = self._answer()
            if "note" in answer:
                if on_note is not None:
                    on_note(answer["note"])
            elif "lost" in answer:
                if on_lost is not None:
                    on_lost(int(answer["lost"]))
            elif answer["ok"]:
                result: dict[str, Any] = answer.get("result", {})
                return result
            else:
                raise RequestFailed(
                    str(answer.get("kind", "")),
                    str(answer.get("error", "it failed")),
                    str(answer.get("details", "")),
                )

    def interrupt(self) -> None:
        """End the connection from another thread; its `request` raises ConnectionEnded."""
        # shutdown(2) wakes a thread that waits in recv; close(2) does not.
        with suppress(OSError):  # the connection has ended already
            self._sock.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Close the connection."""
        self._sock.close()

    def _connect(self) -> None:
        end = time.monotonic() + self._timeout_s
        self._sock.settimeout(self._timeout_s)
        while not self._try_to_connect():
            # EAGAIN: the queue of connections that the server hasn't accepted is full (unix(7)).
            if time.monotonic() >= end:
                raise self._no_answer()
            time.sleep(_RETRY_S)

    def _try_to_connect(self) -> bool:
        try:
            self._sock.connect(self.path)
        except BlockingIOError:
            return False
        except TimeoutError as error:
            raise self._no_answer() from error
        except (FileNotFoundError, ConnectionRefusedError, NotADirectoryError) as error:
            refused = isinstance(error, ConnectionRefusedError)
            problem = "is left over from a dead server" if refused else "does not exist"
            raise NoSuchInstance(f"there is no server: the socket {self.path} {problem}") from error
        except PermissionError as error:
            raise ControlError(
                f"this user may not connect to {self.path}: {error.strerror}"
            ) from error
        except OSError as error:  # the path is too long, the file is no socket, …
            raise NoSuchInstance(f"there is no server at {self.path}: {error}") from error
        return True

    def _answer(self) -> dict[str, Any]:
        while True:
            line = self._line()
            if line.strip():
                try:
                    return protocol.parse_answer(line)
                except protocol.RequestError as error:
                    text = f"{self.path} is not a control socket of Servo: {error}"
                    raise NoSuchInstance(text) from error

    def _line(self) -> bytes:
        searched = 0
        while True:
            end = self._buffer.find(b"\n", searched)
            if end >= 0:
                line = bytes(self._buffer[:end])
                del self._buffer[: end + 1]
                return line
            searched = len(self._buffer)
            if searched > _MAX_LINE_BYTES:
                raise NoSuchInstance(
                    f"{self.path} is not a control socket of Servo: it sends an endless line"
                )
            try:
                data = self._sock.recv(_READ_BYTES)
            except TimeoutError as error:
                raise self._no_answer() from error
            except OSError as error:
                raise ConnectionEnded(f"the server has closed the connection: {error}") from error
            if not data:
                why = f": {self._send_error}" if self._send_error else ""
                raise ConnectionEnded(f"the server has closed the connection{why}")
            self._buffer += data

    def _no_answer(self) -> NoAnswer:
        return NoAnswer(
            f"the server at {self.path} does not answer within {self._timeout_s:g} s: "
            "it may be stopped (SIGSTOP), or its machine overloaded"
        )
