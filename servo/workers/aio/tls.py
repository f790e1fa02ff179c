"""Helpers for TLS in the `async` worker.

The event loop itself does TLS. This module does the other work for TLS: it reads the PROXY protocol
header before the handshake, sets the loop's time limits, and sends files, which sendfile(2) can't
encrypt.
"""

from __future__ import annotations

import asyncio
import os
import socket
import sys
from typing import TYPE_CHECKING, Any

from servo.http.errors import ClientDisconnected
from servo.workers.aio.sendfile import settle

if TYPE_CHECKING:
    import ssl
    from collections.abc import Awaitable, Callable

    from servo.http.proxy_protocol import ProxyHeader
    from servo.workers.request.preface import ProxyHeaderReader

# How many bytes to peek at when looking for a PROXY protocol header.
_PEEKED = 8192
# Bytes of a file that are read at a time.
_BLOCK = 262_144
# asyncio has no way to say "no limit", so it gets a day in seconds.
_NO_LIMIT_S = 86_400.0


def loop_options(
    context: ssl.SSLContext, loop: asyncio.AbstractEventLoop, handshake_s: float
) -> dict[str, Any]:
    """Return the TLS arguments of the loop's `connect_accepted_socket`.

    context      the server's certificates and settings
    loop         the event loop
    handshake_s  seconds that a client may take for the handshake; 0: no limit
    """
    options = {"ssl": context, "ssl_handshake_timeout": handshake_s or _NO_LIMIT_S}
    if sys.version_info >= (3, 11) or not isinstance(loop, asyncio.BaseEventLoop):
        # The loop's limit for the shutdown includes the time for the rest of the response, so it
        # would cut off slow clients. `Linger` applies our own limits instead.
        options["ssl_shutdown_timeout"] = _NO_LIMIT_S
    return options


def ends(
    sock: socket.socket, peer: Any, local: Any, header: ProxyHeader | None
) -> tuple[tuple[str, int] | tuple[str, None], tuple[str, int] | None]:
    """Return the server's and the client's address: those in the PROXY header, or the socket's.

    sock    the connection's socket
    peer    the client's address, as `accept` returned it
    local   our address, as `getsockname` returns it; None if it is not known
    header  the PROXY protocol header, if one was read
    """
    if header is not None and header.source is not None:
        return header.destination or ("", None), header.source
    own = sock.getsockname() if local is None else local
    address = (own[0], own[1]) if isinstance(own, tuple) else (own or "", None)
    return address, (peer[0], peer[1]) if isinstance(peer, tuple) else None


async def read_proxy_header(
    loop: asyncio.AbstractEventLoop,
    sock: socket.socket,
    proxy_reader: ProxyHeaderReader,
    limit_s: float,
) -> ProxyHeader:
    """Read the PROXY protocol header, and not one byte more: the TLS handshake follows.

    loop     the event loop
    sock     the connection's socket
    proxy_reader  parses the header
    limit_s       seconds that each part of the header may take; 0: no limit

    Raises OSError if the client is gone or too slow, and ProtocolError if it sent no valid header.
    """
    while True:
        await asyncio.wait_for(_readable(loop, sock), limit_s or None)
        data = sock.recv(_PEEKED, socket.MSG_PEEK)
        if not data:
            raise ConnectionResetError("closed before its PROXY protocol header")
        found = proxy_reader.feed(data)
        sock.recv(len(data) - len(found[1]) if found else len(data))
        if found:
            return found[0]


async def _readable(loop: asyncio.AbstractEventLoop, sock: socket.socket) -> None:
    ready = loop.create_future()
    loop.add_reader(sock, settle, ready)
    try:
        await ready
    finally:
        loop.remove_reader(sock)


async def send_blocks(
    loop: asyncio.AbstractEventLoop,
    source: int,
    offset: int,
    count: int,
    write: Callable[[bytes], None],
    drained: Callable[[], Awaitable[None]],
) -> None:
    """Send a part of an open file block by block, because its bytes must be encrypted or framed.

    loop           the event loop; its executor reads the file
    source         the file's descriptor
    offset, count  the part, in bytes
    write          sends a block
    drained        waits until the client has taken enough

    Raises ClientDisconnected if the client is gone, or the file is too short.
    """
    end = offset + count
    while offset < end:
        size = min(end - offset, _BLOCK)
        block = await loop.run_in_executor(None, os.pread, source, size, offset)
        if not block:
            raise ClientDisconnected("the file became shorter while it was sent")
        write(block)
        offset += len(block)
        await drained()
