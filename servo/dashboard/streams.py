"""The connections that follow the history, as server-sent events (HTML Living Standard, 9.2).

Each stream reads the history at its own pace: it remembers the position of the last entry that it
has sent. So a slow reader costs no memory but the server's buffer of 64 KiB, and skips entries that
have left the history. If a reader takes nothing for `send_timeout`, the server closes it.
"""

from __future__ import annotations

import asyncio
from contextlib import contextmanager
from typing import TYPE_CHECKING

from servo.errors import ServoError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from servo._types import Receive, Send
    from servo.dashboard.history import Entry, History

MOST_STREAMS = 64
# After this many seconds without an entry, a comment is sent: proxies close silent connections.
COMMENT_S = 15.0
# The browser waits this many milliseconds before it connects again.
_RETRY_MS = 2000


class TooManyStreams(ServoError):  # noqa: N818
    """Raised if MOST_STREAMS streams are open."""


class Streams:
    """All open streams.

    history   the history that they follow
    """

    def __init__(self, history: History) -> None:
        self._history = history
        self._streams: set[Stream] = set()

    def __len__(self) -> int:
        return len(self._streams)

    def wake(self) -> None:
        """Let all streams send the new entries."""
        for stream in self._streams:
            stream.changed.set()

    @contextmanager
    def opened(self) -> Iterator[Stream]:
        """Count a stream while the block runs. Raises TooManyStreams."""
        if len(self._streams) >= MOST_STREAMS:
            raise TooManyStreams(f"{MOST_STREAMS} streams are open")
        stream = Stream(self._history)
        self._streams.add(stream)
        try:
            yield stream
        finally:
            self._streams.discard(stream)


class Stream:
    """One stream.

    history   the history that it follows

    changed   set when there may be new entries
    """

    def __init__(self, history: History) -> None:
        self._history = history
        self.changed = asyncio.Event()

    async def run(self, receive: Receive, send: Send, last: int | None) -> None:
        """Send entries until the client has gone.

        receive, send   the ASGI channel; the response has begun
        last            the number of the last sample that the client has; None: it needs no past
        """
        gone = asyncio.get_running_loop().create_task(_disconnected(receive))
        try:
            await self._send_entries(send, gone, last)
        finally:
            gone.cancel()

    async def _send_entries(self, send: Send, gone: asyncio.Task[None], last: int | None) -> None:
        history = self._history
        position, server = history.position_after(last), history.server
        await _send_part(send, b"retry: %d\n\n" % _RETRY_MS + _frame(server))
        while not gone.done():
            self.changed.clear()
            for entry in history.after(position):
                if entry is not server:
                    await _send_part(send, _frame(entry))
                position = entry.position
            if self.changed.is_set():
                continue
            if not await self._wait(gone):
                await _send_part(send, b": nothing new\n\n")

    async def _wait(self, gone: asyncio.Task[None]) -> bool:
        """Wait for a change, or for the client's end. Returns False after COMMENT_S seconds."""
        change = asyncio.get_running_loop().create_task(self.changed.wait())
        try:
            done, _ = await asyncio.wait(
                {change, gone}, timeout=COMMENT_S, return_when=asyncio.FIRST_COMPLETED
            )
        finally:
            change.cancel()
        return bool(done)


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _send_part(send: Send, data: bytes) -> None:
    await send({"type": "http.response.body", "body": data, "more_body": True})


def _frame(entry: Entry) -> bytes:
    # JSON has no line feeds, so the data is one line.
    number = b"id: %d\n" % entry.number if entry.kind == "sample" else b""
    return b"%sevent: %s\ndata: %s\n\n" % (number, entry.kind.encode(), entry.data)
