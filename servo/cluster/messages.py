"""Messages between the processes of one server, for applications.

    from servo import cluster

    @cluster.on_message("cache.drop")
    def drop(key):
        CACHE.pop(key, None)

    cluster.broadcast("user:7", topic="cache.drop")
    total = cluster.request(None, to=1, topic="count", timeout=2.0)

A worker's address is its `slot`, a number from 1 up. If the worker is replaced, the new worker gets
the same slot. Slot 0 is the arbiter: its configuration file may have an `on_message` hook. Messages
are bytes or JSON values. In JSON, tuples arrive as lists, and keys as strings.

Each message is delivered at most once. Messages from one sender to one worker arrive in order, and
all workers get broadcasts in the same order. Queues are bounded: messages that don't fit are
dropped, counted (`stats`) and logged. So a sender never waits for a slow or dead worker.

Outside a server, in a shell or a test, the process is a cluster of one: it has slot 1, and can only
send messages to itself.
"""

from __future__ import annotations

import contextlib
import inspect
import os
import sys
from collections import deque
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeVar, overload

from servo.errors import ClusterError
from servo.ipc.messages import ARBITER as ARBITER
from servo.ipc.messages import (
    EVERYONE,
    MAX_TOPIC_BYTES,
    MessageError,
    decode_value,
    encode_value,
)

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Iterator

    from servo.ipc.messages import AppCommand, ReplaceMe

    Function = TypeVar("Function", bound=Callable[..., Any])

# How many bytes an encoded message may have. The header and the topic need the remaining bytes of a
# MiB.
MAX_MESSAGE_BYTES = (1 << 20) - 1024
REQUEST_TIMEOUT_S = 5.0


class MessageTooLong(ClusterError, ValueError):  # noqa: N818
    """Raised for a message of more than MAX_MESSAGE_BYTES."""


class NoSuchWorker(ClusterError):  # noqa: N818
    """Raised if no worker has the slot of a request."""


class ClusterOverflow(ClusterError):  # noqa: N818
    """Raised if a request was dropped: the queue of its receiver or of the arbiter is full."""


class WorkerLost(ClusterError):  # noqa: N818
    """Raised if the worker ended before it answered a request."""


class RequestFailed(ClusterError):  # noqa: N818
    """Raised if the handler raised an exception, or the topic has no handler."""


class RequestTimeout(ClusterError, TimeoutError):  # noqa: N818
    """Raised if a request was not answered in time. The handler may still run."""


class Sender(NamedTuple):
    """The sender of a message.

    slot    the worker's slot; 0 is the arbiter (its configuration file, or `servoctl send`)
    serial  the worker's number; a new worker in the same slot has another one
    """

    slot: int
    serial: int


class WorkerInfo(NamedTuple):
    """A live worker.

    slot        its place, 1 to N; during a replacement, the old and the new worker have the same
                slot
    pid         its process id
    state       "spawned", "booting", "ready" or "draining"
    generation  the number of its configuration and code: 1, and one more with each reload
    serial      its number, never reused
    """

    slot: int
    pid: int
    state: str
    generation: int
    serial: int


class Stats(NamedTuple):
    """The messages of this process since it started.

    sent        messages passed to the arbiter
    received    messages received
    overflowed  messages not sent, because the queue was full
    dropped     received messages that were dropped, because the handlers are too slow
    unheard     received messages without a handler for their topic
    """

    sent: int
    received: int
    overflowed: int
    dropped: int
    unheard: int


def send(message: Any, *, to: int, topic: str = "") -> bool:
    """Send a message to a worker, and don't wait.

    message  bytes or a JSON value
    to       the worker's slot; 0 is the arbiter
    topic    selects the handlers; at most 255 bytes in UTF-8

    During a replacement, the newest ready worker of the slot gets the message. A booting worker
    handles it when it is ready. Returns False if the message was dropped at once, because the queue
    is full. True does not mean that it arrives: the receiver may end, or be too slow. Raises
    TypeError if the message is neither bytes nor a JSON value, and MessageTooLong.
    """
    return _backend.send(encode_message(message), encode_topic(topic), _target(to), with_self=True)


def broadcast(message: Any, *, topic: str = "", with_self: bool = True) -> bool:
    """Send a message to all workers, including booting and draining ones.

    message    bytes or a JSON value
    topic      selects the handlers
    with_self  whether this worker also gets the message

    Returns and raises the same as `send`.
    """
    return _backend.send(
        encode_message(message), encode_topic(topic), EVERYONE, with_self=with_self
    )


def request(message: Any, *, to: int, topic: str = "", timeout: float = REQUEST_TIMEOUT_S) -> Any:
    """Send a request to a worker, wait for its handler, and return the handler's result.

    message  bytes or a JSON value
    to       the worker's slot; 0 is the arbiter
    topic    selects the handler
    timeout  how long to wait, in seconds

    This blocks, so it raises RuntimeError in the thread of an event loop: use `arequest` there.
    Raises NoSuchWorker, ClusterOverflow, WorkerLost, RequestFailed, RequestTimeout, and the errors
    of `send`.
    """
    if _on_loop():
        raise RuntimeError("cluster.request would block the event loop: await cluster.arequest")
    return _decode_answer(
        _backend.request(encode_message(message), encode_topic(topic), _target(to), timeout)
    )


async def arequest(
    message: Any, *, to: int, topic: str = "", timeout: float = REQUEST_TIMEOUT_S
) -> Any:
    """The same as `request`, for coroutines on any event loop."""
    payload, name, target = encode_message(message), encode_topic(topic), _target(to)
    return _decode_answer(await _backend.arequest(payload, name, target, timeout))


@overload
def on_message(topic: str = "") -> Callable[[Function], Function]: ...
@overload
def on_message(topic: Function) -> Function: ...


def on_message(topic: Any = "") -> Any:
    """Decorate a function that handles the messages of a topic.

    topic  the topic; without it (`@cluster.on_message`), the messages without a topic

    The function is called with the message; if it takes two arguments, also with the `Sender`. It
    may be a coroutine function. If the message is a request, the function's result is the answer;
    if several functions handle the topic, the first one answers. The thread that calls the function
    depends on the worker class:

    async    the event loop's thread, which starts coroutines in the order of the messages (with a
             WSGI application: as in a thread worker)
    thread   a separate thread, which handles one message after the other
    sync     the main thread, between two requests

    Register handlers while the application is imported. They are called when the worker is ready.
    """
    if callable(topic):
        _add_handler("", topic)
        return topic
    encode_topic(topic)

    def register(function: Function) -> Function:
        _add_handler(topic, function)
        return function

    return register


def workers() -> list[WorkerInfo]:
    """The live workers, sorted by slot, and by age within a slot (the older one first)."""
    return sorted(_backend.workers(), key=lambda worker: (worker.slot, worker.serial))


def is_draining() -> bool:
    """Whether this worker is ending: it accepts no connections, and finishes its requests."""
    return _backend.is_draining()


def stats() -> Stats:
    """The numbers of messages that this process has sent, received and dropped."""
    return _backend.stats()


def encode_message(message: Any) -> bytes:
    """Encode a message. Raises TypeError and MessageTooLong."""
    payload = encode_value(message)
    if len(payload) > MAX_MESSAGE_BYTES:
        raise MessageTooLong(
            f"a message of {len(payload)} bytes is longer than the limit of {MAX_MESSAGE_BYTES}"
        )
    return payload


def _decode_answer(payload: bytes) -> Any:
    try:
        return decode_value(payload)
    except MessageError as error:
        raise RequestFailed(f"can't decode the reply: {error}") from error


def encode_topic(topic: str) -> bytes:
    """Encode a topic. Raises TypeError and ValueError."""
    if not isinstance(topic, str):
        raise TypeError(f"a topic must be text, not {topic!r}")
    encoded = topic.encode()
    if len(encoded) > MAX_TOPIC_BYTES:
        raise ValueError(f"a topic can have at most {MAX_TOPIC_BYTES} bytes: {topic[:40]!r}…")
    return encoded


def _target(to: int) -> int:
    if not isinstance(to, int) or isinstance(to, bool):
        raise TypeError(f"to must be a slot, a whole number, not {to!r}")
    if not 0 <= to < EVERYONE:
        raise ValueError(f"there is no slot {to}")
    return to


# --- handlers ---------------------------------------------------------------------------------


class Handler(NamedTuple):
    """A function that handles messages.

    function      the application's function
    takes_sender  whether it is also called with a Sender
    """

    function: Callable[..., Any]
    takes_sender: bool

    def __call__(self, value: Any, sender: Sender) -> Any:
        """Call the function. Its result may be awaitable."""
        return self.function(value, sender) if self.takes_sender else self.function(value)


_handlers: dict[str, list[Handler]] = {}


def handlers_for(topic: str, *, answering: bool) -> list[Handler]:
    """The handlers of a topic.

    topic      the topic
    answering  whether the message is a request: then only the first handler gets it
    """
    found = _handlers.get(topic, [])
    return found[:1] if answering else found


def forget_handlers() -> None:
    """Remove all handlers, because an application is about to be imported again."""
    _handlers.clear()


def _add_handler(topic: str, function: Callable[..., Any]) -> None:
    try:
        takes_sender = _takes_two(inspect.signature(function))
    except ValueError:  # some builtins have no signature
        takes_sender = False
    # A new list, because another thread may be iterating over the old one.
    _handlers[topic] = [*_handlers.get(topic, []), Handler(function, takes_sender)]


def _takes_two(signature: inspect.Signature) -> bool:
    """Whether a function requires two positional arguments, without counting defaults."""
    places = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    parameters = signature.parameters.values()
    wanted = [each for each in parameters if each.kind in places and each.default is each.empty]
    return len(wanted) >= 2


# --- backends ---------------------------------------------------------------------------------


class Backend(Protocol):
    """Carries the messages of this process. A `target` is a slot, ARBITER or EVERYONE."""

    slot: int

    @property
    def pid(self) -> int:
        """The pid of this process."""

    def send(self, payload: bytes, topic: bytes, target: int, *, with_self: bool) -> bool:
        """Send an encoded value. Returns False if it was dropped."""

    def request(self, payload: bytes, topic: bytes, target: int, timeout: float) -> bytes:
        """Send a request, and wait for the encoded answer. Raises ClusterError."""

    async def arequest(self, payload: bytes, topic: bytes, target: int, timeout: float) -> bytes:
        """The same on an event loop."""

    def workers(self) -> list[WorkerInfo]:
        """The live workers."""

    def is_draining(self) -> bool:
        """Whether this process is ending."""

    def stats(self) -> Stats:
        """The numbers of messages."""

    def control(self, message: ReplaceMe | AppCommand) -> None:
        """Ask the arbiter to do something to the workers. Raises ClusterError."""


class LocalBackend:
    """The backend outside of a server: one worker, which calls its handlers at once."""

    slot = 1

    def __init__(self) -> None:
        self._received = self._unheard = self._lost = 0
        self._waiting: deque[tuple[bytes, bytes]] = deque()
        self._delivering = False
        self._tasks: set[asyncio.Task[Any]] = set()

    @property
    def pid(self) -> int:
        """See Backend."""
        return os.getpid()

    def send(self, payload: bytes, topic: bytes, target: int, *, with_self: bool) -> bool:
        """See Backend. A message that a handler sends is delivered after the handler returns."""
        if target not in (self.slot, EVERYONE):
            self._lost += 1
            return True  # as in a server, where a sender does not know whether the worker exists
        if target == EVERYONE and not with_self:
            return True
        self._waiting.append((payload, topic))
        if not self._delivering:
            self._delivering = True
            try:
                while self._waiting:
                    self._deliver(*self._waiting.popleft())
            finally:
                self._delivering = False
        return True

    def _deliver(self, payload: bytes, topic: bytes) -> None:
        self._received += 1
        handlers = handlers_for(topic.decode(), answering=False)
        self._unheard += not handlers
        for handler in handlers:
            result = handler(decode_value(payload), Sender(self.slot, 1))
            if not hasattr(result, "__await__"):
                continue
            import asyncio  # not at the top of the module: see _on_loop

            if not _on_loop():
                asyncio.run(_wait_for(result))
            else:
                task = asyncio.ensure_future(_wait_for(result))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)

    def request(self, payload: bytes, topic: bytes, target: int, timeout: float) -> bytes:
        """See Backend."""
        with _handler_errors(target):
            result = self._ask(payload, topic, target)
            if hasattr(result, "__await__"):
                import asyncio  # not at the top of the module: see _on_loop

                result = asyncio.run(_answer_within(timeout, result, target))
            return encode_value(result)

    async def arequest(self, payload: bytes, topic: bytes, target: int, timeout: float) -> bytes:
        """See Backend."""
        with _handler_errors(target):
            result = self._ask(payload, topic, target)
            if hasattr(result, "__await__"):
                result = await _answer_within(timeout, result, target)
            return encode_value(result)

    def _ask(self, payload: bytes, topic: bytes, target: int) -> Any:
        if target != self.slot:
            raise NoSuchWorker(f"there is no worker {target}")
        self._received += 1
        handlers = handlers_for(topic.decode(), answering=True)
        if not handlers:
            self._unheard += 1
            raise RequestFailed(f"there is no handler for {topic.decode()!r}")
        return handlers[0](decode_value(payload), Sender(self.slot, 1))

    def workers(self) -> list[WorkerInfo]:
        """See Backend."""
        return [WorkerInfo(self.slot, self.pid, "ready", 1, 1)]

    def is_draining(self) -> bool:
        """See Backend."""
        return False

    def stats(self) -> Stats:
        """See Backend."""
        sent = self._received + self._lost
        return Stats(sent, self._received, 0, 0, self._unheard)

    def control(self, message: ReplaceMe | AppCommand) -> None:
        """See Backend."""
        raise ClusterError("there is no server whose workers could be replaced")


def _on_loop() -> bool:
    """Whether this thread runs an event loop.

    This does not import asyncio, because a process without an event loop does not need it. The
    import would take 5 MB, and half the time of a server's start.
    """
    # Use a default, because another thread may be in the middle of importing asyncio.
    running = getattr(sys.modules.get("asyncio"), "_get_running_loop", None)
    return running is not None and running() is not None


async def _wait_for(awaitable: Any) -> Any:
    return await awaitable


async def _answer_within(timeout: float, awaitable: Any, target: int) -> Any:
    import asyncio  # not at the top of the module: see _on_loop

    try:
        return await asyncio.wait_for(_wait_for(awaitable), timeout)
    except asyncio.TimeoutError as error:
        raise RequestTimeout(f"no answer from worker {target} within {timeout:g} s") from error


@contextlib.contextmanager
def _handler_errors(target: int) -> Iterator[None]:
    """Turn an exception of a handler into the error of a caller in another process."""
    try:
        yield
    except ClusterError:
        raise
    except Exception as error:
        raise RequestFailed(f"worker {target}: {type(error).__name__}: {error}") from error


_backend: Backend = LocalBackend()


def backend() -> Backend:
    """Return the backend that carries the messages of this process."""
    return _backend


def install(backend: Backend) -> None:
    """Let this backend carry the messages of this process."""
    global _backend
    _backend = backend
