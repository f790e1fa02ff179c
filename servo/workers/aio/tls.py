"""TLS in the `async` worker: the loop does it. Here is what comes before the handshake, and what
can't be done as on a plain socket."""

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

_PEEKED = 8192
_BLOCK = 262_144
_NO_LIMIT_S = 86_400.0


def loop_options(
    context: ssl.SSLContext, loop: asyncio.AbstractEventLoop, handshake_s: float
) -> dict[str, Any]:
    """Arguments of `connect_accepted_socket`.

    handshake_s  how long a client may take for it; 0: no limit
    """
    options = {"ssl": context, "ssl_handshake_timeout": handshake_s or _NO_LIMIT_S}
    if sys.version_info >= (3, 11) or not isinstance(loop, asyncio.BaseEventLoop):
        # It would also bound what a slow client may take for the rest of its response; see
        # `linger` for our own limits.
        options["ssl_shutdown_timeout"] = _NO_LIMIT_S
    return options


def ends(
    sock: socket.socket, peer: Any, header: ProxyHeader | None
) -> tuple[tuple[str, int] | tuple[str, None], tuple[str, int] | None]:
    """The addresses of our end and the client's, or what a PROXY protocol header says of them.

    peer  the client's, as `accept` gave it
    """
    if header is not None and header.source is not None:
        return header.destination or ("", None), header.source
    own = sock.getsockname()
    address = (own[0], own[1]) if isinstance(own, tuple) else (own or "", None)
    return address, (peer[0], peer[1]) if isinstance(peer, tuple) else None


async def read_proxy_header(
    loop: asyncio.AbstractEventLoop,
    sock: socket.socket,
    proxy_reader: ProxyHeaderReader,
    limit_s: float,
) -> ProxyHeader:
    """Take the PROXY protocol's header, and no byte more, off the socket.

    Raises OSError, or ProtocolError.
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
    """Send `count` bytes of an open file as sendfile can't: read, to be encrypted or framed.

    Raises ClientDisconnected.
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
