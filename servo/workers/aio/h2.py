"""HTTP/2 in the async worker: `H2Protocol` drives a connection, an `H2Channel` drives a request.

The application's calls are the same as for HTTP/1.1 (`servo.apps.asgi`). A channel is the transport
of one call, and the call writes its response into a stream (`servo.http.h2.stream`).

**Taking turns.** All streams of a connection share one socket, and all connections share one event
loop. So reading and writing are limited per turn of the loop. A turn handles a limited number of
frames; while more frames wait, the socket is not read. Writing is postponed to the next turn, and
then sends the frames of several streams in one call.

**Held requests.** A request normally starts when it arrives. In two cases it is held, and neither
the application nor the counters see it yet: the connection drains (see `servo.http.h2.drain`), or
the client reads so slowly that further responses would only use more memory.
"""

from __future__ import annotations

import asyncio
import logging
from time import monotonic, monotonic_ns
from typing import TYPE_CHECKING

from servo.http.errors import ProtocolError
from servo.http.events import Data, Refused, Request
from servo.http.h2.connection import H2Connection
from servo.http.h2.drain import GIVE_UP, SEND_GOAWAY, STEP_S, Drain
from servo.http.h2.frames import CANCEL, NO_ERROR, REFUSED_STREAM, ClientKind
from servo.http.limits import LINGER_S
from servo.net.sockets import end_transport, has_unread
from servo.workers.aio.h2_settings import HIGH_WATER
from servo.workers.aio.h2_stream import H2Channel
from servo.workers.linger import Linger
from servo.workers.request.admission import CLIENT_CLOSED
from servo.workers.timing import FRESH_GRACE_S

if TYPE_CHECKING:
    from servo._types import Scope
    from servo.apps.asgi import ASGICall
    from servo.apps.asgi_websocket import WebSocketCall
    from servo.http.h2.connection import Event, Reset
    from servo.http.h2.stream import H2Stream
    from servo.http.websocket import Handshake
    from servo.workers.aio.h2_settings import H2Settings
    from servo.workers.aio.server import StreamServer
    from servo.workers.aio.websocket_h2 import Channel
    from servo.workers.request.admission import Peer

log = logging.getLogger("servo.error")

# Bytes to write in one call.
_WRITE_BYTES = 65536
# Writes of one connection per turn of the loop.
_WRITES_A_TURN = 4
# Bytes of frames that may wait for their turn. Above this, the socket is not read.
_MAX_BACKLOG = 65536
# A client that floods us with cheap frames gets a turn only after this many seconds. A turn takes a
# fraction of this time, so other connections get most of it.
_STRAINED_PAUSE_S = 0.003
# Bytes of responses that may wait for one client. Above this, only a few of its requests run at a
# time. Otherwise a client could fill the memory by requesting much and reading nothing
# (CVE-2019-9517). Ordinary responses are far smaller, or are sent in pieces.
_MAX_UNSENT = 8 << 20
# How many requests of a client with more than _MAX_UNSENT unsent bytes may run at a time. With
# several, a page still loads while one of its downloads is slow. Each request adds at most the
# bytes of one `send` to the memory. If the worker as a whole holds too much (`Pressure`), only one
# request runs.
_MAX_RUNNING_IF_SLOW = 8
# A draining connection looks for the right moment for its GOAWAY for at least this many seconds
# (see servo.http.h2.drain). If `keepalive_requests` ends a connection, the final GOAWAY is sent
# this many seconds after the first.
_MIN_DRAIN_S = 1.0


class H2Protocol(asyncio.Protocol):
    """One HTTP/2 connection. An `H1Protocol` accepts the connection, and makes this object.

    server     the state that the connections of the worker share
    common     the settings that its HTTP/2 connections share
    template   the parts of the scope that all requests of the connection share
    peer       the client
    peer_name  the client's address, for logs
    running    the calls whose application has not returned. They can outnumber the open streams:
               after the client resets a stream, the application still runs
    waiting    the channels that wait until some bytes are sent
    """

    __slots__ = (
        "_drain",
        "_drain_put_off",
        "_drain_wait_s",
        "_ending",
        "_eof",
        "_has_turn",
        "_held",
        "_http",
        "_idle_ns",
        "_linger_end_ns",
        "_lingering",
        "_listening",
        "_part_ns",
        "_requests_seen",
        "_stalled_ns",
        "_transport",
        "_unsent",
        "_write_due",
        "common",
        "peer",
        "peer_name",
        "running",
        "server",
        "template",
        "waiting",
    )

    def __init__(
        self,
        server: StreamServer,
        common: H2Settings,
        transport: asyncio.Transport,
        template: Scope,
        peer: Peer,
    ) -> None:
        self.server = server
        self.common = common
        self.template = template
        self.peer = peer
        self.peer_name = peer.name
        self._transport = transport
        self._http = H2Connection(
            server.limits,
            common.limits,
            server=server.server_header,
            date=common.date,
            more=server.response_lines,
            tunnels=server.websockets is not None,
            wake=self.wake,
            all_unsent=server.pressure.http2,
        )
        # The streams of held requests, in the order of their arrival.
        self._held: dict[H2Stream, None] = {}
        self._drain: Drain | None = None
        self._drain_put_off = False
        self._drain_wait_s = 0.0
        self._requests_seen = 0
        self._listening = True
        self._has_turn = False
        self._lingering = False
        self._ending: Linger | None = None
        self._eof = False
        self._write_due = False
        self._unsent = 0
        # Three points in time, in monotonic nanoseconds: when the socket stopped taking bytes (0:
        # it takes them), when an incomplete frame or head began (0: none is incomplete), and when
        # the last open stream ended, or the connection began.
        self._stalled_ns = 0
        self._part_ns = 0
        self._idle_ns = monotonic_ns()
        self.running = 0
        self.waiting: set[Channel] = set()
        self._linger_end_ns = 0

    # --- the beginning --------------------------------------------------------------------------

    def start(self, data: bytes) -> None:
        """Begin.

        data  the bytes received so far: the client's preface, or a part of it
        """
        self._http.start()
        self._take_over(data)

    def start_upgraded(self, request: Request, settings: bytes, data: bytes) -> None:
        """Begin after 101 Switching Protocols (RFC 7540 section 3.2).

        request   the HTTP/1.1 request, which is answered on stream 1
        settings  the client's settings, from its HTTP2-Settings field
        data      the bytes received after the request
        """
        stream = self._http.start_upgraded(request, settings, monotonic())
        self._take_over(b"")
        self._handle([(stream, request)])
        self.data_received(data)

    def _take_over(self, data: bytes) -> None:
        self._transport.set_protocol(self)
        self.server.connections.add(self)
        self.wake()
        if self.server.draining:
            self.drain(FRESH_GRACE_S, FRESH_GRACE_S)
        if data:
            self.data_received(data)

    # --- asyncio --------------------------------------------------------------------------------

    def data_received(self, data: bytes) -> None:
        """See asyncio.Protocol."""
        if not self._lingering:
            self._handle(self._http.receive_data(data, monotonic()))
            if self._drain is not None and self._http.heard:
                self._drain_step()

    def eof_received(self) -> bool:
        """See asyncio.Protocol. Closes the connection: HTTP/2 has no half-closed connections.

        A client that has closed its side can't send WINDOW_UPDATE, so it can't get a long response.
        """
        self._eof = True
        self._http.fail(NO_ERROR, "the client has closed the connection")
        self._give_up_all()
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        """See asyncio.Protocol."""
        server = self.server
        server.connections.discard(self)
        end_transport(self._transport)
        self._http.fail(NO_ERROR, "the connection is lost")
        self._give_up_all()
        self._lingering = True
        server.worker.connection_closed()

    def pause_writing(self) -> None:
        """See asyncio.Protocol."""
        self._http.blocked = True
        self._unsent = self._transport.get_write_buffer_size()
        self._stalled_ns = monotonic_ns()

    def resume_writing(self) -> None:
        """See asyncio.Protocol."""
        self._http.blocked = False
        self._stalled_ns = 0
        self.wake()

    # --- reading --------------------------------------------------------------------------------

    def _handle(self, events: list[Event]) -> None:
        http = self._http
        for stream, event in events:
            if isinstance(event, Request):
                assert stream is not None
                if stream.closed:
                    # The same read has also brought a reset: don't start the application.
                    self._count_refused(CLIENT_CLOSED, event.method, event.target)
                else:
                    self._take(stream, event)
                continue
            channel = stream.driver if stream is not None else None
            if stream is not None and stream in self._held:
                self._on_held(stream, event)
            elif isinstance(event, Refused):
                self._on_refused(channel, event)
            elif isinstance(channel, H2Channel):
                if isinstance(event, Data):
                    channel.feed(event)
                else:
                    channel.give_up(CLIENT_CLOSED)
        self._untie_closed_streams()
        if http.fault is not None:
            log.debug("Ended the HTTP/2 connection of %s: %s", self.peer_name, http.fault)
            self._give_up_all()
        elif http.more:
            # There is more to handle, but other connections have their turn first.
            if self._listening and http.backlog > _MAX_BACKLOG:
                self._listening = False
                self._transport.pause_reading()
            if not self._has_turn:
                self._has_turn = True
                if http.is_strained:
                    self.server.loop.call_later(_STRAINED_PAUSE_S, self._go_on)
                else:
                    self.server.loop.call_soon(self._go_on)
        if http.more or not http.in_part:
            self._part_ns = 0
        elif not self._part_ns:
            self._part_ns = monotonic_ns()

    def _go_on(self) -> None:
        self._has_turn = False
        if self._lingering or self._transport.is_closing():
            return
        self._handle(self._http.receive_more(monotonic()))
        if not self._http.more and not self._listening and not self._lingering:
            self._listening = True
            self._transport.resume_reading()

    def _on_refused(self, channel: object, event: Refused) -> None:
        log.debug("Refused a request from %s: %s", self.peer_name, event.error)
        if isinstance(channel, H2Channel):
            channel.give_up(event.error.status)
        else:
            self._count_refused(event.error.status, event.method, event.target)

    def _count_refused(self, status: int, method: str, target: bytes) -> None:
        self.server.meter.refused(status, method, target, self.peer_name)

    def _take(self, stream: H2Stream, request: Request) -> None:
        """Start a new request, or hold it.

        stream   its stream
        request  the request
        """
        if self._held or not self._may_begin(stream):
            self._held[stream] = None
        else:
            self._begin(stream, request)

    def _may_begin(self, stream: H2Stream) -> bool:
        if self._drain is not None and not self._drain.lets_begin(stream.id):
            return False
        http = self._http
        running = len(http.streams) - len(self._held)
        if stream not in self._held:
            running -= 1
        if running < 1:
            return True
        if (http.unsent > HIGH_WATER or http.is_shut) and self.server.pressure.is_high:
            return False
        return running < _MAX_RUNNING_IF_SLOW or not (http.unsent > _MAX_UNSENT or http.is_shut)

    def _on_held(self, stream: H2Stream, event: Data | Refused | Reset) -> None:
        """Handle an event of a held request: more of its body, or its end."""
        request = stream.request
        if isinstance(event, Data) and request.upgrade is None:
            # At most one window of the body can arrive before the request starts, because the
            # window is enlarged only when the application reads.
            self.server.meter.received(len(event.data))
            request.body += event.data
            request.more_body = event.more_body
            return
        del self._held[stream]
        if isinstance(event, Refused):
            status = event.error.status
        elif isinstance(event, Data):
            # As in `H2Channel.feed`: a client must not send before its handshake is answered.
            status = 400
            stream.reset(CANCEL)
        else:
            status = CLIENT_CLOSED
        self._count_refused(status, request.method, request.target)

    def _begin_held(self) -> None:
        while self._held:
            stream = next(iter(self._held))
            if not self._may_begin(stream):
                break
            del self._held[stream]
            self._begin(stream, stream.request)

    def _begin(self, stream: H2Stream, request: Request) -> None:
        server = self.server
        if self.running >= 2 * self.common.limits.streams:
            # Rapid reset (CVE-2023-44487): the client has reset streams, but their applications
            # still run. At most twice the number of allowed streams may run.
            stream.reset(REFUSED_STREAM)
            self._count_refused(503, request.method, request.target)
            return
        handshake: Handshake | None = None
        if request.upgrade is not None:
            try:
                handshake = server.tunnel_handshake(request)
            except ProtocolError as error:
                stream.refuse(error)
                self._count_refused(error.status, request.method, request.target)
                return
        admitted = server.admission.admit(request, self.peer)
        if not request.keep_alive or not server.keep_alive_s:
            self.drain(_MIN_DRAIN_S, _MIN_DRAIN_S)
        if isinstance(admitted, Refused):
            stream.refuse(admitted.error)
        else:
            H2Channel(self, stream, admitted, handshake).start()

    # --- writing --------------------------------------------------------------------------------

    def wake(self) -> None:
        """Write in the next turn of the loop, together with the other output of this turn."""
        if not self._write_due:
            self._write_due = True
            self.server.loop.call_soon(self._write)

    def _write(self) -> None:
        self._write_due = False
        http = self._http
        transport = self._transport
        if self._lingering or transport.is_closing():
            return
        for _ in range(_WRITES_A_TURN):
            if http.blocked:
                break
            data = http.output(_WRITE_BYTES)
            if not data:
                break
            transport.write(data)
        else:
            self.wake()
        for channel in list(self.waiting):
            channel.wake_drained()
        self._untie_closed_streams()
        if http.over:
            self._end()
        elif self._held:
            self._begin_held()

    # --- closing --------------------------------------------------------------------------------

    def _untie_closed_streams(self) -> None:
        """Free channels and closed streams, by breaking the reference cycles between them."""
        gone = self._http.gone
        while gone:
            gone.pop().driver = None

    def _give_up_all(self) -> None:
        for stream in list(self._http.streams.values()):
            if isinstance(stream.driver, H2Channel):
                stream.driver.give_up(CLIENT_CLOSED)
            stream.driver = None
        for stream in self._held:
            self._count_refused(CLIENT_CLOSED, stream.request.method, stream.request.target)
        self._held.clear()
        self._http.streams.clear()
        for channel in list(self.waiting):
            channel.wake_drained()

    def _end(self) -> None:
        """Close the connection after its last stream."""
        transport = self._transport
        rest = self._http.output()
        if rest:
            transport.write(rest)
        self._lingering = True
        now = monotonic_ns()
        sock = transport.get_extra_info("socket")
        if sock is None or sock.fileno() < 0:
            transport.close()  # the loop has already closed the socket: only tidy up
            return
        self._ending = Linger(sock.fileno(), self.server.settings.send_timeout, now)
        self._linger_end_ns = now + int(LINGER_S * 1e9)
        if transport.can_write_eof() and not self._eof and not self._http.leaving:
            # The client may still send. Bytes that arrive after a full close would make the kernel
            # reset the connection, and the client might lose our last bytes.
            transport.write_eof()
            if not self._listening:
                self._listening = True
                transport.resume_reading()
        else:
            transport.close()

    def drain(self, idle_s: float, fresh_s: float) -> None:
        """See ServedConnection. The steps depend on the client: see servo.http.h2.drain."""
        http = self._http
        if self._lingering or http.announced or self._drain is not None:
            return
        if http.client is ClientKind.H2_LIBRARY and self._carries_long_lived():
            # This client would drop its event streams at the GOAWAY. The sweep tries again later.
            self._drain_put_off = True
            return
        self._drain_put_off = False
        wait_s = idle_s if self.peer.requests else fresh_s
        if http.client is ClientKind.ORDINARY:
            self._announce(wait_s)
            return
        self._drain = Drain(http, monotonic(), max(idle_s, _MIN_DRAIN_S), fresh_s)
        self._drain_wait_s = wait_s
        self.server.loop.call_later(STEP_S, self._drain_on)

    def _announce(self, wait_s: float) -> None:
        """Send a first GOAWAY, and the final one when the client has seen the first.

        wait_s  seconds after which the final one is sent even if the client has not seen the first
        """
        self._http.announce()
        self.server.loop.call_later(wait_s, self._http.finish)

    def _drain_on(self) -> None:
        if not self._has_input():
            self._drain_step()
        if self._drain is not None and not self._http.closing:
            self.server.loop.call_later(STEP_S, self._drain_on)

    def _has_input(self) -> bool:
        """Whether received bytes wait to be read.

        After a standstill of the process, such as SIGSTOP, uvloop runs timers before it reads. A
        GOAWAY would then refuse a request that came in time.
        """
        sock = self._transport.get_extra_info("socket")
        return self._listening and sock is not None and has_unread(sock.fileno())

    def _drain_step(self) -> None:
        """Continue a drain that waits for the right moment to send GOAWAY."""
        http, drain = self._http, self._drain
        if drain is None or http.closing:
            return
        if self._lingering or http.fault is not None or http.leaving:
            outcome = GIVE_UP
        else:
            outcome = drain.step(monotonic())
        if outcome == SEND_GOAWAY:
            self._held.clear()
            http.finish_after(drain.last_id)
            self._write()
        elif outcome == GIVE_UP:
            self._drain = None
            self._announce(self._drain_wait_s)
            self._begin_held()

    def _carries_long_lived(self) -> bool:
        """Whether the worker lingers and this connection has a WebSocket or event stream."""
        if not self.server.lingers:
            return False
        return any(
            channel.websocket is not None
            or (channel.call is not None and channel.call.is_long_lived)
            for channel in self._channels()
        )

    def cut_requests(self, kept: list[ASGICall | WebSocketCall]) -> None:
        """See ServedConnection."""
        for stream in list(self._http.streams.values()):
            channel = stream.driver
            if not isinstance(channel, H2Channel):
                stream.reset(REFUSED_STREAM if stream in self._held else CANCEL)
            elif channel.websocket is None and channel.call not in kept:
                channel.give_up(CLIENT_CLOSED)
                stream.reset(CANCEL)
        for stream in self._held:
            self._count_refused(503, stream.request.method, stream.request.target)
        self._held.clear()
        if not self._http.streams:
            self.abort()

    def abort(self) -> None:
        """See memory_pressure.Client."""
        self._transport.abort()

    def held_bytes(self) -> int:
        """See memory_pressure.Client."""
        return self._http.unsent + self._transport.get_write_buffer_size()

    def progress(self) -> object:
        """See memory_pressure.Client."""
        return self._http.sent - self._transport.get_write_buffer_size()

    # --- time -----------------------------------------------------------------------------------

    def sweep(self, now_ns: int) -> int:
        """See ServedConnection."""
        oldest = 0
        for channel in self._channels():
            started = channel.end_late_request(now_ns)
            if started:
                oldest = min(oldest or started, started)
        if self._ending is None:
            self._end_late_parts(now_ns)
        elif now_ns >= self._linger_end_ns and self._ending.is_over(
            self._transport.get_write_buffer_size(), now_ns
        ):
            self._transport.abort()
        return oldest

    def open_calls(self) -> list[ASGICall | WebSocketCall]:
        """See ServedConnection."""
        return [channel.call for channel in self._channels() if channel.call is not None]

    def _channels(self) -> list[H2Channel]:
        drivers = [stream.driver for stream in self._http.streams.values()]
        return [driver for driver in drivers if isinstance(driver, H2Channel)]

    def _end_late_parts(self, now: int) -> None:
        """End streams, or the connection, if the client takes too long to read or to send bytes."""
        settings = self.server.settings
        http = self._http
        if http.streams or self.peer.requests != self._requests_seen:
            self._requests_seen = self.peer.requests
            self._idle_ns = now
        if self._stalled_ns and _passed(self._stalled_ns, settings.send_timeout, now):
            self._on_stalled(now)
        elif self._part_ns and _passed(self._part_ns, settings.header_timeout, now):
            http.fail(CANCEL, "a frame did not come in time")
            self._give_up_all()
        elif http.streams:
            for stream in list(http.streams.values()):
                if isinstance(stream.driver, H2Channel):
                    stream.driver.end_late_client(now)
                elif stream.waiting and stream.queued:
                    stream.reset(CANCEL)  # a refusal that the client does not read
        elif now - self._idle_ns > self._most_idle_ns() and not self._has_input():
            http.finish()
        if self._drain_put_off:
            self.drain(settings.drain_idle, settings.drain_idle)
        if self._held:
            # Other connections may have released memory, so that held requests can start.
            self._begin_held()

    def _most_idle_ns(self) -> int:
        if self.peer.requests:
            return self.server.idle_ns
        timeout: float = self.server.settings.header_timeout
        return int(timeout * 1e9) if timeout else 1 << 62

    def _on_stalled(self, now: int) -> None:
        """Abort if the client has taken no bytes of the buffer since the last check."""
        left = self._transport.get_write_buffer_size()
        if left < self._unsent:
            self._unsent = left
            self._stalled_ns = now
        else:
            self._transport.abort()


def _passed(since_ns: int, timeout_s: float, now_ns: int) -> bool:
    return bool(timeout_s) and now_ns - since_ns > timeout_s * 1e9
