"""A two-way channel between the arbiter and one worker: framed messages over a socket pair.

A frame is a length (four bytes, big-endian) and that many bytes of one encoded message. Both ends
are non-blocking: `send` queues what the socket does not take, and the owner calls `flush` when the
socket is writable again. A peer that sends something else than frames of ours is cut off, because
nothing after it can be understood. A channel belongs to one thread; any may send on a shared one.
"""

from __future__ import annotations

import select
import socket
import struct
import threading

from servo.errors import ServoError
from servo.ipc.messages import Message, MessageError, decode, encode

# The longest message. A traceback of a failed import, the longest there is, stays far below.
MAX_FRAME_BYTES = 1 << 20
# What may wait for a peer that does not read: more means that it hangs, and memory is not for that.
MAX_QUEUED_BYTES = 4 << 20
# The part of it that applications may fill with messages: an order to stop always finds room.
MAX_QUEUED_APP_BYTES = 2 << 20
# One `receive` reads at most this often, so that a talkative peer can't hold its reader's loop. It
# is more than a socket buffer holds: after a peer's death one call gets all it left behind.
_READS_PER_CALL = 16
_READ_BYTES = 1 << 16

_LENGTH = struct.Struct("!I")


class ChannelError(ServoError):
    """A channel can't carry a message."""


class ChannelClosed(ChannelError):  # noqa: N818
    """The other end is closed, or was cut off since it broke the framing."""


class ChannelOverflow(ChannelError):  # noqa: N818
    """A message is too long, or the other end has not read for too long; nothing was queued."""


def channel_pair() -> tuple[Channel, Channel]:
    """Two connected ends, both non-blocking and closed on exec."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    return Channel(ours), Channel(theirs)


class Channel:
    """One end. Takes over a connected stream socket."""

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
        """The socket's descriptor, for a selector; -1 once closed."""
        return self._socket.fileno()

    @property
    def wants_write(self) -> bool:
        """Whether something is queued, so that `flush` is due when the socket is writable."""
        return bool(self._outgoing)

    def send(self, message: Message) -> None:
        """Send a message, or queue what the socket does not take now.

        Raises ChannelOverflow when the message is too long or the queue full (nothing is queued
        then), and ChannelClosed when the other end is gone.
        """
        payload = encode(message)
        if len(payload) > MAX_FRAME_BYTES:
            raise ChannelOverflow(
                f"a {type(message).__name__} message of {len(payload)} bytes is over the "
                f"{MAX_FRAME_BYTES} that a channel carries"
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
        """Queue an encoded message of an application's, to go out with the next `flush`.

        Many messages leave by one system call so. False, with nothing queued, when as much as
        applications may queue waits already. `data` is no longer than MAX_FRAME_BYTES.
        """
        if len(self._outgoing) + _LENGTH.size + len(data) > MAX_QUEUED_APP_BYTES:
            return False
        self._outgoing += _LENGTH.pack(len(data))
        self._outgoing += data
        return True

    def flush(self) -> bool:
        """Write what is queued, as far as the socket takes it. True when nothing is left.

        Raises ChannelClosed when the other end is gone; the queue is dropped then.
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
        """Block until the socket takes more (True) or the time is over. For a process that ends."""
        poller = select.poll()
        poller.register(self._socket, select.POLLOUT)
        return bool(poller.poll(timeout_s * 1000))

    def receive(self, reads: int = _READS_PER_CALL) -> list[Message]:
        """Every complete message that can be read now, in the order they were sent.

        reads   the system calls, of 64 KiB each, that it may take at most

        Raises ChannelClosed at the end of the stream; what came before it is returned first, by
        calls of their own, and the socket stays readable until the end has been raised.
        """
        if self._closed is None:
            self._read(reads)
        messages = self._take_messages()
        if not messages and self._closed is not None:
            raise ChannelClosed(self._closed)
        return messages

    def close(self) -> None:
        """Close this end. What is still queued is lost; doing it twice is allowed."""
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
                # ECONNRESET: the peer closed its end without reading all that we had sent it.
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
        # Shut down for reading, the socket reads as ended, so a selector wakes its owner once more
        # to get the error even if nothing else ever arrives.
        try:
            self._socket.shutdown(socket.SHUT_RD)
        except OSError as error:
            self._closed += f" ({error})"


class SharedChannel(Channel):
    """A channel on which any thread may send, while one thread, or whoever has a lock, receives.

    Takes over a channel that nothing was sent on or received from yet. What a full socket has not
    taken is flushed by the thread that watches it; the others look at `wants_write` and wake it.
    """

    __slots__ = ("_busy", "_lock")

    def __init__(self, channel: Channel) -> None:
        super().__init__(channel._socket)
        self._lock = threading.RLock()
        self._busy = False  # the thread that has the lock is amid the queue

    def send(self, message: Message) -> None:
        """See Channel.send."""
        with self._lock:
            before, self._busy = self._busy, True
            try:
                super().send(message)
            finally:
                self._busy = before

    def send_if_free(self, message: Message) -> bool:
        """Send a message, or do nothing and return False: another thread sends, a signal's handler
        has interrupted this one amid that, or the other end is behind with reading.

        Raises ChannelClosed.
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
