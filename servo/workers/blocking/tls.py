"""A TLS connection of a blocking worker, with the methods of a non-blocking socket.

The poller and its connections use a `TLSSocket` like a plain socket. They need not know about the
handshake: `recv` continues it, and raises BlockingIOError until it is done.

OpenSSL does not use the socket itself. Two `ssl.MemoryBIO` objects hold encrypted bytes in memory:
this class writes received bytes into one of them, and sends the bytes that it finds in the other.
So one `recv` reads as many records as have arrived. OpenSSL would call read(2) twice for each
record: for its header and for the rest.
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
        """The part of the connection that a TLS socket uses."""

        proxy_reader: object
        peer_name: str

        def read_proxy_header(self, data: bytes) -> bytes:
            """Remove the PROXY protocol's header from the data. It comes before the handshake."""

        def secured(self, facts: TLSFacts) -> None:
            """Note that the handshake is done."""


log = logging.getLogger("servo.error")

# A record has at most this many bytes of plaintext (RFC 8446 section 5.1), so one read returns all
# of it.
_RECORD_SIZE = 16384
# The most bytes to encrypt before we know how many the socket takes.
_CHUNK_SIZE = 65536
# A client can make OpenSSL write although the application sends nothing: by key updates that ask
# for an answer (RFC 8446 section 4.6.3). If the client does not read the answers, we keep at most
# this many bytes of them.
_MAX_UNREAD = 65536


class TLSSocket:
    """One TLS connection. One thread at a time may use it, but any thread may close it or shut it
    down.

    sock   the accepted socket
    tls    the certificates and settings
    owner  the connection

    The methods raise BlockingIOError where a socket's would, and OSError (ssl.SSLError is a
    subclass) if the connection can't be used any more. If `send` raises BlockingIOError or takes
    only a part of the data, the next call must begin with the rest: encrypted bytes can't be taken
    back.
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
        self._unsent = b""  # encrypted bytes that the socket did not take
        self._unsent_plaintext: bytes | memoryview | None = None  # the plaintext of `_unsent`
        self._lock = threading.Lock()  # OpenSSL's objects allow one thread at a time

    def fileno(self) -> int:
        """The socket's descriptor."""
        return self._socket.fileno()

    # --- reading --------------------------------------------------------------------------------

    def recv(self, size: int) -> bytes:
        """Read the socket once, and return all that can be decrypted.

        size  the most encrypted bytes to read

        Returns b"" at the end of the connection, with or without a close_notify.
        """
        if self._unsent and not self._closing and not self._flush():
            raise WantsWrite
        data = self._socket.recv(size)
        if self._closing:
            return data  # still encrypted: the caller is lingering, and will discard it
        if self._handshaking:
            return self._continue_handshake(data)
        if not data:
            return b""
        self._incoming.write(data)
        return self._decrypt()

    def _continue_handshake(self, data: bytes) -> bytes:
        """Continue the handshake with received bytes. Returns the plaintext that follows it."""
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
                self._flush()  # sends OpenSSL's alert, which tells the client the reason
            raise self._handshake_error(openssl_reason(error)) from error
        self._handshaking = False
        owner.secured(TLSFacts(self._tls, self._wrapped))
        return self._decrypt()

    def _handshake_error(self, reason: str) -> ConnectionError:
        text = f"TLS handshake with {self._owner.peer_name or 'a client'} failed: {reason}"
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
                # The client has sent a close_notify, but need not close the connection (RFC 8446
                # section 6.1). Shut down reading, so that the poller reads the end of the stream.
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
        """Encrypt and send. Returns how many bytes of the data were sent."""
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
        """Send the rest of the last call's data. Returns how many bytes of `data` were sent."""
        if self._unsent and not self._flush():
            raise BlockingIOError
        held, self._unsent_plaintext = self._unsent_plaintext, None
        if held is None:
            return 0
        size = min(len(held), len(data))
        # The data differs if the caller has given up the rest, for example of an interim response.
        if bytes(data[:size]) != bytes(held[:size]):
            return 0
        # An OutputBuffer may pass the rest in smaller pieces.
        if size < len(held):
            self._unsent_plaintext = held[size:]
        return size

    def sendfile(self, fd: int, offset: int, count: int) -> int:
        """Like os.sendfile: read a block of the file, encrypt it, and send it.

        fd      the file's descriptor
        offset  in bytes
        count   how many bytes to send at most

        Returns how many bytes were sent; 0 at the end of the file.
        """
        # If a block is already encrypted, don't read it again: the file may have changed.
        block = self._unsent_plaintext or os.pread(fd, min(count, _CHUNK_SIZE), offset)
        block = block[:count]
        return self.send(block) if block else 0

    def _flush(self) -> bool:
        """Send the encrypted bytes. Returns whether the socket has taken all of them."""
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
            raise ConnectionError("the client does not read the answers to its TLS key updates")
        return False

    # --- closing --------------------------------------------------------------------------------

    def shutdown(self, how: int) -> None:
        """Like a socket's `shutdown`. Before the write side is shut down, a close_notify is sent.

        how  socket.SHUT_WR and the like
        """
        if how == socket.SHUT_WR:
            self._send_close_notify()
        self._socket.shutdown(how)

    def close(self) -> None:
        """Send a close_notify, if possible, and close the socket."""
        self._send_close_notify()
        self._socket.close()

    def _send_close_notify(self) -> None:
        if self._handshaking or self._closing or self._unsent:
            return
        if not self._lock.acquire(blocking=False):
            return  # another thread is sending, and `abort` has already cut the connection
        try:
            self._closing = True
            self._wrapped.unwrap()
        except ssl.SSLWantReadError:
            pass  # our close_notify is written; don't wait for the client's
        except ssl.SSLError as error:
            log.debug("TLS close: %s", error)
        finally:
            try:
                self._flush()
            except OSError as error:
                log.debug("TLS close: %s", error)
            self._lock.release()
