"""Files to sockets that an event loop has, by sendfile(2)."""

from __future__ import annotations

import asyncio
import os

from servo.http.errors import ClientDisconnected

_AT_ONCE = 1 << 30


async def send_region(sock: int, source: int, offset: int, count: int, limit_s: float) -> None:
    """Copy `count` bytes of an open file to a socket on which nothing is waiting to be sent.

    On a copy of the socket's descriptor: uvloop has no `loop.sendfile`, and lets nobody else watch
    a descriptor of its transports.

    limit_s  how long the client may take nothing; 0: no limit

    Raises ClientDisconnected.
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
            # A client that reads as fast as this sends must not have the loop for itself.
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
    """What is waited for has come."""
    if not waiter.done():
        waiter.set_result(None)
