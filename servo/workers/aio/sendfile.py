"""Sends files with sendfile(2) on sockets that an event loop owns.

With sendfile(2) the kernel copies from the file to the socket, and the bytes don't pass through
Python. uvloop has no `loop.sendfile`, and no other code may watch a descriptor that one of its
transports uses. So the file is sent through a duplicate of the descriptor, which the loop can
watch.
"""

from __future__ import annotations

import asyncio
import os

from servo.http.errors import ClientDisconnected

# Bytes to send in one call; sendfile(2) transfers at most 0x7ffff000.
_AT_ONCE = 1 << 30


async def send_region(sock: int, source: int, offset: int, count: int, limit_s: float) -> None:
    """Send a part of an open file. Before this, all written bytes must have been sent.

    sock           the socket's descriptor
    source         the file's descriptor
    offset, count  the part, in bytes
    limit_s        how long the client may take no bytes, in seconds; 0: no limit

    Raises ClientDisconnected if the client is gone or too slow, or the file is too short.
    """
    out = os.dup(sock)
    end = offset + count
    try:
        while offset < end:
            try:
                sent = os.sendfile(out, source, offset, min(end - offset, _AT_ONCE))
            except BlockingIOError:
                await _writable(out, limit_s)
                continue
            except OSError as error:
                raise ClientDisconnected(str(error)) from error
            if not sent:
                raise ClientDisconnected("the file became shorter while it was sent")
            offset += sent
            # Let other connections run: if the client reads fast, this loop never has to wait.
            await asyncio.sleep(0)
    finally:
        os.close(out)


async def _writable(fd: int, limit_s: float) -> None:
    loop = asyncio.get_running_loop()
    ready = loop.create_future()
    loop.add_writer(fd, settle, ready)
    try:
        await asyncio.wait_for(ready, limit_s or None)
    except asyncio.TimeoutError as error:
        raise ClientDisconnected("the client has stopped reading") from error
    finally:
        loop.remove_writer(fd)


def settle(waiter: asyncio.Future[None]) -> None:
    """Wake the coroutine that waits for this future."""
    if not waiter.done():
        waiter.set_result(None)
