"""A server's HTTP/2 connection and its client, without sockets."""

from __future__ import annotations

from h2frames import Reader, head, hello

from servo.http.events import Data, Refused, Request
from servo.http.h2.connection import ByteCount, H2Connection, Reset
from servo.http.h2.stream import H2Stream
from servo.http.limits import H2Limits, Limits

PLAIN = [(b"content-type", b"text/plain")]


class Pair:
    """A server's connection, and what its client has made of its bytes."""

    def __init__(
        self,
        limits: Limits | None = None,
        h2_limits: H2Limits | None = None,
        values: dict[int, int] | None = None,
        *,
        tunnels: bool = False,
        all_unsent: ByteCount | None = None,
        more: bytes = b"",
    ) -> None:
        self.server = H2Connection(
            limits or Limits(),
            h2_limits or H2Limits(),
            server=b"servo",
            more=more,
            tunnels=tunnels,
            all_unsent=all_unsent,
        )
        self.server.start()
        self.client = Reader()
        self.now = 0.0
        self.say(hello(values))

    def say(self, received: bytes) -> list[tuple[H2Stream | None, object]]:
        """The events of these bytes; what the server sends to that is with the client."""
        events = list(self.server.receive_data(received, self.now))
        while self.server.more:
            events += self.server.receive_more(self.now)
        self.listen()
        return events  # type: ignore[return-value]

    def listen(self) -> None:
        while out := self.server.output():
            self.client.feed(out)

    def ask(self, received: bytes) -> H2Stream:
        """The stream of the one request in these bytes."""
        events = self.say(received)
        requests = [stream for stream, event in events if isinstance(event, Request)]
        assert len(requests) == 1, events
        assert requests[0] is not None
        return requests[0]

    def still_serves(self, number: int = 99) -> None:
        stream = self.ask(head(number))
        stream.send_response(200, PLAIN, b"ok")
        self.listen()
        assert self.client.answers[number].body == b"ok"
        assert self.server.fault is None


def shown(events: list[tuple[H2Stream | None, object]]) -> list[object]:
    """Events as values; neighbouring parts of a body joined."""
    found: list[object] = []
    for stream, event in events:
        number = stream.id if stream is not None else 0
        if isinstance(event, Request):
            found.append((number, event.method, event.target, tuple(event.headers)))
        elif isinstance(event, Data):
            found.append((number, event.data, event.more_body))
        elif isinstance(event, Refused):
            found.append((number, event.error.status, event.in_body))
        elif isinstance(event, Reset):
            found.append((number, "reset", event.code))
    return found
