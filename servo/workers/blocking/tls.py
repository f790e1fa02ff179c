"""A TLS connection of a blocking worker, with the face of a non-blocking socket.

The poller and its connections use it where they would use the socket, handshake included: `recv`
does it, and says "nothing yet" until it is done. Memory BIOs take one read of the socket for as
many records as it holds, where OpenSSL's own takes two for each.
"""

from __future__ import annotations

import logging
import os
import socket
import ssl
import threading
from typing import TYPE_CHECKING

from servo.http.errors import ProtocolError
from servo.net.certificates import openssl_reason
from servo.net.sockets import WantsWrite
from servo.net.tls_facts import TLSFacts
from servo.workers.accept.plain_http import is_plain_http, plain_http_refusal

if TYPE_CHECKING:
    from typing import Protocol

    from servo.net.tls import TLS

    class Owner(Protocol):
        """The connection that a TLS socket belongs to."""

        proxy_reader: object
        peer_name: str

        def read_proxy_header(self, data: bytes) -> bytes:
            """Take the PROXY protocol's header, which comes before the handshake, off the data."""

        def secured(self, facts: TLSFacts) -> None:
            """The handshake is done."""


log = logging.getLogger("servo.error")

# The most that one record holds (RFC 8446 section 5.1): a read of this size leaves nothing of it.
_RECORD_SIZE = 16384
# How much is encrypted ahead of the socket.
_CHUNK_SIZE = 65536
# What a client may make us say (answers to its key updates) without reading any of it.
_MAX_UNREAD = 65536


class TLSSocket:
    """One connection. At a time one thread may use it, except that any may `close` it or shut it
    down.

    It raises BlockingIOError where a socket would, and OSError (of which ssl.SSLError is one) when
    the connection is of no more use. After a `send` that raised or took a part, the next one is
    expected to come with the rest, as what was encrypted can't be taken back.
    """

    __slots__ = (
        "_closing",
        "_handshaking",
        "_incoming",
        "_lock",
        "_outgoing",
        "_owner",
        "_socket",
        "_tls",
        "_unsent",
        "_unsent_plaintext",
        "_wrapped",
    )

    def __init__(self, sock: socket.socket, tls: TLS, owner: Owner) -> None:
        self._socket = sock
        self._tls = tls
        self._owner = owner
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self._wrapped = tls.context.wrap_bio(self._incoming, self._outgoing, server_side=True)
        self._handshaking = True
        self._closing = False
        self._unsent = b""  # encrypted, and not taken by the socket
        self._unsent_plaintext: bytes | memoryview | None = None  # of which this is the plaintext
        self._lock = threading.Lock()  # OpenSSL's objects bear one thread at a time

    def fileno(self) -> int:
        """The socket's descriptor."""
        return self._socket.fileno()

    # --- reading --------------------------------------------------------------------------------

    def recv(self, size: int) -> bytes:
        """All that one read of the socket holds; b"" at the end, with or without a close_notify."""
        if self._unsent and not self._closing and not self._flush():
            raise WantsWrite
        data = self._socket.recv(size)
        if self._closing:
            return data  # it only counts that there is some
        if self._handshaking:
            return self._continue_handshake(data)
        if not data:
            return b""
        self._incoming.write(data)
        return self._decrypt()

    def _continue_handshake(self, data: bytes) -> bytes:
        """Go on with the handshake."""
        owner = self._owner
        if not data:
            raise self._handshake_error("it closed the connection")
        if owner.proxy_reader is not None:
            try:
                data = owner.read_proxy_header(data)
            except ProtocolError as error:
                raise self._handshake_error(str(error)) from error
        self._incoming.write(data)
        try:
            self._wrapped.do_handshake()
        except ssl.SSLWantReadError:
            raise (BlockingIOError if self._flush() else WantsWrite) from None
        except ssl.SSLError as error:
            if is_plain_http(error):
                plain_http_refusal.send(self._socket, owner.peer_name or "A client")
            else:
                self._flush()  # the alert that tells the client why
            raise self._handshake_error(openssl_reason(error)) from error
        self._handshaking = False
        owner.secured(TLSFacts(self._tls, self._wrapped))
        return self._decrypt()

    def _handshake_error(self, reason: str) -> ConnectionError:
        text = f"TLS handshake of {self._owner.peer_name or 'a client'} failed: {reason}"
        log.debug("%s", text)
        return ConnectionError(text)

    def _decrypt(self) -> bytes:
        pieces = []
        incoming = self._incoming
        try:
            data = self._wrapped.read(_RECORD_SIZE)
            while data:
                pieces.append(data)
                if not incoming.pending:
                    break
                data = self._wrapped.read(_RECORD_SIZE)
            else:
                # A close_notify: no end of the connection itself has to come with it. Now the
                # poller is told of one.
                self._socket.shutdown(socket.SHUT_RD)
                return b"".join(pieces)
        except ssl.SSLWantReadError:
            pass
        if self._outgoing.pending and not self._flush() and not pieces:
            raise WantsWrite
        if not pieces:
            raise BlockingIOError
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    # --- writing --------------------------------------------------------------------------------

    def send(self, data: bytes | memoryview) -> int:
        """Encrypt and send; how many bytes of it the socket has taken."""
        with self._lock:
            size = len(data)
            if size <= _CHUNK_SIZE and not self._unsent and self._unsent_plaintext is None:
                self._wrapped.write(data)
                if self._flush():
                    return size
                self._unsent_plaintext = data
                raise BlockingIOError
            return self._send_chunks(memoryview(data))

    def _send_chunks(self, data: memoryview) -> int:
        sent = self._send_rest(data)
        while sent < len(data):
            chunk = data[sent : sent + _CHUNK_SIZE]
            self._wrapped.write(chunk)
            if not self._flush():
                self._unsent_plaintext = chunk
                break
            sent += len(chunk)
        if not sent:
            raise BlockingIOError
        return sent

    def _send_rest(self, data: memoryview) -> int:
        """Send what was left; how much of `data` that was."""
        if self._unsent and not self._flush():
            raise BlockingIOError
        held, self._unsent_plaintext = self._unsent_plaintext, None
        if held is None:
            return 0
        size = min(len(held), len(data))
        # Something else comes when the rest was given up, as that of an interim response.
        if bytes(data[:size]) != bytes(held[:size]):
            return 0
        # The rest may come in smaller pieces than before.
        if size < len(held):
            self._unsent_plaintext = held[size:]
        return size

    def sendfile(self, fd: int, offset: int, count: int) -> int:
        """As os.sendfile with this as its target: a block of the file, read and encrypted."""
        # Not read again: the file may have changed, but what is encrypted is on its way.
        block = self._unsent_plaintext or os.pread(fd, min(count, _CHUNK_SIZE), offset)
        block = block[:count]
        return self.send(block) if block else 0

    def _flush(self) -> bool:
        """Give the socket what is encrypted; whether it has taken all."""
        data = self._outgoing.read()
        if self._unsent:
            data = self._unsent + data
        if not data:
            return True
        try:
            sent = self._socket.send(data)
        except BlockingIOError:
            sent = 0
        if sent == len(data):
            self._unsent = b""
            return True
        self._unsent = data[sent:]
        if len(self._unsent) > _MAX_UNREAD + 2 * _CHUNK_SIZE:
            raise ConnectionError("the client reads nothing of what it asks for")
        return False

    # --- closing --------------------------------------------------------------------------------

    def shutdown(self, how: int) -> None:
        """As a socket's; the client is told that no more will come (close_notify)."""
        if how == socket.SHUT_WR:
            self._send_close_notify()
        self._socket.shutdown(how)

    def close(self) -> None:
        """Close the socket."""
        self._send_close_notify()
        self._socket.close()

    def _send_close_notify(self) -> None:
        if self._handshaking or self._closing or self._unsent:
            return
        if not self._lock.acquire(blocking=False):
            return  # a thread is sending: it is being cut off
        try:
            self._closing = True
            self._wrapped.unwrap()
        except ssl.SSLWantReadError:
            pass  # ours is said; the client's is not waited for
        except ssl.SSLError as error:
            log.debug("TLS close: %s", error)
        finally:
            try:
                self._flush()
            except OSError as error:
                log.debug("TLS close: %s", error)
            self._lock.release()
