"""The sending side of an HTTP/2 connection: heads, bodies and resets of its streams, in turns.

What may go at once is handed to `h2`; what can't waits in its stream, and goes when `output` is
asked for what is to be sent.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from h2.exceptions import StreamClosedError

from servo.http.h2.frames import NO_ERROR, Allowance, FrameReader

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from servo.http.h2.frames import GoAwayError
    from servo.http.h2.library import Library
    from servo.http.h2.stream import H2Stream
    from servo.http.h2.unsent import Unsent
    from servo.http.limits import H2Limits
    from servo.http.serialise import Tail

# Response frames no larger than this, whatever a client takes: so streams take turns.
_FRAME = 16384


class SendingSide:
    """What streams see of their connection, and the driver's `output`. See `H2Connection`."""

    def __init__(
        self,
        limits: H2Limits,
        library: Library,
        tail: Tail,
        wake: Callable[[], None],
        all_unsent: Unsent,
    ) -> None:
        self._h2_limits = limits
        self._h2 = library
        # What a client may do in vain. Each answer that goes out earns it some more.
        self._reader = FrameReader(limits)
        self._resets = Allowance(*limits.resets)
        self._out: list[bytes] = []
        self._queued: dict[H2Stream, None] = {}
        self.tail = tail
        self.wake = wake
        self.streams: dict[int, H2Stream] = {}
        self.gone: list[H2Stream] = []
        self.blocked = False
        # Body bytes that wait in the streams, and those that were ever sent.
        self.unsent = 0
        self.sent = 0
        self._all_unsent = all_unsent
        self.fault: GoAwayError | None = None

    def send_now(
        self, stream: H2Stream, fields: Sequence[tuple[bytes, bytes]], body: bytes
    ) -> bool:
        """Send a whole response at once, if the windows and the socket allow it."""
        if stream.closed:
            return True
        n = len(body)
        if self.blocked or n > _FRAME or n > self.window(stream):
            return False
        self.put_head(stream, fields, not n)
        if n:
            self.put_data(stream, body, True)
        self.wake()
        return True

    def count_unsent(self, n: int) -> None:
        """So many more body bytes wait in a stream, or fewer."""
        self.unsent += n
        self._all_unsent.bytes += n

    def on_queued(self, stream: H2Stream) -> None:
        """The stream has something to send when it can."""
        self._queued[stream] = None
        self.wake()

    def window(self, stream: H2Stream) -> int:
        """Bytes of a body that may be sent now."""
        return min(self._h2.local_flow_control_window(stream.id), _FRAME)

    def put_head(
        self, stream: H2Stream, fields: Sequence[tuple[bytes, bytes]], ended: bool
    ) -> None:
        """Send fields: a head, or trailers."""
        self._h2.send_headers(stream.id, fields, ended)
        if ended:
            self._sent_all(stream)

    def put_data(self, stream: H2Stream, data: bytes | memoryview, ended: bool) -> None:
        """Send a part of a body."""
        self._h2.send_data(stream.id, data, ended)
        self.sent += len(data)
        self._reader.earn(2)
        if ended:
            self._sent_all(stream)

    def reset(self, stream: H2Stream, code: int) -> None:
        """End a stream at once."""
        if not stream.closed:
            self._reset_number(stream.id, code)
            self._forget(stream)

    def give_window(self, stream: H2Stream, n: int) -> bool:
        """The application took n bytes: let as many more come, once that is worth a frame."""
        if stream.incoming:
            if n < self._h2_limits.window // 2:
                return False
            self._h2.increment_flow_control_window(n, stream.id)
            self.wake()
        return True

    def output(self, most: int = 65536) -> bytes:
        """What is to be sent: all that is ready, and of what waits about `most` bytes, in turns."""
        if self._queued and not self.blocked and self.fault is None:
            self._flush(most)
        self._out.append(self._h2.data_to_send())
        data = b"".join(self._out)
        self._out.clear()
        return data

    @property
    def is_shut(self) -> bool:
        """The client takes no body at all, or none of a new stream."""
        h2 = self._h2
        windows = (h2.outbound_flow_control_window, h2.remote_settings.initial_window_size)
        return self.blocked or min(windows) <= 0

    def _flush(self, left: int) -> None:
        queued = self._queued
        progress = True
        while progress and queued and left > 0:
            progress = False
            for stream in list(queued):
                if stream.waiting:
                    sent = stream.send_some(min(left, _FRAME))
                    left -= sent
                    progress = progress or sent > 0
                queued.pop(stream, None)
                if stream.waiting:
                    queued[stream] = None  # behind the others
                if left <= 0:
                    break

    def _sent_all(self, stream: H2Stream) -> None:
        """The response is out. What is left of the request's body is of no use (RFC 9113 8.1)."""
        if stream.status < 400:
            self._resets.earn()
        if stream.incoming:
            if stream.tunnel:
                return
            self._reset_number(stream.id, NO_ERROR)
        self._forget(stream)

    def _forget(self, stream: H2Stream) -> None:
        stream.close()
        self.streams.pop(stream.id, None)
        self._queued.pop(stream, None)
        self.gone.append(stream)

    def _reset_number(self, number: int, code: int) -> None:
        try:
            self._h2.reset_stream(number, code)
        except StreamClosedError:
            return  # both sides have ended it already
        self.wake()

    def _emit(self, frame: bytes) -> None:
        """A frame of our own, behind those that `h2` has made."""
        self._out += (self._h2.data_to_send(), frame)
