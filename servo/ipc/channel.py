"""A two-way channel between the arbiter and one worker: framed messages over a socket pair.

A stream socket has no message boundaries, so each message is sent as a frame: a length (four bytes,
big-endian) and then that many bytes. Both ends are non-blocking. If the socket is full, `send`
queues the bytes, and the owner calls `flush` when the socket is writable again. If the other end
breaks the framing, later bytes can't be interpreted, so the channel is closed.

A Channel belongs to one thread. On a SharedChannel any thread may send.
"""

from __future__ import annotations

import select
import socket
import struct
import threading
from base64 import b64decode, b64encode
from typing import TYPE_CHECKING, Any

from servo.errors import ServoError
from servo.ipc.messages import Message, MessageError, decode, encode

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

# The longest message. Servo's own messages are far shorter, even the traceback of a failed import.
MAX_FRAME_BYTES = 1 << 20
# How many bytes may wait until the other process reads. If there are more, that process must be
# hanging.
MAX_QUEUED_BYTES = 4 << 20
# How many of MAX_QUEUED_BYTES application messages may use. The other bytes are reserved for
# Servo's own messages, such as Stop.
MAX_QUEUED_APP_BYTES = 2 << 20
# How many reads one `receive` makes. They return more bytes than a socket buffer holds, so after
# the death of the other process, one call reads all of its bytes. More reads would keep the
# reader's loop from other work.
_READS_PER_CALL = 16
_READ_BYTES = 1 << 16

_LENGTH = struct.Struct("!I")


class ChannelError(ServoError):
    """Raised if a channel can't send or receive a message."""


class ChannelClosed(ChannelError):  # noqa: N818
    """Raised if the other end is closed, or has broken the framing."""


class ChannelOverflow(ChannelError):  # noqa: N818
    """Raised if a message is too long or the queue is full. The message was not queued."""


def frame_of(message: Message) -> bytes:
    """The bytes that send a message through a channel."""
    payload = encode(message)
    return _LENGTH.pack(len(payload)) + payload


def channel_pair() -> tuple[Channel, Channel]:
    """Make two connected ends, both non-blocking and closed on exec."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    return Channel(ours), Channel(theirs)


class Channel:
    """One end of a channel.

    sock  a connected stream socket, which the channel takes over
    """

    __slots__ = ("_closed", "_incoming", "_outgoing", "_socket")

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self._socket = sock
        self._incoming = bytearray()
        self._outgoing = bytearray()
        self._closed: str | None = None

    def to_state(self, pass_on: Callable[[int], int]) -> dict[str, Any]:
        """Return this end as JSON values, for `from_state` after an upgrade.

        pass_on  keeps a descriptor open for the next program, and returns it
        """
        return {
            "fd": pass_on(self.fileno()),
            "incoming": b64encode(self._incoming).decode(),
            "outgoing": b64encode(self._outgoing).decode(),
            "closed": self._closed,
        }

    @classmethod
    def from_state(cls, state: Mapping[str, Any], take: Callable[[int], int]) -> Channel:
        """Take over the end of this process's previous program, after an upgrade.

        state  the result of that program's `to_state`
        take   claims a descriptor from the previous program, and returns it

        Raises KeyError, TypeError, ValueError or OSError for an invalid state.
        """
        channel = cls(socket.socket(fileno=take(int(state["fd"]))))
        channel._incoming += b64decode(state["incoming"])
        channel._outgoing += b64decode(state["outgoing"])
        channel._closed = state["closed"]
        return channel

    def __repr__(self) -> str:
        return f"<Channel fd={self.fileno()} queued={len(self._outgoing)}>"

    def fileno(self) -> int:
        """The socket's descriptor, for a selector; -1 if it is closed."""
        return self._socket.fileno()

    @property
    def unsent(self) -> bytes:
        """The queued bytes, which may begin in the middle of a frame."""
        return bytes(self._outgoing)

    @property
    def wants_write(self) -> bool:
        """Whether bytes are queued. If so, call `flush` when the socket is writable."""
        return bool(self._outgoing)

    def send(self, message: Message) -> None:
        """Send a message. Queues the part of it that the socket doesn't take.

        Raises ChannelOverflow, without queueing, if the message is too long or the queue is full.
        Raises ChannelClosed if the other end is gone.
        """
        payload = encode(message)
        if len(payload) > MAX_FRAME_BYTES:
            raise ChannelOverflow(
                f"a {type(message).__name__} message of {len(payload)} bytes is longer than the "
                f"limit of {MAX_FRAME_BYTES}"
            )
        if self._outgoing:
            self.flush()
        if len(self._outgoing) + _LENGTH.size + len(payload) > MAX_QUEUED_BYTES:
            raise ChannelOverflow(
                f"the other end does not read: {len(self._outgoing)} bytes wait for it already"
            )
        self._outgoing += _LENGTH.pack(len(payload)) + payload
        self.flush()

    def queue(self, data: bytes) -> bool:
        """Queue an application's message. The next `flush` sends it.

        data  the encoded message, at most MAX_FRAME_BYTES

        One system call then sends many messages. Returns False, without queueing, if the queue has
        no room for messages of applications.
        """
        if len(self._outgoing) + _LENGTH.size + len(data) > MAX_QUEUED_APP_BYTES:
            return False
        self._outgoing += _LENGTH.pack(len(data))
        self._outgoing += data
        return True

    def flush(self) -> bool:
        """Send queued bytes until the socket is full. Returns True if the queue is empty.

        Raises ChannelClosed, and drops the queue, if the other end is gone.
        """
        while self._outgoing:
            try:
                sent = self._socket.send(self._outgoing)
            except BlockingIOError:
                return False
            except OSError as error:
                self._outgoing.clear()
                raise ChannelClosed(f"the other end of the channel is gone: {error}") from error
            del self._outgoing[:sent]
        return True

    def wait_writable(self, timeout_s: float) -> bool:
        """Block until the socket has room, or for `timeout_s` seconds. Returns whether it has room.

        Only for a process that is about to end.
        """
        poller = select.poll()
        poller.register(self._socket, select.POLLOUT)
        return bool(poller.poll(timeout_s * 1000))

    def receive(self, reads: int = _READS_PER_CALL) -> list[Message]:
        """Read, and return the complete messages, in the order of sending.

        reads  how many system calls to make at most, each for up to 64 KiB

        At the end of the stream, raises ChannelClosed in the call after the one that returned the
        last messages. A selector reports the socket as readable until that call.
        """
        if self._closed is None:
            self._read(reads)
        messages = self._take_messages()
        if not messages and self._closed is not None:
            raise ChannelClosed(self._closed)
        return messages

    def close(self) -> None:
        """Close this end. Queued bytes are lost. A second call does nothing."""
        self._closed = self._closed or "this end of the channel is closed"
        self._incoming.clear()
        self._outgoing.clear()
        self._socket.close()

    def _read(self, reads: int) -> None:
        for _ in range(reads):
            try:
                data = self._socket.recv(_READ_BYTES)
            except BlockingIOError:
                return
            except OSError as error:
                # ECONNRESET: the peer closed its end without reading all of our bytes.
                self._closed = f"the other end of the channel is gone: {error}"
                return
            if not data:
                self._closed = "the other end of the channel is closed"
                return
            self._incoming += data
            if len(data) < _READ_BYTES:
                return

    def _take_messages(self) -> list[Message]:
        messages: list[Message] = []
        buffer = self._incoming
        start = 0
        while len(buffer) - start >= _LENGTH.size:
            (length,) = _LENGTH.unpack_from(buffer, start)
            if length > MAX_FRAME_BYTES:
                self._cut_off(f"it announced a message of {length} bytes")
                return messages
            end = start + _LENGTH.size + length
            if len(buffer) < end:
                break
            try:
                messages.append(decode(bytes(buffer[start + _LENGTH.size : end])))
            except MessageError as error:
                self._cut_off(str(error))
                return messages
            start = end
        del buffer[:start]
        if buffer and self._closed and not messages:
            self._closed += ", in the middle of a message"
            buffer.clear()
        return messages

    def _cut_off(self, reason: str) -> None:
        self._closed = f"the other end of the channel broke its framing and was cut off: {reason}"
        self._incoming.clear()
        # After this shutdown, a selector reports the socket as readable. So the owner calls
        # `receive` again, and gets the error, even if no more bytes arrive.
        try:
            self._socket.shutdown(socket.SHUT_RD)
        except OSError as error:
            self._closed += f" ({error})"


class SharedChannel(Channel):
    """A channel on which any thread may send. To receive, callers use one thread or a lock.

    channel  an unused channel, whose socket this one takes over

    If the socket is full, the thread that watches the socket flushes the rest. After a `send`,
    other threads must check `wants_write`, and wake that thread if needed.
    """

    __slots__ = ("_lock",)

    def __init__(self, channel: Channel) -> None:
        super().__init__(channel._socket)
        # Reentrant: the handler of a signal may send while its own thread is sending.
        self._lock = threading.RLock()

    def send(self, message: Message) -> None:
        """See Channel.send."""
        with self._lock:
            super().send(message)

    def queue(self, data: bytes) -> bool:
        """See Channel.queue."""
        with self._lock:
            return super().queue(data)

    def flush(self) -> bool:
        """See Channel.flush."""
        with self._lock:
            return super().flush()
