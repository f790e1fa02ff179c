"""WebSocket as a server sees it, without I/O: RFC 6455, and permessage-deflate (RFC 7692).

`read_handshake` judges a request that asks for a WebSocket; what every request must obey was judged
in `headers` before. Then a `WebSocketConnection` turns bytes into messages and messages into bytes.
Frames are read and made by the `websockets` library's Sans-I/O `Protocol`, which measured 2.5 times
faster than wsproto's (docs/performance.md).
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

if TYPE_CHECKING:
    from codecs import IncrementalDecoder

    from servo.http.events import Headers

VERSION = b"13"

# Codes that a close frame can't carry: nobody sent one with a code, or nobody sent one at all.
NO_CODE = 1005
ABNORMAL = 1006
# Codes that the server itself sends (RFC 6455 section 7.4.1 and the IANA registry).
NORMAL = 1000
INTERNAL_ERROR = 1011
RESTARTING = 1012

_TOKEN = re.compile(r"[-!#$%&'*+.^_`|~0-9A-Za-z]+")
_PREFIX = b"sec-websocket-"
_ONCE = {
    b"sec-websocket-key": "Sec-WebSocket-Key",
    b"sec-websocket-version": "Sec-WebSocket-Version",
}

# A window of 4 KiB and a hash table to match: about 32 KiB to compress, and 11 KiB to decompress,
# for each connection; zlib's own defaults are 300 KiB together. A client that does not let its
# window be limited (it must say so) costs 32 KiB more.
_WINDOW_BITS = 12
_MEMORY_LEVEL = 5
_TEXT, _BINARY = Opcode.TEXT, Opcode.BINARY
# Bytes of a message from which its head is better sent apart than joined to a copy of it.
_APART = 32768
_decoder = getincrementaldecoder("utf-8")


class Handshake:
    """A valid request for a WebSocket.

    subprotocols  what the client offers, in its order of preference
    """

    __slots__ = ("_accept", "_deflate", "subprotocols")

    def __init__(
        self, accept: bytes, subprotocols: list[str], deflate: tuple[bytes, Extension] | None
    ) -> None:
        self._accept = accept
        self._deflate = deflate
        self.subprotocols = subprotocols

    def fields(self, subprotocol: str | None, extra: Headers) -> Headers:
        """The header fields of the answer that accepts it.

        subprotocol  the application's choice among what was offered
        extra        the application's own fields

        Raises `LocalProtocolError`: a client has to fail a connection whose answer holds something
        that it did not ask for (RFC 6455 section 4.1).
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
        """The connection that begins once the answer is sent. To be called once."""
        extension = None if self._deflate is None else self._deflate[1]
        return WebSocketConnection(max_message_size, extension)


def read_handshake(headers: Headers, *, deflate: bool = True, key: bool = True) -> Handshake:
    """Judge the fields of a request for a WebSocket (RFC 6455 section 4.2.1).

    deflate  whether permessage-deflate may be agreed on
    key      whether Sec-WebSocket-Key is asked for; it is not over HTTP/2 (RFC 8441 section 5)

    Raises `ProtocolError`: 426 for another version of the protocol, otherwise 400.
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
    if version != VERSION:
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
    """What the response says of compression, and what does it; None without an offer to accept."""
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
                continue  # an offer that can't be accepted is passed over (RFC 7692 section 5.1)
            return build_extension([(factory.name, agreed)]).encode("ascii"), extension
    return None


class Closed:
    """The last event of a connection.

    code, reason  of the close frame that ended it, whichever side began; 1005 where that had none,
                  1006 where there was no close frame
    clean         whether both sides have said that they close
    """

    __slots__ = ("clean", "code", "reason")

    def __init__(self, code: int, reason: str, clean: bool) -> None:
        self.code = code
        self.reason = reason
        self.clean = clean


class WebSocketConnection:
    """One connection after its handshake. A message is a str or a bytes object.

    max_message_size  bytes of a message, decompressed; 0: no limit. More ends it with 1009
    deflate           the extension that was agreed on

    closing  a close frame was sent: messages may still come, none can be sent
    over     nothing more comes in; close the transport when `data_to_send` is out
    """

    __slots__ = ("_closed", "_deflates", "_parts", "_protocol", "_text", "_texts")

    def __init__(self, max_message_size: int, deflate: Extension | None = None) -> None:
        self._protocol = Protocol(SERVER, max_size=max_message_size or None)
        self._deflates = deflate is not None
        self._text = _TextCheck(self._protocol)
        # Incoming frames go through the list from its end: decompressed first, then checked.
        self._protocol.extensions = [self._text, *([deflate] if deflate else [])]
        # The frames so far of a message in several. Joined at once: an endless number of tiny ones
        # must not take more memory than the message that they make.
        self._parts: bytearray | None = None
        self._texts = False
        self._closed = False

    @property
    def closing(self) -> bool:
        return self._protocol.state is not State.OPEN

    @property
    def over(self) -> bool:
        return self._protocol.eof_sent

    def receive_data(self, data: bytes | memoryview) -> list[str | bytes | Closed]:
        """Take what was read; return the messages that are complete. Pings are answered.

        A `Closed` is the last event. After this there may be `data_to_send`.
        """
        protocol = self._protocol
        protocol.receive_data(data)  # type: ignore[arg-type]  # whatever a bytearray can grow by
        events: list[str | bytes | Closed] = []
        texts = self._text.messages
        # Frames only: no handshake comes this way.
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
        """The peer sends no more. The last event, if that has not come before."""
        if not self._closed:
            self._protocol.receive_eof()
            return self._end()
        return None

    def send(self, message: str | bytes) -> bytes | tuple[bytes, bytes]:
        """The bytes of a message; in two pieces where to join them would cost more than to send
        them apart. Raises `LocalProtocolError` once a close frame was sent.
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
        """The bytes of a ping."""
        self._protocol.send_ping(b"")
        return b"".join(self._protocol.data_to_send())

    def close(self, code: int, reason: str = "") -> bytes:
        """The bytes of a close frame. Raises `LocalProtocolError` for what that can't hold."""
        try:
            self._protocol.send_close(code, reason)
        except (FrameError, InvalidState) as error:
            raise LocalProtocolError(f"can't close with {code!r:.20}: {error}") from error
        return b"".join(self._protocol.data_to_send())

    def fail(self, code: int, reason: str) -> bytes:
        """End the connection without waiting for the peer; the bytes of the close frame."""
        self._protocol.fail(code, reason)
        return b"".join(self._protocol.data_to_send())

    def data_to_send(self) -> bytes:
        """What `receive_data` has to answer."""
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
            return Closed(ABNORMAL, "", clean=False)
        clean = protocol.close_rcvd is not None and protocol.parser_exc is None
        return Closed(int(sent.code), sent.reason, clean)


def _head(opcode: int, length: int) -> bytes:
    """The head of a frame that is a whole message (RFC 6455 section 5.2).

    The library's way takes three times as long, and copies the message once more.
    """
    if length < 126:
        return bytes((0x80 | opcode, length))
    if length < 65536:
        return _HEAD_16(0x80 | opcode, 126, length)
    return _HEAD_64(0x80 | opcode, 127, length)


_HEAD_16 = struct.Struct("!BBH").pack
_HEAD_64 = struct.Struct("!BBQ").pack


class _TextCheck(Extension):
    """Decodes text as its frames come: an extension is where a frame can still be refused.

    Later would be too late for the right answer, since the parser may have answered a close frame
    behind it by then. The parser makes 1007 of the error.

    messages  the texts of frames that are whole messages
    """

    name = ExtensionName("")

    def __init__(self, protocol: Protocol) -> None:
        self._protocol = protocol
        self.messages: list[str] = []
        self._fragments: IncrementalDecoder | None = None

    def decode(self, frame: Frame, *, max_size: int | None = None) -> Frame:
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
            # It may come between the frames of a message (RFC 6455 section 5.4), which then is
            # incomplete; the parser would take that for an error of the client.
            self._protocol.current_size = None
        return frame

    def encode(self, frame: Frame) -> Frame:
        return frame
