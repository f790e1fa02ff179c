"""What a client has not taken yet of its response: in memory, and past a size on disk.

The application goes on producing while its client reads slowly, so that the client holds no thread.
A buffer is a queue between two sides. The producer is the thread that runs the application; it
appends. The consumer is the poller; it sends what the socket takes. In a `sync` worker one thread
is both by turns. No lock is held while either works, because every number in here has one writer:
`size` is the producer's count less the consumer's, and each side counts last, when all else of a
step is done. From that follows the rule about the socket: the producer may use it only while the
buffer is empty, for then the consumer has nothing to send until the producer gives it something.
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

    class Wire(Protocol):
        """The socket of a connection. Both raise BlockingIOError while it takes nothing."""

        def send(self, data: Bytes, /) -> int:
            """Send some of the data; how many bytes."""

        def send_file(self, fd: int, offset: int, count: int, /) -> int:
            """Send some of a file; how many bytes, 0 at the end of the file."""


log = logging.getLogger("servo.error")

# A worker's buffers together may hold this many times what one may.
_MAX_FULL_BUFFERS: Final = 64
# What a block costs beside its bytes: without it, blocks of one byte would multiply the limit.
_BLOCK_OVERHEAD: Final = 64
# Small blocks are sent together, up to this size.
_MAX_JOINED: Final = 65536
# A file's space is given back when all of it is sent. So a client that always lags a little needs
# a few of them, and not one that grows for as long as it is connected.
_MAX_SEGMENT: Final = 16 << 20
# The poller sends this much of one buffer before others have their turn.
_MAX_TURN: Final = 4 << 20
# Memory is full: a client that reads on is waited for this long at a time, and this long in all for
# one response. Writing to a file and reading it back would cost more than such a wait.
WAIT_S: Final = 0.02
_WAIT_BUDGET_NS: Final = 250_000_000


class OutputSpace:
    """What the buffers of one worker may use together. Any thread may call it.

    buffer_size  bytes in memory of one buffer
    spool_limit  bytes on disk of all buffers; a buffer may use as much as it leaves to the others
    directory    where the files are; None for the system's
    """

    def __init__(self, buffer_size: int, spool_limit: int, directory: str | None) -> None:
        self.buffer_size = buffer_size
        self.directory = directory
        self._lock = threading.Lock()
        self._memory = buffer_size * _MAX_FULL_BUFFERS
        self._disk = spool_limit

    def take_memory(self, size: int) -> bool:
        """Use so many bytes of memory, if they are free."""
        with self._lock:
            if size > self._memory:
                return False
            self._memory -= size
            return True

    def take_disk(self, own: int, size: int) -> int:
        """Use up to so many bytes of disk beside the `own` ones; returns how many."""
        with self._lock:
            granted = max(min(size, (self._disk - own) // 2), 0)
            self._disk -= granted
            return granted

    def give_back(self, memory: int, disk: int) -> None:
        """These bytes are free again."""
        with self._lock:
            self._memory += memory
            self._disk += disk


class _Segment:
    """A file without a name that holds a part of a response: bytes `start` to `end` are to be
    sent. The producer moves `end`, the consumer `start`."""

    __slots__ = ("end", "file", "start")

    def __init__(self, directory: str | None) -> None:
        from tempfile import TemporaryFile  # not needed otherwise

        self.file = TemporaryFile(buffering=0, dir=directory)  # noqa: SIM115  closed when sent
        self.start = 0
        self.end = 0

    def write(self, data: memoryview) -> None:
        """Append all of the data, or nothing. Raises OSError."""
        fd = self.file.fileno()
        done = 0
        while done < len(data):
            # What a write that failed has left behind is overwritten by the next.
            done += os.pwrite(fd, data[done:], self.end + done)
        self.end += done


class OutputBuffer:
    """The unsent part of one response.

    watched      whether the poller was told that there is something to send
    wait_budget_ns  how long the producer may still wait for memory
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
        # The producer's.
        self._appended = self._memory = self._disk = 0
        self._nonempty_since_ns = self._sent_before_wait = 0
        self._tail: _Segment | None = None  # in the queue, behind everything else
        self._disk_works = True
        self.wait_budget_ns = _WAIT_BUDGET_NS
        self._sent_event: threading.Event | None = None
        # The consumer's.
        self._current: Bytes = b""
        self._current_cost = 0
        self._sent = self._memory_freed = self._disk_freed = 0
        self._progress_ns = 0
        # Set by the producer, cleared by the consumer.
        self.watched = False

    def size(self) -> int:
        """How many bytes are to be sent."""
        return self._appended - self._sent

    # --- the producer ---------------------------------------------------------------------------

    def append(self, data: Bytes, spool: bool) -> memoryview:
        """Keep as much of the data as there is room for; returns the rest.

        spool  whether it may go to disk
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
        """Keep all of the data, which the application holds already: it may fill the memory of the
        worker. Whether there was room."""
        self._begin()
        if not self._space.take_memory(len(data) + _BLOCK_OVERHEAD):
            return False
        self._memory += len(data) + _BLOCK_OVERHEAD
        self._items.append(data)
        self._appended += len(data)
        return True

    def append_file(self, region: FileRegion) -> None:
        """Send this part of a file as the end of the response, and close it then."""
        self._begin()
        self._items.append(region)
        self._appended += region.count

    def wait(self, seconds: float) -> bool:
        """Until the consumer has sent something since the last call; whether it has.

        For a producer with a thread of its own. 0 seconds: no limit.
        """
        changed = self._sent_event
        if changed is None:
            changed = self._sent_event = threading.Event()
        changed.clear()
        # Looked at after `clear`: what is sent from here on sets the event.
        happened = self._sent != self._sent_before_wait or changed.wait(seconds or None)
        self._sent_before_wait = self._sent
        return happened

    def _begin(self) -> None:
        if self._appended == self._sent:
            self._nonempty_since_ns = monotonic_ns()
            if self._tail is not None:
                # It was sent to its end, and might have been appended to until now.
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
        # A copy: a view would keep all of a large block.
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
            # Once is enough: what is wrong with the disk will be so for the next block, too.
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

    def send(self, wire: Wire) -> bool:
        """Send what the socket takes, for one turn; whether it has taken any. Raises OSError."""
        left = _MAX_TURN
        try:
            while left > 0 and self._appended != self._sent:
                left -= self._send_first(wire)
        except BlockingIOError:
            pass
        if left == _MAX_TURN:
            return False
        self._progress_ns = monotonic_ns()
        self.wake()
        return True

    def is_stalled(self, now_ns: int, limit_ns: int) -> bool:
        """Whether the client has taken nothing for so long; 0: it may."""
        if not limit_ns or self._appended == self._sent:
            return False
        return now_ns - max(self._nonempty_since_ns, self._progress_ns) > limit_ns

    def wake(self) -> None:
        """End the producer's `wait`."""
        changed = self._sent_event
        if changed is not None:
            changed.set()

    def close(self) -> None:
        """Drop what is left. Nobody may use the buffer any more."""
        for item in self._items:
            _close(item)
        self._items.clear()
        self._give_back(self._memory - self._memory_freed, self._disk - self._disk_freed)
        self._sent = self._appended

    def _send_first(self, wire: Wire) -> int:
        items = self._items
        if not self._current:
            first = items[0]
            if isinstance(first, FileRegion | _Segment):
                return self._send_file(first, wire)
            self._next_blocks()
        sent = wire.send(self._current)
        if sent == len(self._current):
            self._current = b""
            self._give_back(self._current_cost, 0)
        else:
            self._current = memoryview(self._current)[sent:]
        self._sent += sent
        return sent

    def _next_blocks(self) -> None:
        """Take blocks out of the queue, small ones together."""
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

    def _send_file(self, item: FileRegion | _Segment, wire: Wire) -> int:
        if isinstance(item, FileRegion):
            sent = wire.send_file(item.fd, item.offset, item.count)
            if not sent:
                raise ClientDisconnected("the file became shorter while it was sent")
            item.offset += sent
            item.count -= sent
            if not item.count:
                del self._items[0]
                item.close()
        elif item.start == item.end:
            # More was put behind it, or it would be the last: the producer is done with it.
            del self._items[0]
            item.file.close()
            self._give_back(0, item.end)
            return 0
        else:
            sent = self._send_segment(item, wire)
            item.start += sent
        self._sent += sent
        return sent

    def _send_segment(self, segment: _Segment, wire: Wire) -> int:
        try:
            sent = wire.send_file(segment.file.fileno(), segment.start, segment.end - segment.start)
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
