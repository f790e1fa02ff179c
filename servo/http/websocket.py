"""The server's side of WebSocket, without I/O: RFC 6455, and permessage-deflate (RFC 7692).

A WebSocket begins as an HTTP request, which `headers` has checked. `read_handshake` checks the
fields of the handshake. Then a `WebSocketConnection` turns bytes into messages, and messages into
bytes. A message is one frame or several. Each frame has a header of 2 to 14 bytes and a payload. A
client masks the payload.

The Sans-I/O `Protocol` of the `websockets` library reads and makes the frames. In a measurement it
was 2.5 times as fast as wsproto (docs/performance.md).
"""

from __future__ import annotations

import base64
import binascii
import re
import struct
from codecs import getincrementaldecoder
from typing import TYPE_CHECKING, Any

from websockets.exceptions import InvalidHeaderFormat, InvalidState, NegotiationError
from websockets.exceptions import ProtocolError as FrameError
from websockets.extensions import Extension
from websockets.extensions.permessage_deflate import ServerPerMessageDeflateFactory
from websockets.frames import Frame, Opcode
from websockets.headers import build_extension, parse_extension
from websockets.protocol import SERVER, Protocol, State
from websockets.typing import ExtensionName
from websockets.utils import accept_key

from servo.http.errors import LocalProtocolError, ProtocolError
from servo.http.h1.field_lines import TOKEN

if TYPE_CHECKING:
    from codecs import IncrementalDecoder

    from servo.http.events import Headers

_VERSION = b"13"

# Two codes that are never sent (RFC 6455 section 7.4.1). The first stands for a close frame without
# a code, the second for a connection that ended without a close frame.
CLOSE_NO_CODE = 1005
CLOSE_ABNORMAL = 1006
# Codes that the server itself sends (RFC 6455 section 7.4.1 and the IANA registry).
CLOSE_NORMAL = 1000
CLOSE_INTERNAL_ERROR = 1011
CLOSE_RESTARTING = 1012

_TOKEN = re.compile(TOKEN.pattern.decode("ascii"))
_PREFIX = b"sec-websocket-"
_ONCE = {
    b"sec-websocket-key": "Sec-WebSocket-Key",
    b"sec-websocket-version": "Sec-WebSocket-Version",
}

# zlib's window of 4 KiB, with a hash table of matching size. A connection needs about 32 KiB to
# compress and 11 KiB to decompress; with zlib's defaults it would need 300 KiB. A client may refuse
# to limit its own window; then its connection needs 32 KiB more.
_WINDOW_BITS = 12
_MEMORY_LEVEL = 5
_TEXT, _BINARY = Opcode.TEXT, Opcode.BINARY
# For a message of this many bytes or more, sending its head separately costs less than copying it.
_APART = 32768
_decoder = getincrementaldecoder("utf-8")


class Handshake:
    """A valid request for a WebSocket.

    accept        the value of Sec-WebSocket-Accept; b"" over HTTP/2, which has none
    subprotocols  the client's offers, in its order of preference
    deflate       the value of Sec-WebSocket-Extensions and the extension; None: no compression
    """

    __slots__ = ("_accept", "_deflate", "subprotocols")

    def __init__(
        self, accept: bytes, subprotocols: list[str], deflate: tuple[bytes, Extension] | None
    ) -> None:
        self._accept = accept
        self._deflate = deflate
        self.subprotocols = subprotocols

    def fields(self, subprotocol: str | None, extra: Headers) -> Headers:
        """The header fields of the response that accepts the request.

        subprotocol  the application's choice among the offers, or None
        extra        the application's own fields

        Raises `LocalProtocolError` for fields that only the server sends, and for a subprotocol
        that was not offered: a client would fail the connection (RFC 6455 section 4.1).
        """
        for name, _ in extra:
            if bytes(name).lower().startswith(_PREFIX):
                raise LocalProtocolError(f"{name!r:.80} is not the application's to send")
        fields: Headers = []
        if self._accept:
            fields.append((b"sec-websocket-accept", self._accept))
        if subprotocol is not None:
            if subprotocol not in self.subprotocols:
                raise LocalProtocolError(
                    f"the client did not offer the subprotocol {subprotocol!r:.80}"
                )
            fields.append((b"sec-websocket-protocol", subprotocol.encode("ascii")))
        if self._deflate is not None:
            fields.append((b"sec-websocket-extensions", self._deflate[0]))
        return fields + extra

    def connection(self, max_message_size: int) -> WebSocketConnection:
        """Make the connection that begins after the response. Call this once.

        max_message_size  as for `WebSocketConnection`
        """
        extension = None if self._deflate is None else self._deflate[1]
        return WebSocketConnection(max_message_size, extension)


def read_handshake(headers: Headers, *, deflate: bool = True, key: bool = True) -> Handshake:
    """Check the fields of a request for a WebSocket (RFC 6455 section 4.2.1).

    headers  the request's headers
    deflate  whether to accept an offer of permessage-deflate
    key      whether Sec-WebSocket-Key is required: true except over HTTP/2 (RFC 8441 section 5)

    Raises `ProtocolError`, with status 426 for another version of the protocol, otherwise 400.
    """
    given: dict[bytes, list[bytes]] = {}
    for name, value in headers:
        if name.startswith(_PREFIX):
            given.setdefault(name, []).append(value)
    for name, written in _ONCE.items():
        if len(given.get(name, ())) > 1:
            raise ProtocolError(400, f"repeated {written}")
    version = given.get(b"sec-websocket-version", [b""])[0]
    if not version:
        raise ProtocolError(400, "missing Sec-WebSocket-Version")
    if version != _VERSION:
        raise ProtocolError(426, "unsupported WebSocket version")
    accept = _accept(given.get(b"sec-websocket-key", [b""])[0]) if key else b""
    subprotocols = _subprotocols(given.get(b"sec-websocket-protocol", []))
    offers = given.get(b"sec-websocket-extensions", [])
    return Handshake(accept, subprotocols, _agree(offers) if deflate else None)


def _accept(key: bytes) -> bytes:
    try:
        nonce = base64.b64decode(key, validate=True)
    except binascii.Error:
        nonce = b""
    if len(nonce) != 16:
        raise ProtocolError(400, "missing or invalid Sec-WebSocket-Key")
    return accept_key(key.decode("ascii")).encode("ascii")


def _subprotocols(values: list[bytes]) -> list[str]:
    names = [name.strip(" \t") for name in b",".join(values).decode("latin-1").split(",")]
    names = [name for name in names if name]
    if not all(_TOKEN.fullmatch(name) for name in names):
        raise ProtocolError(400, "invalid Sec-WebSocket-Protocol")
    return names


def _agree(values: list[bytes]) -> tuple[bytes, Extension] | None:
    """Accept an offer of compression. Returns the field's value and the extension, or None."""
    if not values:
        return None
    try:
        offers = parse_extension(b",".join(values).decode("latin-1"))
    except InvalidHeaderFormat:
        raise ProtocolError(400, "invalid Sec-WebSocket-Extensions") from None
    factory = ServerPerMessageDeflateFactory(
        server_max_window_bits=_WINDOW_BITS,
        client_max_window_bits=_WINDOW_BITS,
        compress_settings={"memLevel": _MEMORY_LEVEL},
    )
    for name, parameters in offers:
        if name == factory.name:
            try:
                agreed, extension = factory.process_request_params(parameters, [])
            except NegotiationError:
                continue  # try the next offer (RFC 7692 section 5.1)
            return build_extension([(factory.name, agreed)]).encode("ascii"), extension
    return None


class Closed:
    """The last event of a connection.

    code    the code of the first close frame, from either side; 1005 if it had no code, 1006 if
            there was no close frame
    reason  the reason in that frame
    clean   whether both sides have sent a close frame
    """

    __slots__ = ("clean", "code", "reason")

    def __init__(self, code: int, reason: str, clean: bool) -> None:
        self.code = code
        self.reason = reason
        self.clean = clean


class WebSocketConnection:
    """One connection after its handshake. A message is a str or a bytes object.

    max_message_size  the maximum size of a decompressed message, in bytes; 0: no limit. A larger
                      one ends the connection with code 1009
    deflate           the agreed compression, or None
    """

    __slots__ = ("_closed", "_deflates", "_parts", "_protocol", "_text", "_texts")

    def __init__(self, max_message_size: int, deflate: Extension | None = None) -> None:
        self._protocol = Protocol(SERVER, max_size=max_message_size or None)
        self._deflates = deflate is not None
        self._text = _TextCheck(self._protocol)
        # Incoming frames pass through this list from its end to its beginning, so text is
        # decompressed before it is checked.
        self._protocol.extensions = [self._text, *([deflate] if deflate else [])]
        # The payload so far of a message with several frames. The frames are joined as they arrive,
        # so a million tiny frames need no more memory than the message.
        self._parts: bytearray | None = None
        self._texts = False
        self._closed = False

    @property
    def closing(self) -> bool:
        """Whether a close frame was sent: messages may still arrive, but none can be sent."""
        return self._protocol.state is not State.OPEN

    @property
    def over(self) -> bool:
        """Whether the connection is over. If so, send `data_to_send` and close the transport."""
        return self._protocol.eof_sent

    def receive_data(self, data: bytes | memoryview) -> list[str | bytes | Closed]:
        """Take received bytes. Returns the complete messages, and `Closed` at the end.

        data  the bytes that were read

        Send `data_to_send` afterwards: it has the answers to pings and to a close frame.
        """
        protocol = self._protocol
        protocol.receive_data(data)  # type: ignore[arg-type]  # a memoryview works, too
        events: list[str | bytes | Closed] = []
        texts = self._text.messages
        # These are only frames, because the library does not parse the handshake here.
        frames: list[Any] = protocol.events_received()
        for frame in frames:
            opcode = frame.opcode
            if opcode is _TEXT and frame.fin:
                events.append(texts.pop(0))
            elif opcode is _BINARY and frame.fin:
                events.append(bytes(frame.data))
            elif opcode < Opcode.CLOSE:
                self._add_fragment(frame, events)
        if protocol.eof_sent and not self._closed:
            events.append(self._end())
        return events

    def receive_eof(self) -> Closed | None:
        """Note that the client sends no more. Returns `Closed`, unless it was returned before."""
        if not self._closed:
            self._protocol.receive_eof()
            return self._end()
        return None

    def send(self, message: str | bytes) -> bytes | tuple[bytes, bytes]:
        """Frame a message. Raises `LocalProtocolError` after a close frame.

        message  a str or bytes

        Returns the bytes. For a large message, returns head and payload separately, because joining
        them would cost more than sending them separately.
        """
        protocol = self._protocol
        if protocol.state is not State.OPEN:
            raise LocalProtocolError("a message after the close of the connection")
        is_text = message.__class__ is str
        data: bytes = message.encode() if is_text else message  # type: ignore[assignment,union-attr]
        if not self._deflates:
            head = _head(_TEXT if is_text else _BINARY, len(data))
            return head + data if len(data) < _APART else (head, bytes(data))
        if is_text:
            protocol.send_text(data)
        else:
            protocol.send_binary(data)
        return b"".join(protocol.data_to_send())

    def ping(self) -> bytes:
        """Frame a ping."""
        self._protocol.send_ping(b"")
        return b"".join(self._protocol.data_to_send())

    def close(self, code: int, reason: str = "") -> bytes:
        """Frame a close frame. Raises `LocalProtocolError` for an invalid code or reason.

        code    a code of RFC 6455 section 7.4
        reason  a text of at most 123 bytes in UTF-8
        """
        try:
            self._protocol.send_close(code, reason)
        except (FrameError, InvalidState) as error:
            raise LocalProtocolError(f"can't close with {code!r:.20}: {error}") from error
        return b"".join(self._protocol.data_to_send())

    def fail(self, code: int, reason: str) -> bytes:
        """Frame a close frame, and end the connection without waiting for the client's.

        code, reason  as for `close`
        """
        self._protocol.fail(code, reason)
        return b"".join(self._protocol.data_to_send())

    def data_to_send(self) -> bytes:
        """The frames to send after `receive_data`: answers to pings and a close frame."""
        return b"".join(self._protocol.data_to_send())

    def _add_fragment(self, frame: Frame, events: list[str | bytes | Closed]) -> None:
        if self._parts is None:
            self._parts = bytearray()
            self._texts = frame.opcode is _TEXT
        self._parts += frame.data
        if frame.fin:
            events.append(self._parts.decode() if self._texts else bytes(self._parts))
            self._parts = None

    def _end(self) -> Closed:
        self._closed = True
        protocol = self._protocol
        sent = protocol.close_sent
        if sent is None:
            return Closed(CLOSE_ABNORMAL, "", clean=False)
        clean = protocol.close_rcvd is not None and protocol.parser_exc is None
        return Closed(int(sent.code), sent.reason, clean)


def _head(opcode: int, length: int) -> bytes:
    """The head of a frame with a whole message (RFC 6455 section 5.2).

    The `websockets` library would take three times as long, and copy the message once more.
    """
    if length < 126:
        return bytes((0x80 | opcode, length))
    if length < 65536:
        return _HEAD_16(0x80 | opcode, 126, length)
    return _HEAD_64(0x80 | opcode, 127, length)


_HEAD_16 = struct.Struct("!BBH").pack
_HEAD_64 = struct.Struct("!BBQ").pack


class _TextCheck(Extension):
    """Decodes the text in each frame as it arrives, to check that it is UTF-8.

    It has the interface of an extension, because an extension can refuse a frame: the parser turns
    the error into code 1007. A check after the parser would be too late: the parser may already
    have answered a later close frame.

    messages  the decoded texts of frames with whole messages
    """

    name = ExtensionName("")

    def __init__(self, protocol: Protocol) -> None:
        self._protocol = protocol
        self.messages: list[str] = []
        self._fragments: IncrementalDecoder | None = None

    def decode(self, frame: Frame, *, max_size: int | None = None) -> Frame:
        """Check a received frame. `max_size` is for extensions that decompress."""
        if frame.opcode is _TEXT:
            if frame.fin:
                self.messages.append(str(frame.data, "utf-8"))
            else:
                self._fragments = _decoder()
                self._fragments.decode(frame.data)
        elif frame.opcode is Opcode.CONT and self._fragments is not None:
            self._fragments.decode(frame.data, frame.fin)
            if frame.fin:
                self._fragments = None
        elif frame.opcode is Opcode.CLOSE:
            # A close frame may come between the frames of a message (RFC 6455 section 5.4). Without
            # this line, the parser would report an error because of the incomplete message.
            self._protocol.current_size = None
        return frame

    def encode(self, frame: Frame) -> Frame:
        """Return a frame to send unchanged."""
        return frame
