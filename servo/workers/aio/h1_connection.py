"""A connection of the asyncio driver: what it holds, how long it may wait, and how it ends."""

from __future__ import annotations

import contextlib
import logging
import os
from time import monotonic_ns
from typing import TYPE_CHECKING

from servo.http.errors import ClientDisconnected, ProtocolError
from servo.http.events import Refused
from servo.http.h1.connection import H1Connection
from servo.net.sockets import end_output, has_unread
from servo.workers.aio.linger import LINGER_S, Linger
from servo.workers.request.admission import Peer

if TYPE_CHECKING:
    import asyncio
    import socket
    from collections.abc import Callable
    from typing import Any

    from servo._types import Scope
    from servo.apps.asgi import ASGICall
    from servo.apps.asgi_websocket import WebSocketCall
    from servo.http.proxy_protocol import ProxyHeader
    from servo.net.tls_facts import TLSFacts
    from servo.workers.aio.server import StreamServer
    from servo.workers.request.admission import Admitted
    from servo.workers.request.body_rate import BodyPace
    from servo.workers.request.preface import Beginning

log = logging.getLogger("servo.error")

# Until `connection_made`; it is never called where a TLS handshake fails.
_NOBODY = Peer(None, "http", False)


class StreamConnection:
    """The part of `StreamProtocol` that holds its state, closes it, and keeps its time limits."""

    __slots__ = (
        "_admitted",
        "_beginning",
        "_copy",
        "_drain_waiter",
        "_ending",
        "_eof",
        "_facts",
        "_header",
        "_http",
        "_lingering",
        "_pace",
        "_paused",
        "_paused_ns",
        "_peer",
        "_reading_head",
        "_server",
        "_socket",
        "_template",
        "_transport",
        "_unsent",
        "call",
        "deadline_ns",
        "loop",
        "peer",
        "peer_name",
        "writable",
        "write",
    )

    def __init__(
        self,
        server: StreamServer,
        sock: socket.socket,
        peer: Any,
        header: ProxyHeader | None = None,
    ) -> None:
        """
        sock, peer  what was accepted; the loop is about to have it, and will close it
        header      the PROXY protocol's, where it was read before the TLS handshake
        """
        settings = server.settings
        # The loop's own ways to these (get_extra_info) cost six times as much.
        self._socket = sock
        self._peer = peer
        self._header = header
        self._facts: TLSFacts | None = None
        self._server = server
        self.loop = server.loop
        self._http = H1Connection(
            server.limits,
            parser=settings.http_parser,
            server=server.server_header,
            date=settings.date_header,
        )
        self._transport: asyncio.Transport = None  # type: ignore[assignment]  # connection_made
        # asgi.Transport's, without a call in between.
        self.write: Callable[[bytes], None] = _not_connected
        self._template: Scope = {}
        self._paused = False
        self._paused_ns = 0
        self._pace: BodyPace | None = None
        self._beginning: Beginning | None = None
        self._reading_head = False
        self._lingering = False
        self._ending: Linger | None = None
        self._copy = -1
        self._eof = False
        self._admitted: Admitted | None = None
        self._unsent = 0
        self._drain_waiter: asyncio.Future[None] | None = None
        self.writable = True
        self.call: ASGICall | WebSocketCall | None = None
        self.peer = _NOBODY
        self.peer_name = ""
        self.deadline_ns = 0

    def _refuse(self, event: Refused) -> None:
        """Answer what is refused, and close."""
        raise NotImplementedError

    # --- closing --------------------------------------------------------------------------------

    def _hang_up(self, linger: bool) -> None:
        """Close after the response is out; see PollerWorker._hang_up for the lingering."""
        transport = self._transport
        if transport.is_closing():
            return
        linger = linger or self._paused or has_unread(self._fd())
        if linger and transport.can_write_eof() and not self._eof:
            transport.write_eof()
            self._linger()
            if self._paused:
                self._paused = False
                transport.resume_reading()
        else:
            self._close()

    def _close(self) -> None:
        """Close what needs no lingering. Over TLS the loop does that, and we limit it."""
        if self._facts is not None and self._copy < 0:
            # By the time that `connection_lost` is called, the loop has closed its own descriptor.
            with contextlib.suppress(OSError):
                self._copy = os.dup(self._fd())
        self._transport.close()
        if self._facts is not None:
            self._linger()

    def _end_output(self) -> None:
        """The connection is over; see net.sockets.end_output."""
        end_output(self._fd())
        if self._copy >= 0:
            end_output(self._copy)
            os.close(self._copy)
            self._copy = -1

    def _linger(self) -> None:
        self._ending = Linger(self._fd(), self._server.settings.send_timeout, monotonic_ns())
        self._lingering = True
        self._expires_in(LINGER_S)

    def _fd(self) -> int:
        """-1 once the loop has closed the socket, which it may do at once over TLS."""
        return self._socket.fileno()

    def drain(self, idle_s: float, fresh_s: float) -> None:
        """Answer what has come; a silent client is cut after `idle_s`, one that has not asked for
        anything yet after `fresh_s` seconds."""
        self._http.close_next()
        if self.call is None and self._http.idle and not self._lingering:
            self.deadline_ns = 0
            self.loop.call_later(idle_s if self.peer.requests else fresh_s, self._close_if_idle)

    def _close_if_idle(self) -> None:
        if self.call is None and self._http.idle and not self._lingering:
            self._close()

    def forget(self) -> None:
        """The connection has become idle: keep nothing of its last request."""
        self._http.forget()

    def abort(self) -> None:
        """Cut the connection."""
        self._transport.abort()

    def held_bytes(self) -> int:
        """See pressure.Client. Less than the loop's limit is not looked at."""
        return 0 if self.writable else self._transport.get_write_buffer_size()

    def progress(self) -> object:
        """See pressure.Client. The buffer shrinks, or is filled again because it did."""
        return self.held_bytes()

    # --- time -----------------------------------------------------------------------------------

    def _expires_in(self, seconds: float) -> None:
        self.deadline_ns = monotonic_ns() + int(seconds * 1e9) if seconds else 0

    def on_timeout(self) -> None:
        """The sweep found the deadline passed."""
        if self._ending is not None:
            if self._ending.is_over(self._transport.get_write_buffer_size(), monotonic_ns()):
                self._transport.abort()
        elif not self.writable:
            self._on_stalled()
        elif self.call is not None:
            self._refuse(Refused(ProtocolError(408, "the body did not come in time"), True))
        elif self._http.in_head:
            self._refuse(Refused(ProtocolError(408, "the head did not come in time")))
        else:
            self._close()

    def _on_stalled(self) -> None:
        """The client is not reading: cut it, unless some of the buffer has gone since."""
        left = self._transport.get_write_buffer_size()
        if left < self._unsent:
            self._unsent = left
            self._expires_in(self._server.settings.send_timeout)
        else:
            self._transport.abort()

    def on_request_timeout(self, call: ASGICall | WebSocketCall) -> None:
        """`request_timeout` has passed: 504 when nothing was sent yet, else close."""
        log.error(
            "%s %a has run for more than %g s (request_timeout): cancelled",
            call.request.method,
            call.request.target.decode("latin-1"),
            self._server.settings.request_timeout,
        )
        call.cancelled = True
        if call.task is not None:
            call.task.cancel()
        self._refuse(Refused(ProtocolError(504, "the application took too long"), in_body=True))


def _not_connected(_data: bytes) -> None:
    raise ClientDisconnected("no connection yet")
