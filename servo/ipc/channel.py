"""A two-way channel between the arbiter and one worker: framed messages over a socket pair.

A stream socket carries bytes without boundaries, so each message is sent as a frame: a length (four
bytes, big-endian) and then that many bytes. Both ends are non-blocking. `send` queues bytes for
which the socket has no room, and the owner calls `flush` when the socket is writable again. If a
peer sends something else than frames, nothing after it can be understood, and it is cut off.

A Channel belongs to one thread. On a SharedChannel any thread may send.
"""

from __future__ import annotations

import select
import socket
import struct
import threading

from servo.errors import ServoError
from servo.ipc.messages import Message, MessageError, decode, encode

# The longest message. Servo's own stay far below, even the traceback of a failed import.
MAX_FRAME_BYTES = 1 << 20
# How much may wait for a peer that does not read. If more waits, the peer hangs.
MAX_QUEUED_BYTES = 4 << 20
# How much of that may be messages of applications. The rest is kept for Servo's own, such as Stop.
MAX_QUEUED_APP_BYTES = 2 << 20
# The limit of reads in one `receive`, so that a busy peer can't keep the reader's loop from its
# other work. This is more than a socket buffer holds: after the peer's death, one call reads all
# that it left behind.
_READS_PER_CALL = 16
_READ_BYTES = 1 << 16

_LENGTH = struct.Struct("!I")


class ChannelError(ServoError):
    """A channel can't carry a message."""


class ChannelClosed(ChannelError):  # noqa: N818
    """The other end is closed, or was cut off because it broke the framing."""


class ChannelOverflow(ChannelError):  # noqa: N818
    """A message is too long, or too much waits for the other end already. Nothing was queued."""


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

    def __repr__(self) -> str:
        return f"<Channel fd={self.fileno()} queued={len(self._outgoing)}>"

    def fileno(self) -> int:
        """The socket's descriptor, for a selector; -1 if it is closed."""
        return self._socket.fileno()

    @property
    def wants_write(self) -> bool:
        """Whether bytes are queued. Then call `flush` when the socket is writable."""
        return bool(self._outgoing)

    def send(self, message: Message) -> None:
        """Send a message, or queue the part of it for which the socket has no room.

        Raises ChannelOverflow if the message is too long or the queue is full; then nothing is
        queued. Raises ChannelClosed if the other end is gone.
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
        """Queue an application's message, which the next `flush` sends.

        data  the encoded message, of up to MAX_FRAME_BYTES

        So one system call sends many messages. Returns False, and queues nothing, if the queue has
        no room for messages of applications.
        """
        if len(self._outgoing) + _LENGTH.size + len(data) > MAX_QUEUED_APP_BYTES:
            return False
        self._outgoing += _LENGTH.pack(len(data))
        self._outgoing += data
        return True

    def flush(self) -> bool:
        """Send queued bytes until the socket is full. Returns True if nothing is left.

        Raises ChannelClosed if the other end is gone; then the queue is dropped.
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
        """Read, and return the complete messages in the order in which they were sent.

        reads  the limit of system calls, which read up to 64 KiB each

        Raises ChannelClosed at the end of the stream, but only when all messages before it have
        been returned by earlier calls. Until then a selector reports the socket as readable.
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
                # ECONNRESET: the peer closed its end before it had read everything from us.
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
        # After this a selector reports the socket as readable. So its owner calls `receive` once
        # more and gets the error, even if no more bytes arrive.
        try:
            self._socket.shutdown(socket.SHUT_RD)
        except OSError as error:
            self._closed += f" ({error})"


class SharedChannel(Channel):
    """A channel on which any thread may send. To receive, callers use one thread or a lock.

    channel  an unused channel, whose socket this one takes over

    If the socket is full, the thread that watches it flushes the rest. Other threads look at
    `wants_write` after a `send`, and wake that thread.
    """

    __slots__ = ("_busy", "_lock")

    def __init__(self, channel: Channel) -> None:
        super().__init__(channel._socket)
        self._lock = threading.RLock()
        # The thread that holds the lock is changing the queue. The lock alone doesn't tell a signal
        # handler, which runs in the same thread and can take an RLock again.
        self._busy = False

    def send(self, message: Message) -> None:
        """See Channel.send."""
        with self._lock:
            before, self._busy = self._busy, True
            try:
                super().send(message)
            finally:
                self._busy = before

    def send_if_free(self, message: Message) -> bool:
        """Send a message, unless that would wait or break another message. Returns whether it did.

        It does nothing if another thread is sending, if the caller is a signal handler that has
        interrupted this thread while it was sending, or if the other end is slow to read. Raises
        ChannelClosed.
        """
        if not self._lock.acquire(blocking=False):
            return False
        try:
            if self._busy or (self._outgoing and not self.flush()):
                return False
            self.send(message)
            return True
        finally:
            self._lock.release()

    def queue(self, data: bytes) -> bool:
        """See Channel.queue."""
        with self._lock:
            before, self._busy = self._busy, True
            try:
                return super().queue(data)
            finally:
                self._busy = before

    def flush(self) -> bool:
        """See Channel.flush."""
        with self._lock:
            before, self._busy = self._busy, True
            try:
                return super().flush()
            finally:
                self._busy = before
