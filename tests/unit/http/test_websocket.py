"""WebSocket in bytes: the rules of the handshake, frames in any pieces, and every failure."""

from __future__ import annotations

import zlib
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from websockets.extensions.permessage_deflate import PerMessageDeflate
from websockets.frames import Close, Frame, Opcode

from servo.http.errors import LocalProtocolError, ProtocolError
from servo.http.events import Refused, Request
from servo.http.h1.connection import PARSERS, H1Connection
from servo.http.limits import Limits
from servo.http.websocket import Closed, WebSocketConnection, read_handshake

KEY = b"dGhlIHNhbXBsZSBub25jZQ=="
ACCEPT = b"s3pPLMBiTxaQ9kYGzzhZRbK+xOo="  # the example of RFC 6455 section 1.3
MAX = 1 << 20

TEXT, BINARY, CONT = Opcode.TEXT, Opcode.BINARY, Opcode.CONT
PING, PONG, CLOSE = Opcode.PING, Opcode.PONG, Opcode.CLOSE


def fields(**changes):
    """The fields of a handshake: `key=None` leaves one out."""
    values = {"key": KEY, "version": b"13", **changes}
    return [
        (b"sec-websocket-" + name.encode(), value)
        for name, value in values.items()
        if value is not None
    ]


def frame(opcode, data=b"", fin=True, mask=True, deflate=None):
    """The bytes of a client's frame."""
    extensions = [deflate] if deflate else []
    return Frame(opcode, data, fin).serialize(mask=mask, extensions=extensions)


def compressed_frame(opcode, data):
    """A frame that says it is compressed."""
    wire = bytearray(frame(opcode, data))
    wire[0] |= 0x40
    return bytes(wire)


def close_frame(code, reason=""):
    return frame(CLOSE, Close(code, reason).serialize())


def raw_frame(head1, payload=b"", masked=True):
    """A frame that a proper client would not make."""
    mask = b"\0\0\0\0" if masked else b""
    return bytes([head1, (0x80 if masked else 0) | len(payload)]) + mask + payload


def said(data):
    """The code of the close frame at the end of what the server sent."""
    assert data[0] == 0x88, data
    assert len(data) == 2 + data[1]
    return int.from_bytes(data[2:4], "big") if data[1] else None


class Server:
    """A connection that has its own bytes collected."""

    def __init__(self, max_message_size=MAX, deflate=None):
        self.connection = WebSocketConnection(max_message_size, deflate)
        self.events = []
        self.sent = b""

    def feed(self, *pieces):
        for piece in pieces:
            for event in self.connection.receive_data(piece):
                if isinstance(event, Closed):
                    event = (event.code, event.reason, event.clean)
                self.events.append(event)
            self.sent += self.connection.data_to_send()
        return self

    @property
    def messages(self):
        return [event for event in self.events if not isinstance(event, tuple)]


def compression(remote_bits=12, local_bits=12):
    return PerMessageDeflate(False, False, remote_bits, local_bits, {"memLevel": 5})


# --- the handshake --------------------------------------------------------------------------------


def test_the_accept_key_is_the_rfcs():
    answer = read_handshake(fields()).fields(None, [])
    assert answer == [(b"sec-websocket-accept", ACCEPT)]


@pytest.mark.parametrize(
    ("changes", "status"),
    [
        ({"version": None}, 400),
        ({"version": b"8"}, 426),
        ({"version": b"13, 8"}, 426),
        ({"key": None}, 400),
        ({"key": b""}, 400),
        ({"key": b"dGhlIHNhbXBsZSBub25j"}, 400),
        ({"key": b"not base64 not base64 =="}, 400),
        ({"key": b"\xff" * 24}, 400),
        ({"protocol": b"chat, super chat"}, 400),
        ({"protocol": b"caf\xe9"}, 400),
        ({"extensions": b"permessage-deflate; ="}, 400),
        ({"extensions": b";"}, 400),
    ],
)
def test_invalid_handshakes(changes, status):
    with pytest.raises(ProtocolError) as caught:
        read_handshake(fields(**changes))
    assert caught.value.status == status


@pytest.mark.parametrize("name", ["key", "version"])
def test_key_and_version_come_once(name):
    given = fields()
    with pytest.raises(ProtocolError, match="400"):
        read_handshake([*given, (f"sec-websocket-{name}".encode(), dict(fields())[given[0][0]])])


def test_http2_has_no_key():
    assert read_handshake(fields(key=None), key=False).fields(None, []) == []


def test_subprotocols_of_several_fields_are_one_list():
    given = [*fields(protocol=b"chat, superchat,"), (b"sec-websocket-protocol", b"v2.chat")]
    handshake = read_handshake(given)
    assert handshake.subprotocols == ["chat", "superchat", "v2.chat"]
    assert (b"sec-websocket-protocol", b"v2.chat") in handshake.fields("v2.chat", [])


def test_what_was_not_offered_can_not_be_chosen():
    with pytest.raises(LocalProtocolError, match="did not offer"):
        read_handshake(fields(protocol=b"chat")).fields("other", [])


@pytest.mark.parametrize("name", [b"sec-websocket-accept", b"Sec-WebSocket-Extensions"])
def test_the_handshakes_own_fields_are_not_the_applications(name):
    with pytest.raises(LocalProtocolError, match="not the application's"):
        read_handshake(fields()).fields(None, [(name, b"x")])


@pytest.mark.parametrize(
    ("offer", "answer"),
    [
        (
            b"permessage-deflate; client_max_window_bits",
            b"permessage-deflate; server_max_window_bits=12; client_max_window_bits=12",
        ),
        # A window that the client does not let be limited stays as big as it likes.
        (b"permessage-deflate", b"permessage-deflate; server_max_window_bits=12"),
        (
            b"permessage-deflate; server_max_window_bits=9; client_max_window_bits=10",
            b"permessage-deflate; server_max_window_bits=9; client_max_window_bits=10",
        ),
        (
            b"permessage-deflate; server_no_context_takeover; client_no_context_takeover",
            b"permessage-deflate; server_no_context_takeover; client_no_context_takeover;"
            b" server_max_window_bits=12",
        ),
        # An offer that is no good is passed over, and the next one taken.
        (
            b"permessage-deflate; server_max_window_bits=99, permessage-deflate",
            b"permessage-deflate; server_max_window_bits=12",
        ),
        (b"x-webkit-deflate-frame", None),
        (b"permessage-deflate; unheard_of", None),
    ],
)
def test_the_compression_agreed_on(offer, answer):
    handshake = read_handshake(fields(extensions=offer))
    assert dict(handshake.fields(None, [])).get(b"sec-websocket-extensions") == answer


def test_compression_can_be_off():
    handshake = read_handshake(fields(extensions=b"permessage-deflate"), deflate=False)
    assert b"sec-websocket-extensions" not in dict(handshake.fields(None, []))


UPGRADE = (
    b"GET /chat HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: keep-alive, Upgrade\r\n"
    b"Sec-WebSocket-Key: " + KEY + b"\r\nSec-WebSocket-Version: 13\r\n\r\n"
)


@pytest.mark.parametrize("parser", PARSERS)
def test_what_follows_the_handshake_is_handed_over_unparsed(parser):
    behind = frame(TEXT, b"GET / HTTP/1.1\r\n\r\n") + b"\0\xff"
    for cut in range(len(UPGRADE), len(UPGRADE + behind)):
        http = H1Connection(Limits(), parser=parser)
        request = http.receive_data((UPGRADE + behind)[:cut])
        assert isinstance(request, Request)
        assert request.upgrade == b"websocket"
        assert http.receive_data((UPGRADE + behind)[cut:]) is None
        head = http.upgrade(b"websocket", read_handshake(request.headers).fields(None, []))
        assert head.startswith(
            b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        )
        assert b"\r\nsec-websocket-accept: " + ACCEPT + b"\r\n" in head
        assert head.endswith(b"\r\n\r\n")
        assert b"ontent-" not in head
        assert http.take_over() == behind
        assert http.receive_data(b"more") is None


@pytest.mark.parametrize("parser", PARSERS)
@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b"GET", b"POST"),
        (b"HTTP/1.1", b"HTTP/1.0"),
        (b"keep-alive, Upgrade", b"keep-alive"),
        (b"Upgrade: websocket", b"Upgrade: h2c"),
        (b"Host: x", b"Host: x\r\nContent-Length: 1"),
        (b"Host: x", b"Host: x\r\nTransfer-Encoding: chunked"),
    ],
)
def test_what_is_no_request_for_a_websocket(parser, old, new):
    request = H1Connection(Limits(), parser=parser).receive_data(UPGRADE.replace(old, new))
    assert isinstance(request, Request)
    assert request.upgrade is None


def test_another_version_is_told_which_one_there_is():
    http = H1Connection(Limits())
    request = http.receive_data(UPGRADE.replace(b"13", b"8"))
    with pytest.raises(ProtocolError) as caught:
        read_handshake(request.headers)
    head, _, body = http.refuse(Refused(caught.value)).partition(b"\r\n\r\n")
    lines = head.split(b"\r\n")
    assert lines[0] == b"HTTP/1.1 426 Upgrade Required"
    assert {b"Sec-WebSocket-Version: 13", b"Upgrade: websocket", b"Connection: close"} <= {*lines}
    assert b"Content-Length: %d" % len(body) in lines


def test_the_applications_fields_can_not_break_out_of_the_answer():
    http = H1Connection(Limits())
    http.receive_data(UPGRADE)
    with pytest.raises(LocalProtocolError):
        http.upgrade(b"websocket", [(b"x", b"y\r\nz: 1")])


# --- messages -------------------------------------------------------------------------------------

CONVERSATION = b"".join(
    [
        frame(TEXT, "grüße".encode()),
        frame(BINARY, b"\x00\xff" * 200),
        frame(TEXT, "snow☃man".encode()[:5], fin=False),
        frame(PING, b"are you there"),
        frame(CONT, "snow☃man".encode()[5:6], fin=False),
        frame(CONT, b"", fin=False),
        frame(CONT, "snow☃man".encode()[6:]),
        frame(BINARY, b"a" * 70_000),
        frame(PONG, b"nobody asked"),
        frame(TEXT, b""),
        close_frame(3210, "done"),
    ]
)
MESSAGES = ["grüße", b"\x00\xff" * 200, "snow☃man", b"a" * 70_000, ""]
ANSWERS = frame(PONG, b"are you there", mask=False) + (
    b"\x88\x06" + (3210).to_bytes(2, "big") + b"done"
)


def test_a_conversation_in_one_read():
    server = Server().feed(CONVERSATION)
    assert server.events == [*MESSAGES, (3210, "done", True)]
    assert server.sent == ANSWERS
    assert server.connection.over


def test_split_at_every_position():
    # But few in the middle of the long one, which is all alike.
    for position in range(len(CONVERSATION)):
        if 600 < position < len(CONVERSATION) - 100 and position % 1000:
            continue
        server = Server().feed(CONVERSATION[:position], CONVERSATION[position:])
        assert server.events == [*MESSAGES, (3210, "done", True)]
        assert server.sent == ANSWERS


def test_byte_by_byte():
    server = Server().feed(*(CONVERSATION[i : i + 1] for i in range(len(CONVERSATION))))
    assert server.events == [*MESSAGES, (3210, "done", True)]
    assert server.sent == ANSWERS


messages = st.lists(st.text(max_size=200) | st.binary(max_size=200), max_size=8)


@given(st.data(), messages, st.booleans())
def test_any_fragments_and_any_cuts(data, messages, compressed):
    """What a client sends comes out the same, however it is framed, compressed and cut."""
    ours, theirs = (compression(), compression()) if compressed else (None, None)
    wire = b""
    for message in messages:
        payload = message.encode() if isinstance(message, str) else message
        opcode = TEXT if isinstance(message, str) else BINARY
        cuts = sorted(data.draw(st.lists(st.integers(0, len(payload)), max_size=3)))
        parts = [payload[start:end] for start, end in pairwise([0, *cuts, len(payload)])]
        for number, part in enumerate(parts, 1):
            wire += frame(opcode, part, number == len(parts), deflate=theirs)
            opcode = CONT
            if data.draw(st.booleans()):
                wire += frame(PING, b"p")
    cuts = sorted(data.draw(st.lists(st.integers(0, len(wire)), max_size=6)))
    bounds = [0, *cuts, len(wire)]
    server = Server(deflate=ours)
    server.feed(*(wire[start:end] for start, end in pairwise(bounds)))
    assert server.events == messages


@given(st.binary(max_size=300), st.lists(st.integers(0, 300), max_size=5))
def test_no_bytes_break_the_parser(noise, cuts):
    """Whatever comes ends in messages, silence or a close frame, and the same for every split."""
    bounds = [0, *sorted(min(cut, len(noise)) for cut in cuts), len(noise)]
    pieces = Server().feed(*(noise[a:b] for a, b in pairwise(bounds)))
    whole = Server().feed(noise)
    assert pieces.events == whole.events
    assert pieces.sent == whole.sent


def test_what_is_sent_is_read_by_the_other_side():
    theirs = compression()
    connection = WebSocketConnection(MAX, compression())
    for message in ("text", "text again, text again", b"\0\1\2", ""):
        data = connection.send(message)
        assert data[0] & 0x40, "compressed"
        payload = data[2:]
        decoded = theirs.decode(Frame(Opcode(data[0] & 15), payload, True, True)).data
        assert decoded == (message.encode() if isinstance(message, str) else message)
    assert WebSocketConnection(MAX).send("hi") == b"\x81\x02hi"
    assert WebSocketConnection(MAX).send(bytearray(b"hi")) == b"\x82\x02hi"
    assert WebSocketConnection(MAX).ping() == b"\x89\x00"


# --- failures -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "code"),
    [
        pytest.param(raw_frame(0x83), 1002, id="unknown opcode"),
        pytest.param(raw_frame(0x8B), 1002, id="unknown control opcode"),
        pytest.param(raw_frame(0x81, b"hi", masked=False), 1002, id="not masked"),
        pytest.param(raw_frame(0xC1, b"hi"), 1002, id="RSV1 without an extension"),
        pytest.param(raw_frame(0xA1, b"hi"), 1002, id="RSV2"),
        pytest.param(raw_frame(0x91, b"hi"), 1002, id="RSV3"),
        pytest.param(raw_frame(0x80, b"hi"), 1002, id="continues nothing"),
        pytest.param(
            raw_frame(0x01, b"a") + raw_frame(0x81, b"b"), 1002, id="a message within a message"
        ),
        pytest.param(raw_frame(0x09, b""), 1002, id="ping in fragments"),
        pytest.param(b"\x89\xfe\x00\x7e\0\0\0\0" + b"x" * 126, 1002, id="ping of 126 bytes"),
        pytest.param(raw_frame(0x88, b"x"), 1002, id="half a close code"),
        pytest.param(raw_frame(0x88, b"\x03\xed"), 1002, id="close with 1005"),
        pytest.param(raw_frame(0x88, b"\x03\xee"), 1002, id="close with 1006"),
        pytest.param(raw_frame(0x88, b"\x03\xe7"), 1002, id="close with 999"),
        pytest.param(raw_frame(0x88, b"\x13\x88"), 1002, id="close with 5000"),
        pytest.param(raw_frame(0x88, b"\x03\xe8\xff"), 1007, id="close reason not UTF-8"),
        pytest.param(raw_frame(0x81, b"\xff"), 1007, id="text not UTF-8"),
        pytest.param(raw_frame(0x81, b"\xc3"), 1007, id="half a character"),
        pytest.param(raw_frame(0x81, b"\xed\xa0\x80"), 1007, id="a surrogate"),
        pytest.param(raw_frame(0x01, b"ab\xff"), 1007, id="at the first bad fragment"),
        pytest.param(
            raw_frame(0x01, b"\xe2\x98") + raw_frame(0x80, b"x"), 1007, id="across fragments"
        ),
        pytest.param(
            raw_frame(0x81, b"\xff") + close_frame(1000), 1007, id="before a close in the same read"
        ),
        pytest.param(b"\x82\xff" + (MAX + 1).to_bytes(8, "big"), 1009, id="too big, by its head"),
    ],
)
def test_failures(data, code):
    good = frame(TEXT, b"before")
    for pieces in (
        [good + data],
        [good, data],
        [(good + data)[i : i + 1] for i in range(len(good + data))],
    ):
        server = Server().feed(*pieces)
        assert server.events[0] == "before"
        assert len(server.events) == 2, server.events
        assert server.events[1][0] == code
        assert server.events[1][2] is False
        assert said(server.sent) == code
        assert server.connection.over
        assert server.feed(frame(TEXT, b"after")).messages == ["before"]


def test_a_message_of_the_greatest_size_and_one_byte_more():
    server = Server(max_message_size=1000)
    server.feed(frame(BINARY, b"x" * 600, fin=False), frame(CONT, b"y" * 400))
    assert server.messages == [b"x" * 600 + b"y" * 400]
    server.feed(frame(BINARY, b"x" * 600, fin=False), frame(CONT, b"y" * 401))
    assert server.events[-1][0] == 1009
    assert said(server.sent) == 1009


def test_no_limit():
    assert (
        len(Server(max_message_size=0).feed(frame(BINARY, bytes(3 << 20))).messages[0]) == 3 << 20
    )


def test_a_small_message_can_not_become_a_big_one():
    """A bomb: 10 KiB that decompress to 10 MiB."""
    bomb = zlib.compressobj(wbits=-12)
    data = bomb.compress(bytes(10 << 20)) + bomb.flush(zlib.Z_SYNC_FLUSH)
    server = Server(deflate=compression())
    server.feed(compressed_frame(BINARY, data[:-4]))
    assert server.messages == []
    assert said(server.sent) == 1009


def test_garbage_where_compressed_data_should_be():
    server = Server(deflate=compression())
    server.feed(compressed_frame(TEXT, b"\xff\xff\xff\xff"))
    assert said(server.sent) == 1002


def test_a_message_in_a_great_many_fragments_takes_no_more_than_its_size():
    server = Server()
    server.feed(frame(TEXT, b"a", fin=False))
    for _ in range(50):
        server.feed(frame(CONT, b"", fin=False) * 100)
    server.feed(frame(CONT, b"z"))
    assert server.messages == ["az"]


# --- closing --------------------------------------------------------------------------------------


@pytest.mark.parametrize("code", [1000, 1001, 1003, 1008, 1011, 1012, 3000, 4999])
def test_the_clients_close_is_answered_with_its_own_code(code):
    server = Server().feed(close_frame(code, "why"))
    assert server.events == [(code, "why", True)]
    assert said(server.sent) == code


def test_a_close_without_a_code():
    server = Server().feed(frame(CLOSE))
    assert server.events == [(1005, "", True)]
    assert server.sent == b"\x88\x00"


def test_a_close_between_the_fragments_of_a_message():
    server = Server().feed(frame(TEXT, b"half", fin=False), close_frame(1000))
    assert server.events == [(1000, "", True)]
    assert said(server.sent) == 1000


def test_messages_still_come_after_our_close_until_the_clients():
    server = Server()
    assert said(server.connection.close(1012)) == 1012
    assert server.connection.closing
    server.feed(frame(TEXT, b"was on its way"), close_frame(1012))
    assert server.events == ["was on its way", (1012, "", True)]
    assert server.sent == b""


def test_our_code_counts_where_we_began():
    server = Server()
    server.connection.close(1000, "enough")
    assert server.feed(frame(CLOSE)).events == [(1000, "enough", True)]


def test_the_end_of_the_bytes_without_a_close():
    closed = Server().connection.receive_eof()
    assert (closed.code, closed.clean) == (1006, False)
    cut = Server().feed(frame(BINARY, b"whole")[:5])
    assert cut.connection.receive_eof().code == 1006


def test_the_end_of_the_bytes_after_a_close():
    server = Server().feed(close_frame(1000))
    assert server.connection.receive_eof() is None
    ours = Server()
    ours.connection.close(1001)
    closed = ours.connection.receive_eof()
    assert (closed.code, closed.clean) == (1001, False)


@pytest.mark.parametrize(
    ("code", "reason"), [(1005, ""), (1006, ""), (999, ""), (5000, ""), (1000, "é" * 62)]
)
def test_a_close_that_can_not_be_said(code, reason):
    connection = WebSocketConnection(MAX)
    with pytest.raises(LocalProtocolError):
        connection.close(code, reason)
    assert not connection.closing
    assert connection.data_to_send() == b""


def test_nothing_is_sent_after_a_close():
    connection = WebSocketConnection(MAX)
    connection.close(1000)
    with pytest.raises(LocalProtocolError):
        connection.send("late")
    with pytest.raises(LocalProtocolError):
        connection.close(1000)


def test_ending_it_at_once():
    connection = WebSocketConnection(MAX)
    assert said(connection.fail(1011, "keepalive ping timeout")) == 1011
    assert connection.over
