"""The output buffer: the part of a response that the client has not taken yet.

With a buffer, the application can finish while the client is still reading, so a slow client holds
no thread. The first part of the unsent bytes is kept in memory, the rest in nameless files.

A buffer is a queue. The producer is the thread that runs the application: it appends bytes. The
consumer is the poller: it sends as much as the socket takes. In a `sync` worker one thread is both
in turns.

No lock is needed, because each number in a buffer has only one writer. The size of the buffer is
the producer's count of bytes minus the consumer's. Each side updates its count as its last step.
There is one rule: the producer may send on the socket only while the buffer is empty, because then
the consumer does not use the socket.
"""

from __future__ import annotations

import errno
import logging
import os
import threading
from collections import deque
from time import monotonic_ns
from typing import TYPE_CHECKING, Final, Protocol

from servo.apps.wsgi_file import FileRegion
from servo.http.errors import ClientDisconnected

if TYPE_CHECKING:
    Bytes = bytes | memoryview

    class OutputSocket(Protocol):
        """The socket of a connection. Both methods raise BlockingIOError if it takes no bytes."""

        def send(self, data: Bytes, /) -> int:
            """Send some of the data. Returns how many bytes."""

        def send_file(self, fd: int, offset: int, count: int, /) -> int:
            """Send some of a file. Returns how many bytes; 0 at the end of the file.

            fd      the file's descriptor
            offset  in bytes
            count   how many bytes to send at most
            """


log = logging.getLogger("servo.error")

# All buffers of a worker together may use as much memory as this many full buffers.
_MAX_FULL_BUFFERS: Final = 64
# Bytes that are counted for each block in addition to its data. Each block is a Python object, so
# without this, many blocks of one byte could use a multiple of the limit.
_BLOCK_OVERHEAD: Final = 64
# Small blocks are joined up to this number of bytes, so that they share one `send`.
_MAX_JOINED: Final = 65536
# How many bytes one file may hold. The space of a file is released only when all of it is sent. If
# a client is always a little behind, a single file would grow for as long as the response lasts.
_MAX_SEGMENT: Final = 16 << 20
# The poller sends this number of bytes from one buffer, and then serves other connections.
_MAX_TURN: Final = 4 << 20
# If the memory is full but the client keeps reading, the producer waits before it uses the disk:
# WAIT_S at a time, and _WAIT_BUDGET_NS in all for one response. Writing a file and reading it back
# would cost more.
WAIT_S: Final = 0.02
_WAIT_BUDGET_NS: Final = 250_000_000


class OutputSpace:
    """The memory and disk space that the buffers of one worker share. Any thread may call it.

    buffer_size  how many bytes one buffer may have in memory
    spool_limit  how many bytes all buffers may have on disk. A single buffer may use at most half
                 of the space that the others leave
    directory    where the files are; None for the system's temporary directory
    """

    def __init__(self, buffer_size: int, spool_limit: int, directory: str | None) -> None:
        self.buffer_size = buffer_size
        self.directory = directory
        self._lock = threading.Lock()
        self._memory = buffer_size * _MAX_FULL_BUFFERS
        self._disk = spool_limit

    def take_memory(self, size: int) -> bool:
        """Reserve this number of bytes of memory. Returns False if they are not free."""
        with self._lock:
            if size > self._memory:
                return False
            self._memory -= size
            return True

    def take_disk(self, own: int, size: int) -> int:
        """Reserve up to `size` bytes on disk. Returns how many.

        own   bytes on disk that the buffer already has
        size  bytes that it asks for
        """
        with self._lock:
            granted = max(min(size, (self._disk - own) // 2), 0)
            self._disk -= granted
            return granted

    def give_back(self, memory: int, disk: int) -> None:
        """Release these numbers of bytes."""
        with self._lock:
            self._memory += memory
            self._disk += disk


class _Segment:
    """A file without a name that holds a part of a response.

    start, end  the unsent bytes are between them. The producer moves `end`, the consumer `start`
    """

    __slots__ = ("end", "file", "start")

    def __init__(self, directory: str | None) -> None:
        from tempfile import TemporaryFile  # imported here, because few responses need a file

        self.file = TemporaryFile(buffering=0, dir=directory)  # noqa: SIM115  closed when sent
        self.start = 0
        self.end = 0

    def write(self, data: memoryview) -> None:
        """Append the data. If that fails, nothing is appended. Raises OSError."""
        fd = self.file.fileno()
        done = 0
        while done < len(data):
            # Move `end` only after all bytes are written. If a write fails, the next one overwrites
            # its bytes.
            done += os.pwrite(fd, data[done:], self.end + done)
        self.end += done


class OutputBuffer:
    """The unsent part of one response.

    space           the memory and disk space that all buffers of the worker share

    watched         whether the poller has been told that there are bytes to send
    wait_budget_ns  how many more nanoseconds the producer may wait for the client to avoid using
                    the disk
    """

    __slots__ = (
        "_appended",
        "_current",
        "_current_cost",
        "_disk",
        "_disk_freed",
        "_disk_works",
        "_items",
        "_memory",
        "_memory_freed",
        "_nonempty_since_ns",
        "_progress_ns",
        "_sent",
        "_sent_before_wait",
        "_sent_event",
        "_space",
        "_tail",
        "wait_budget_ns",
        "watched",
    )

    def __init__(self, space: OutputSpace) -> None:
        self._space = space
        self._items: deque[Bytes | _Segment | FileRegion] = deque()
        # Only the producer writes these fields.
        self._appended = self._memory = self._disk = 0
        self._nonempty_since_ns = self._sent_before_wait = 0
        self._tail: _Segment | None = None  # the last item of the queue, if that is a file
        self._disk_works = True
        self.wait_budget_ns = _WAIT_BUDGET_NS
        self._sent_event: threading.Event | None = None
        # Only the consumer writes these fields.
        self._current: Bytes = b""
        self._current_cost = 0
        self._sent = self._memory_freed = self._disk_freed = 0
        self._progress_ns = 0
        # The producer sets this, and the consumer clears it.
        self.watched = False

    def size(self) -> int:
        """The number of unsent bytes."""
        return self._appended - self._sent

    # --- the producer ---------------------------------------------------------------------------

    def append(self, data: Bytes, spool: bool) -> memoryview:
        """Append as much of the data as there is room for. Returns the remaining data.

        spool  whether the disk may be used
        """
        self._begin()
        view = memoryview(data)
        if self._tail is None:
            view = view[self._append_to_memory(view) :]
        while spool and view:
            kept = self._append_to_disk(view[:_MAX_SEGMENT])
            if not kept:
                break
            view = view[kept:]
        return view

    def append_last(self, data: Bytes) -> bool:
        """Append all of the data, without a copy. Returns False if there is no room for it.

        Only the limit of the whole worker applies, not that of one buffer: the application already
        holds the data in memory.
        """
        self._begin()
        if not self._space.take_memory(len(data) + _BLOCK_OVERHEAD):
            return False
        self._memory += len(data) + _BLOCK_OVERHEAD
        self._items.append(data)
        self._appended += len(data)
        return True

    def append_file(self, region: FileRegion) -> None:
        """Append a part of a file as the end of the response. The file is closed when it is sent.

        region  the part
        """
        self._begin()
        self._items.append(region)
        self._appended += region.count

    def wait(self, seconds: float) -> bool:
        """Wait until the consumer has sent bytes. Returns False if it sent none in time.

        Bytes that it has sent since the last call count, too.

        seconds  how long to wait; 0 for no limit

        Only for a producer that has its own thread.
        """
        changed = self._sent_event
        if changed is None:
            changed = self._sent_event = threading.Event()
        changed.clear()
        # Compare after `clear`: any bytes sent from here on set the event.
        happened = self._sent != self._sent_before_wait or changed.wait(seconds or None)
        self._sent_before_wait = self._sent
        return happened

    def _begin(self) -> None:
        if self._appended == self._sent:
            self._nonempty_since_ns = monotonic_ns()
            if self._tail is not None:
                # All of the last file is sent. The producer closes it, because only the producer
                # knows that it will append nothing more to the file.
                self._tail.file.close()
                self._tail = None
                self._items.clear()
                self._give_back(0, self._disk - self._disk_freed)

    def _append_to_memory(self, view: memoryview) -> int:
        free = self._space.buffer_size - (self._memory - self._memory_freed)
        kept = min(len(view), free - _BLOCK_OVERHEAD)
        if kept <= 0 or not self._space.take_memory(kept + _BLOCK_OVERHEAD):
            return 0
        self._memory += kept + _BLOCK_OVERHEAD
        # Copy the bytes: a view would keep the whole large block in memory.
        self._items.append(bytes(view[:kept]))
        self._appended += kept
        return kept

    def _append_to_disk(self, view: memoryview) -> int:
        if not self._disk_works:
            return 0
        granted = self._space.take_disk(self._disk - self._disk_freed, len(view))
        if not granted:
            return 0
        tail = self._tail
        try:
            if tail is None or tail.end >= _MAX_SEGMENT:
                tail = _Segment(self._space.directory)
            tail.write(view[:granted])
        except OSError as error:
            # Don't use the disk again for this response: the next block would fail, too.
            self._disk_works = False
            self._space.give_back(0, granted)
            if tail is not None and tail is not self._tail:
                tail.file.close()
            log.warning("Can't spool a response: %s; the app has to wait for its client", error)
            return 0
        self._disk += granted
        if tail is not self._tail:
            self._tail = tail
            self._items.append(tail)
        self._appended += granted
        return granted

    # --- the consumer ---------------------------------------------------------------------------

    def send(self, sock: OutputSocket) -> bool:
        """Send as much as the socket takes, up to `_MAX_TURN`. Returns whether it took any bytes.

        Raises OSError.
        """
        left = _MAX_TURN
        try:
            while left > 0 and self._appended != self._sent:
                left -= self._send_first(sock)
        except BlockingIOError:
            pass
        if left == _MAX_TURN:
            return False
        self._progress_ns = monotonic_ns()
        self.wake()
        return True

    def is_stalled(self, now_ns: int, limit_ns: int) -> bool:
        """Whether the client has taken nothing for longer than the limit.

        now_ns    monotonic nanoseconds
        limit_ns  nanoseconds; 0 for no limit
        """
        if not limit_ns or self._appended == self._sent:
            return False
        return now_ns - max(self._nonempty_since_ns, self._progress_ns) > limit_ns

    def wake(self) -> None:
        """End the producer's `wait`."""
        changed = self._sent_event
        if changed is not None:
            changed.set()

    def close(self) -> None:
        """Drop the remaining bytes. The buffer must not be used afterwards."""
        for item in self._items:
            _close(item)
        self._items.clear()
        self._give_back(self._memory - self._memory_freed, self._disk - self._disk_freed)
        self._sent = self._appended

    def _send_first(self, sock: OutputSocket) -> int:
        items = self._items
        if not self._current:
            first = items[0]
            if isinstance(first, FileRegion | _Segment):
                return self._send_file(first, sock)
            self._next_blocks()
        sent = sock.send(self._current)
        if sent == len(self._current):
            self._current = b""
            self._give_back(self._current_cost, 0)
        else:
            self._current = memoryview(self._current)[sent:]
        self._sent += sent
        return sent

    def _next_blocks(self) -> None:
        """Take the next blocks out of the queue, and join small ones."""
        blocks: list[Bytes] = []
        size = cost = 0
        items = self._items
        while items and size < _MAX_JOINED:
            block = items[0]
            if isinstance(block, FileRegion | _Segment):
                break
            del items[0]
            blocks.append(block)
            size += len(block)
            cost += len(block) + _BLOCK_OVERHEAD
        self._current = blocks[0] if len(blocks) == 1 else b"".join(blocks)
        self._current_cost = cost

    def _send_file(self, item: FileRegion | _Segment, sock: OutputSocket) -> int:
        if isinstance(item, FileRegion):
            sent = sock.send_file(item.fd, item.offset, item.count)
            if not sent:
                raise ClientDisconnected("the file became shorter while it was sent")
            item.offset += sent
            item.count -= sent
            if not item.count:
                del self._items[0]
                item.close()
        elif item.start == item.end:
            # More bytes are queued after this file, so the producer won't append to it.
            del self._items[0]
            item.file.close()
            self._give_back(0, item.end)
            return 0
        else:
            sent = self._send_segment(item, sock)
            item.start += sent
        self._sent += sent
        return sent

    def _send_segment(self, segment: _Segment, sock: OutputSocket) -> int:
        try:
            sent = sock.send_file(segment.file.fileno(), segment.start, segment.end - segment.start)
        except OSError as error:
            if error.errno == errno.EIO:
                log.error("Can't read a spooled response back: %s", error)
            raise
        if not sent:
            raise OSError(errno.EIO, "a spooled response is shorter than it was")
        return sent

    def _give_back(self, memory: int, disk: int) -> None:
        self._memory_freed += memory
        self._disk_freed += disk
        self._space.give_back(memory, disk)


def _close(item: Bytes | _Segment | FileRegion) -> None:
    if isinstance(item, FileRegion):
        item.close()
    elif isinstance(item, _Segment):
        item.file.close()
