"""One accepted connection of a blocking worker: the socket, its HTTP state, its current request.

The poller and the application's thread use a connection in turns. The poller reads requests and
sends the rest of responses. The thread builds a response and sends its beginning. `phase` says
whose turn it is: in `APP` the connection belongs to the thread, and the poller touches only
`output`.

A slow client should not hold the application. So bytes that the socket does not take go into an
`OutputBuffer`, and the poller sends them later. The application waits only if the buffer is full,
and gives up after `send_timeout` without progress.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
import select
import socket
from time import monotonic_ns
from typing import TYPE_CHECKING, Any, Final, Protocol

from servo.apps.body_spool import discard, refusal
from servo.apps.wsgi import WSGIResponder
from servo.apps.wsgi_environ import WSGIAdapter, is_nameless, name_server
from servo.apps.wsgi_file import FileRegion
from servo.http.errors import ClientDisconnected
from servo.http.h1.connection import H1Connection
from servo.net.sockets import has_unread
from servo.workers.blocking.output_buffer import WAIT_S, OutputBuffer, OutputSpace
from servo.workers.linger import IdleTime
from servo.workers.request.admission import Peer
from servo.workers.request.body_rate import BodyRate

if TYPE_CHECKING:
    from tempfile import SpooledTemporaryFile

    from servo.apps.loader import LoadedApp
    from servo.http.events import Request
    from servo.http.forwarded import ClientInfo, TrustedPeers
    from servo.net.tls_facts import TLSFacts
    from servo.settings.sources import Settings
    from servo.workers.request.accounting import Meter
    from servo.workers.request.admission import Admission, Admitted
    from servo.workers.request.preface import ProxyProtocol

log = logging.getLogger("servo.error")

# The phases of a connection. They are integers because one comparison, `phase < APP`, then tells
# the poller whether it may read.
IDLE: Final = 0  # no byte of a request has arrived
HEAD: Final = 1  # a part of a head has arrived
BODY: Final = 2  # a part of a body has arrived
# The application has the request. Only the thread that runs it may touch the connection.
APP: Final = 3
SEND: Final = 4  # a finished response is being sent
LINGER: Final = 5  # the response is sent and our side closed; input is discarded
QUEUED: Final = 6  # a pipelined request waits for its turn; nothing is read meanwhile
_NO_ENVIRON: dict[str, Any] = {}
# If an application took longer than this for a request, don't let its response wait for the
# response to the next, pipelined request.
_QUICK_NS: Final = 1_000_000


class ConnectionWorker(Protocol):
    """The attributes and methods of a worker that its connections use."""

    @property
    def settings(self) -> Settings: ...

    @property
    def context(self) -> Any: ...

    @property
    def trusted_proxies(self) -> TrustedPeers: ...

    @property
    def proxy_protocol(self) -> ProxyProtocol: ...

    @property
    def admission(self) -> Admission: ...

    @property
    def multiprocess(self) -> bool: ...

    def progress(self) -> None: ...


class ConnectionFactory:
    """Makes the connections of one worker, and has the state that they share.

    worker       the worker
    app          the application
    multithread  whether several threads run the application (`wsgi.multithread`)
    """

    def __init__(self, worker: ConnectionWorker, app: LoadedApp, multithread: bool) -> None:
        settings = worker.settings
        self.worker = worker
        self.settings = settings
        self.limits = settings.limits
        self.server_header = settings.server_header.encode() or None
        self.response_lines = settings.response_lines
        self.trusted = worker.trusted_proxies
        self.adapter = WSGIAdapter(
            app.app,
            log=log,
            multithread=multithread,
            multiprocess=worker.multiprocess,
            root_path=settings.root_path,
            header_map=settings.header_map,
            sendfile=settings.sendfile,
        )
        self.adapter.watch_forks()
        self.output_space = OutputSpace(
            settings.response_buffer_size, settings.response_spool_limit, settings.tmp_upload_dir
        )
        self.admission = worker.admission
        self.tls = worker.context.tls
        if self.tls is not None:
            from servo.workers.blocking.tls import TLSSocket  # see servo.net.tls_switch

            self.tls.offer("http/1.1")
            self.secure = TLSSocket

    def make(self, sock: socket.socket, peer: Any, local: Any) -> Connection:
        """Make a connection for an accepted socket; see acceptor.Driver.opened."""
        return Connection(self, sock, peer, local)

    def spool(self) -> SpooledTemporaryFile[bytes]:
        """Make a file for a request body: in memory up to `body_buffer_size`, then on disk."""
        from tempfile import SpooledTemporaryFile  # imported here to make the start faster

        return SpooledTemporaryFile(
            max_size=self.settings.body_buffer_size, dir=self.settings.tmp_upload_dir
        )


class Connection:
    """One connection; also the `WSGITransport` of its responder.

    phase        its phase: one of the constants above
    watched      the events that epoll reports for it
    broken       whether the socket is unusable
    linger       whether to discard input before closing
    idle_time    decides whether to close it when its idle time is over; None before that time
    request      the current request
    body         the request's body: bytes, a file, or None
    output       the unsent part of the current response; None if the socket took all of it
    unsent       the unsent part of a refusal, which the poller itself sends
    corked       whether the kernel may keep sent bytes for a while (see `send_corked`)
    claim        see ThreadConnection
    thread       the thread that runs the application; 0 for none
    deadline_ns  when the sweep ends this phase, in monotonic nanoseconds; 0 for never
    """

    __slots__ = (
        "_factory",
        "_header_environ",
        "_is_tcp",
        "_last_named",
        "_nameless",
        "_template",
        "admitted",
        "body",
        "body_rate",
        "broken",
        "claim",
        "corked",
        "deadline_ns",
        "environ",
        "eof",
        "fd",
        "http",
        "idle_time",
        "linger",
        "output",
        "peer",
        "peer_name",
        "phase",
        "proxy_reader",
        "request",
        "responder",
        "sock",
        "started_ns",
        "thread",
        "unsent",
        "watched",
    )

    def __init__(
        self, factory: ConnectionFactory, sock: socket.socket, peer: Any, local: Any
    ) -> None:
        settings = factory.settings
        self._factory = factory
        self._last_named: dict[bytes, bytes] | None = None
        self._header_environ: dict[str, Any] | None = None
        self.sock: Any = sock if factory.tls is None else factory.secure(sock, factory.tls, self)
        self.fd = sock.fileno()
        self.http = H1Connection(
            factory.limits,
            parser=settings.http_parser,
            server=factory.server_header,
            date=settings.date_header,
            more=factory.response_lines,
        )
        self.responder = WSGIResponder(factory.adapter, self.http, self)
        client: tuple[str, int] | None = peer[:2] if isinstance(peer, tuple) else None
        self.proxy_reader = factory.worker.proxy_protocol.header_reader(client)
        self.body_rate: BodyRate | None = None
        server = sock.getsockname() if local is None else local
        if isinstance(server, bytes):
            server = server.decode("utf-8", "backslashreplace")
        self._describe(server if isinstance(server, str) else server[:2], client)
        # Neither TLS nor a Unix socket can send corked bytes.
        self._is_tcp = client is not None and factory.tls is None
        self.corked = False
        self.phase = IDLE
        self.watched = 0
        self.eof = False
        self.broken = False
        self.linger = False
        self.idle_time: IdleTime | None = None
        self.request: Request | None = None
        self.body: Any = None
        self.environ: dict[str, Any] = _NO_ENVIRON
        self.admitted: Admitted | None = None
        self.started_ns = 0
        self.unsent: bytes | memoryview = b""
        self.output: OutputBuffer | None = None
        self.claim: list[bool] | None = None
        self.thread = 0
        self.deadline_ns = 0
        self.expires_in(settings.header_timeout)

    def _describe(self, server: tuple[str, int] | str, client: tuple[str, int] | None) -> None:
        """Set the addresses of both ends, for environs, logs and trust in forwarded fields."""
        self._nameless = is_nameless(server)
        scheme = "http" if self._factory.tls is None else "https"
        self._template = self._factory.adapter.template(server, client, scheme)
        self._template["wsgi.early_hints"] = self.responder.early_hints
        self.peer = Peer(client, scheme, (client[0] if client else None) in self._factory.trusted)
        self.peer_name = self.peer.name

    def read_proxy_header(self, data: bytes) -> bytes:
        """Read the PROXY protocol's header from the first bytes. Raises ProtocolError.

        data  the bytes that were read

        Returns the bytes that follow the header; b"" while the header is incomplete.
        """
        assert self.proxy_reader is not None
        found = self.proxy_reader.feed(data)
        if found is None:
            return b""
        self.proxy_reader = None
        header, rest = found
        if header.source is not None:
            self._describe(header.destination or ("", 0), header.source)
        return rest

    def secured(self, facts: TLSFacts) -> None:
        """Note that the TLS handshake is done.

        facts  its results, such as the cipher, for the environs
        """
        self._template.update(facts.environ)

    def begin_body(self) -> None:
        """Begin to store a body. Not called for a body that arrives completely with its head."""
        self.phase = BODY
        self.body = self._factory.spool()
        settings = self._factory.settings
        self.body_rate = BodyRate(settings.body_timeout, settings.body_min_rate, monotonic_ns())

    def store(self, data: bytes) -> None:
        """Store a part of the body. Raises OSError."""
        assert self.body_rate is not None
        self.body.write(data)
        self.deadline_ns = self.body_rate.deadline_ns(monotonic_ns(), len(data))

    def idle_left_s(self, idle_ns: int) -> float:
        """How long to stay open when the idle time is over, in seconds; 0 to close now.

        idle_ns  how long a connection may be idle, in nanoseconds
        """
        if self.idle_time is None:
            self.idle_time = IdleTime(self.fd)
        return self.idle_time.left_s(idle_ns / 1e9, monotonic_ns())

    def expires_in(self, seconds: float) -> None:
        """Set the time limit of this phase, which the poller's sweep enforces.

        seconds  from now on; 0 for no limit
        """
        self.deadline_ns = monotonic_ns() + int(seconds * 1e9) if seconds else 0

    # --- one request ----------------------------------------------------------------------------

    def prepare(self, admitted: Admitted) -> None:
        """Build the environ of a complete request. Raises ProtocolError."""
        request = admitted.request
        self.admitted = admitted
        self.started_ns = admitted.started_ns
        body = self.body
        length = 0
        if body.__class__ is bytes:
            length = len(body)
            self.body = body = io.BytesIO(body) if body else None
        else:
            length = body.tell()
            try:
                body.seek(0)
            except OSError as error:  # `seek` writes buffered bytes, and the disk may be full
                raise refusal(error) from error
        adapter = self._factory.adapter
        named = request.named
        if named is not self._last_named:
            self._last_named = named
            self._header_environ = None
            environ = adapter.environ(self._template, request, body, length)
        else:
            # The parser returns the same object if the fields are the same as in the last request
            # (see http.h1.known_fields). Copying their part of the environ is cheaper than
            # building it.
            if self._header_environ is None:
                self._header_environ = adapter.with_headers(self._template, request)
            environ = adapter.fill(self._header_environ.copy(), request, body, length)
        if admitted.client is not None:
            apply_forwarded(environ, admitted.client)
        if self._nameless:
            name_server(environ)
        self.environ = environ

    def forget(self) -> None:
        """Release the memory of the last request. Called when the connection is idle."""
        self.http.forget()
        self.peer.forget()
        self._last_named = self._header_environ = None

    def run(self) -> None:
        """Call the application, and send its response. Leaves the unsent part in `output`."""
        admission = self._factory.admission
        admitted = self.admitted
        assert admitted is not None
        if admission.hooks is not None:
            admission.announce(admitted)
        rest = self.responder.run(self.environ)
        if rest:
            try:
                if self.output is None and rest.__class__ is bytes:
                    # The common case, a small response: one `send`, and no buffer is made.
                    left = self.send_corked(rest) if self._may_cork() else self.send_some(rest)
                    if left:
                        self._leave_to_poller(left)
                else:
                    self._send_last(rest)
            except ClientDisconnected:
                self.broken = True

        if admitted.announced is not None:
            responder = self.responder
            status = responder.status or self.http.status
            sent = self.http.body_sent
            admission.answered(admitted, status, sent, responder.headers, self.environ)

    def finish_request(self, meter: Meter) -> int:
        """Count and log the request, and release its parts.

        meter  counts the worker's requests

        Returns the time, in monotonic nanoseconds.
        """
        request = self.request
        assert request is not None
        responder = self.responder
        http = self.http
        # Log the address in the environ, as gunicorn does: a middleware such as ProxyFix may have
        # replaced it. The application may also have removed it, or set it to any object.
        remote = self.environ.get("REMOTE_ADDR")
        if type(remote) is not str:
            remote = "-"
        now = meter.end(
            self.started_ns,
            request,
            http.status,
            http.body_sent,
            remote,
            responder.headers,
            self.environ,
        )
        if self.body is not None:
            self.close_body()
        self.request = None
        self.admitted = None
        self.environ = _NO_ENVIRON
        return now

    def close_body(self) -> None:
        """Release the stored body."""
        if self.body is not None and self.body.__class__ is not bytes:
            discard(self.body)
        self.body = None

    # --- sending --------------------------------------------------------------------------------

    def send_some(self, data: bytes | memoryview) -> bytes | memoryview:
        """See WSGITransport."""
        self.corked = False
        try:
            sent = self.sock.send(data)
        except BlockingIOError:
            sent = 0
        except OSError as error:
            self.broken = True
            raise ClientDisconnected(str(error)) from error
        return b"" if sent == len(data) else memoryview(data)[sent:]

    def _may_cork(self) -> bool:
        """Whether the response to the next pipelined request will probably follow at once."""
        return (
            self.http.next_head_waits
            and self._is_tcp
            and monotonic_ns() - self.started_ns < _QUICK_NS
        )

    def send_corked(self, data: bytes | memoryview) -> bytes | memoryview:
        """Send as `send_some` does, but let the kernel wait for more bytes before it sends.

        The next `send_some` ends the wait, and so does `uncork`. Otherwise the kernel waits for up
        to 200 ms (MSG_MORE in send(2)).
        """
        try:
            sent = self.sock.send(data, socket.MSG_MORE)
        except BlockingIOError:
            sent = 0
        except OSError as error:
            self.broken = True
            raise ClientDisconnected(str(error)) from error
        self.corked = True
        return b"" if sent == len(data) else memoryview(data)[sent:]

    def uncork(self) -> None:
        """Make the kernel send what it has kept since `send_corked`."""
        self.corked = False
        try:
            # According to tcp(7), this sends pending output, even if the option was set before.
            self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        except OSError as error:
            log.debug("The connection of %s has ended: %s", self.peer_name, error)

    def send_all(self, data: bytes | memoryview) -> None:
        """See WSGITransport."""
        output = self.output
        if output is None or not output.size():
            data = self.send_some(data)
        if data:
            self._buffer_or_wait(data)
        # In a `sync` worker this sends a heartbeat: a worker that makes progress is not stuck.
        self._factory.worker.progress()

    def finish(self, rest: bytes | FileRegion) -> None:
        """See WSGITransport."""
        if rest:
            self._send_last(rest)
            self._send_before_close()

    def _send_last(self, rest: bytes | memoryview | FileRegion) -> None:
        """Send the last bytes of a response, or leave them to the poller."""
        region: FileRegion | None = None
        if isinstance(rest, FileRegion):
            region = rest
            rest = region.head
        output = self.output
        try:
            if output is None or not output.size():
                rest = self.send_some(rest)
            if rest:
                self._leave_to_poller(rest)
        except ClientDisconnected:
            if region is not None:
                region.close()
            raise
        if region is None:
            return
        if region.count:
            self._buffer().append_file(region)
            self._notify_sender()
        else:
            region.close()

    def _leave_to_poller(self, rest: bytes | memoryview) -> None:
        """Buffer the last bytes of a response for the poller. Waits if they don't fit."""
        if self._buffer().append_last(rest):
            self._notify_sender()
        else:
            self._buffer_or_wait(rest)

    def _send_before_close(self) -> None:
        """Send the buffered bytes before the application's `close` runs, if the client reads soon.

        `close` may take long, and meanwhile a `sync` worker can't send.
        """
        while self.output is not None and self.output.size() and self._wait_for_client(self.output):
            pass

    def _buffer(self) -> OutputBuffer:
        output = self.output
        if output is None:
            output = self.output = OutputBuffer(self._factory.output_space)
        return output

    def _buffer_or_wait(self, data: bytes | memoryview) -> None:
        """Buffer the bytes that the socket did not take.

        Waits if the buffer is full, or if a short wait costs less than using a file.
        """
        output = self._buffer()
        if self.broken:
            raise ClientDisconnected("the client is gone")
        rest: bytes | memoryview = output.append(data, False)
        self._notify_sender()
        while rest and self._wait_for_client(output):
            rest = self._send_or_buffer(output, rest, False)
        if rest:
            rest = self._send_or_buffer(output, rest, True)
        while rest:
            if not self._wait_for_progress(self._factory.settings.send_timeout):
                self.broken = True
                raise ClientDisconnected("the client has stopped reading")
            self._factory.worker.progress()
            rest = self._send_or_buffer(output, rest, True)

    def _send_or_buffer(
        self, output: OutputBuffer, data: bytes | memoryview, spool: bool
    ) -> bytes | memoryview:
        """Send or buffer as much of the data as possible. Returns the remaining data.

        spool  whether the buffer may use the disk
        """
        if not output.size():
            data = self.send_some(data)
        if data:
            data = output.append(data, spool)
            self._notify_sender()
        return data

    def _wait_for_client(self, output: OutputBuffer) -> bool:
        """Wait up to `WAIT_S` for the client to read.

        Returns False if it did not read, or if the response has used up its time for such waits.
        """
        if output.wait_budget_ns <= 0:
            return False
        started = monotonic_ns()
        if not self._wait_for_progress(WAIT_S):
            output.wait_budget_ns = 0
            return False
        output.wait_budget_ns -= monotonic_ns() - started
        return True

    def _notify_sender(self) -> None:
        """Send the buffered bytes in this thread: no other thread would."""
        self.flush_output()

    def _wait_for_progress(self, seconds: float) -> bool:
        """Wait until the client has taken some bytes. Returns False if it took none.

        seconds  how long to wait; 0 for no limit
        """
        poll = select.poll()
        poll.register(self.fd, select.POLLOUT)
        if not poll.poll(seconds * 1000 or None):
            return False
        self.flush_output()
        return True

    def flush_output(self) -> bool:
        """Send as much of the buffer as the socket takes. Returns whether it took any bytes.

        Raises ClientDisconnected.
        """
        output = self.output
        if output is None:
            return False
        try:
            return output.send(self)
        except OSError as error:
            self.broken = True
            output.wake()
            raise ClientDisconnected(str(error)) from error

    def flush(self) -> tuple[bool, bool]:
        """Send more of a finished response.

        Returns whether all of it is sent, and whether this call sent any bytes.

        Raises ClientDisconnected.
        """
        output = self.output
        if output is not None:
            progress = self.flush_output()
            if output.size():
                return False, progress
            self._close_output()
            return True, progress
        before = len(self.unsent)
        self.unsent = self.send_some(self.unsent)
        return not self.unsent, len(self.unsent) < before

    # The methods of output_buffer.OutputSocket.

    def send(self, data: bytes | memoryview) -> int:
        """See output_buffer.OutputSocket."""
        return int(self.sock.send(data))

    def send_file(self, fd: int, offset: int, count: int) -> int:
        """See output_buffer.OutputSocket."""
        count = min(count, 1 << 30)  # sendfile(2) transfers at most 0x7ffff000 bytes in one call
        if self._factory.tls is not None:
            return int(self.sock.sendfile(fd, offset, count))
        return os.sendfile(self.fd, fd, offset, count)

    def abort(self) -> None:
        """End the connection, although a thread may be using it.

        The socket is shut down, but stays open: after a close, another connection could get its
        descriptor, and the thread would write to that connection.
        """
        self.broken = True
        with contextlib.suppress(OSError):
            self.sock.shutdown(socket.SHUT_RDWR)
        if self.output is not None:
            self.output.wake()

    def _close_output(self) -> None:
        if self.output is not None:
            self.output.close()
            self.output = None

    def unread(self) -> bool:
        """Whether the kernel holds unread bytes from the client."""
        return has_unread(self.fd)

    def close(self) -> None:
        """Close the socket, and release the body and the output."""
        self.close_body()
        if self.phase != APP:
            self._close_output()
            # The responder and this object refer to each other. Without these lines, each closed
            # connection would wait for the garbage collector.
            self._template = self.environ = _NO_ENVIRON
            self._header_environ = None
            self.responder.release()
            self.http.close()
        # See net.sockets.end_output for the reason. With TLS this sends a close_notify first.
        try:
            self.sock.shutdown(socket.SHUT_WR)
        except OSError:
            log.debug("The connection of %s has already ended", self.peer_name)
        self.sock.close()


def apply_forwarded(environ: dict[str, Any], client: ClientInfo) -> None:
    """Replace the client's address, the scheme, host and prefix by those that a trusted proxy sent.

    environ  the WSGI environ of the request
    client   the values of the forwarded fields
    """
    if client.address is not None:
        environ["REMOTE_ADDR"], environ["REMOTE_PORT"] = client.address[0], str(client.address[1])
    environ["wsgi.url_scheme"] = client.scheme
    if client.host is not None:
        environ["HTTP_HOST"] = client.host.decode("latin-1")
    if client.prefix:
        environ["SCRIPT_NAME"] = client.prefix + environ["SCRIPT_NAME"]
