"""Messages between the processes of one server: what an application uses to talk to its siblings.

    from servo import cluster

    @cluster.on_message("cache.drop")
    def drop(key):
        CACHE.pop(key, None)

    cluster.broadcast("user:7", topic="cache.drop")
    total = cluster.request(None, to=1, topic="count", timeout=2.0)

A worker is addressed by its `slot`, which a successor takes over; slot 0 is the arbiter, whose
configuration file may have an `on_message` hook. Messages are JSON values (tuples arrive as lists,
keys as strings). Each is delivered at most once, and those of one sender to one worker in order;
every worker gets broadcasts in the same order. Queues are bounded: what does not fit is dropped,
counted (`stats`) and logged, and no sender ever waits for a slow or dead worker.

Outside of a server, in a shell or a test, this is a cluster of one: slot 1, and only itself to
talk to.
"""

from __future__ import annotations

import contextlib
import inspect
import os
import sys
from collections import deque
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeVar, overload

from servo.errors import ServoError
from servo.ipc.messages import ARBITER, EVERYONE, MAX_TOPIC_BYTES, from_json, to_json

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Iterator

    Function = TypeVar("Function", bound=Callable[..., Any])

__all__ = [
    "send",
    "broadcast",
    "request",
    "arequest",
    "on_message",
    "workers",
    "slot",
    "pid",
    "is_draining",
    "stats",
    "Sender",
    "WorkerInfo",
    "Stats",
    "ClusterError",
    "MessageTooLong",
    "NoSuchWorker",
    "ClusterOverflow",
    "WorkerLost",
    "RequestFailed",
    "RequestTimeout",
    "ARBITER",
]

# The longest message in JSON; with its header and topic it fits a frame of the channel.
MAX_MESSAGE_BYTES = (1 << 20) - 1024
REQUEST_TIMEOUT_S = 5.0

slot: int  # this worker's
pid: int  # this process's


class ClusterError(ServoError):
    """A message can't be sent, or a request was not answered."""


class MessageTooLong(ClusterError, ValueError):  # noqa: N818
    """A message of more than MAX_MESSAGE_BYTES."""


class NoSuchWorker(ClusterError):  # noqa: N818
    """No worker has the slot that a request was for."""


class ClusterOverflow(ClusterError):  # noqa: N818
    """A request was dropped: too much waits for its receiver, or for the arbiter, already."""


class WorkerLost(ClusterError):  # noqa: N818
    """The worker ended before it had answered a request."""


class RequestFailed(ClusterError):  # noqa: N818
    """The handler raised, or there is none for the topic; the message says which."""


class RequestTimeout(ClusterError, TimeoutError):  # noqa: N818
    """A request was not answered in time. The handler may still run."""


class Sender(NamedTuple):
    """Who sent a message. `serial` tells a worker from its successor in the slot; slot 0 is the
    arbiter: its configuration file, or an operator (`servoctl send`)."""

    slot: int
    serial: int


class WorkerInfo(NamedTuple):
    """A live worker. `state` is spawned, booting, ready or draining; a slot that is being replaced
    has two workers. `generation` counts the reloads."""

    slot: int
    pid: int
    state: str
    generation: int
    serial: int


class Stats(NamedTuple):
    """What this process has counted since it started.

    sent        messages handed to the arbiter
    received    messages taken in
    overflowed  messages not sent, as too many waited already
    dropped     messages received and dropped: the handlers are too slow
    unheard     messages received for which there is no handler
    """

    sent: int
    received: int
    overflowed: int
    dropped: int
    unheard: int


def send(message: Any, *, to: int, topic: str = "") -> bool:
    """Send a message to the worker of a slot; `to=0` is the arbiter. Never waits.

    During a replacement the slot's newest ready worker gets it; one that boots keeps it until it is
    ready. Returns False when it was dropped at once because the queue is full. That it arrives is
    not promised: its receiver may end, or be too slow. Raises TypeError for what is no JSON value,
    and MessageTooLong.
    """
    return _backend.send(encode_message(message), encode_topic(topic), _target(to), with_self=True)


def broadcast(message: Any, *, topic: str = "", with_self: bool = True) -> bool:
    """Send a message to every worker, booting and draining ones too; otherwise as `send`.

    with_self   this worker gets it, too, like all others
    """
    return _backend.send(
        encode_message(message), encode_topic(topic), EVERYONE, with_self=with_self
    )


def request(message: Any, *, to: int, topic: str = "", timeout: float = REQUEST_TIMEOUT_S) -> Any:
    """Ask the worker of a slot, wait for what its handler returns, and return that.

    timeout   seconds

    For code that may block. Raises RuntimeError on an event loop's thread (`arequest` is for that),
    NoSuchWorker, ClusterOverflow, WorkerLost, RequestFailed, RequestTimeout, and what `send` does.
    """
    if _on_loop():
        raise RuntimeError("cluster.request would block the event loop: await cluster.arequest")
    return from_json(
        _backend.request(encode_message(message), encode_topic(topic), _target(to), timeout)
    )


async def arequest(
    message: Any, *, to: int, topic: str = "", timeout: float = REQUEST_TIMEOUT_S
) -> Any:
    """`request`, to be awaited on any event loop."""
    payload, name, target = encode_message(message), encode_topic(topic), _target(to)
    return from_json(await _backend.arequest(payload, name, target, timeout))


@overload
def on_message(topic: str = "") -> Callable[[Function], Function]: ...
@overload
def on_message(topic: Function) -> Function: ...


def on_message(topic: Any = "") -> Any:
    """A decorator: call the function with each message on this topic. Bare: with those of no topic.

    It is called with the message, and with its `Sender` if it takes two arguments. For a request,
    what it returns is the answer; if there are several functions for the topic the first one
    answers. It may be a coroutine function. Where it runs depends on the worker:

    async    on the event loop; coroutine functions are started in the order of the messages
             (of a WSGI application in such a worker: as in a thread worker)
    thread   in a thread of its own, one after the other
    sync     in the main thread between two requests, one after the other

    Register while the application is being imported: handlers are called once the worker is ready.
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
    """The live workers, by slot, and the older first where one is being replaced."""
    return sorted(_backend.workers(), key=lambda worker: (worker.slot, worker.serial))


def is_draining() -> bool:
    """Whether this worker accepts no more connections and ends when it has answered what it has."""
    return _backend.is_draining()


def stats() -> Stats:
    """What was sent and received, and dropped."""
    return _backend.stats()


def __getattr__(name: str) -> Any:
    # They change with the backend, so they can't be plain attributes.
    if name in ("slot", "pid"):
        return getattr(_backend, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def encode_message(message: Any) -> bytes:
    """A message in JSON. Raises TypeError, MessageTooLong."""
    payload = to_json(message)
    if len(payload) > MAX_MESSAGE_BYTES:
        raise MessageTooLong(
            f"a message of {len(payload)} bytes is longer than the {MAX_MESSAGE_BYTES} that one "
            "may have"
        )
    return payload


def encode_topic(topic: str) -> bytes:
    """A topic as it travels. Raises TypeError, ValueError."""
    if not isinstance(topic, str):
        raise TypeError(f"a topic is text, not {topic!r}")
    encoded = topic.encode()
    if len(encoded) > MAX_TOPIC_BYTES:
        raise ValueError(f"a topic has at most {MAX_TOPIC_BYTES} bytes: {topic[:40]!r}…")
    return encoded


def _target(to: int) -> int:
    if not isinstance(to, int) or isinstance(to, bool):
        raise TypeError(f"to is a slot, a whole number, not {to!r}")
    if not 0 <= to < EVERYONE:
        raise ValueError(f"there is no slot {to}")
    return to


# --- handlers ---------------------------------------------------------------------------------


class Handler(NamedTuple):
    """A function that is called with messages."""

    function: Callable[..., Any]
    takes_sender: bool

    def __call__(self, value: Any, sender: Sender) -> Any:
        """What the function returns, which may be awaitable."""
        return self.function(value, sender) if self.takes_sender else self.function(value)


_handlers: dict[str, list[Handler]] = {}


def handlers_for(topic: str, *, answering: bool) -> list[Handler]:
    """Who gets a message on this topic; `answering`: who answers a request."""
    found = _handlers.get(topic, [])
    return found[:1] if answering else found


def forget_handlers() -> None:
    """Drop every handler: an application is about to be imported anew."""
    _handlers.clear()


def _add_handler(topic: str, function: Callable[..., Any]) -> None:
    try:
        takes_sender = _takes_two(inspect.signature(function))
    except ValueError:  # a builtin that doesn't tell
        takes_sender = False
    # Replaced rather than changed: another thread may be going through it.
    _handlers[topic] = [*_handlers.get(topic, []), Handler(function, takes_sender)]


def _takes_two(signature: inspect.Signature) -> bool:
    """Whether a second positional argument is wanted; one with a default is the function's own."""
    places = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    parameters = signature.parameters.values()
    wanted = [each for each in parameters if each.kind in places and each.default is each.empty]
    return len(wanted) >= 2


# --- backends ---------------------------------------------------------------------------------


class Backend(Protocol):
    """What carries the messages of this process. `target` is a slot, ARBITER or EVERYONE."""

    slot: int

    @property
    def pid(self) -> int:
        """This process's."""

    def send(self, payload: bytes, topic: bytes, target: int, *, with_self: bool) -> bool:
        """Send a value in JSON. False: it was dropped."""

    def request(self, payload: bytes, topic: bytes, target: int, timeout: float) -> str:
        """Send a request and wait for the answer, in JSON. Raises ClusterError."""

    async def arequest(self, payload: bytes, topic: bytes, target: int, timeout: float) -> str:
        """Likewise, on an event loop."""

    def workers(self) -> list[WorkerInfo]:
        """The live workers."""

    def is_draining(self) -> bool:
        """Whether this process ends soon."""

    def stats(self) -> Stats:
        """What was counted."""


class Alone:
    """A cluster of one, which calls its handlers at once."""

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
        """See Backend. A message that a handler sends is delivered when it has returned."""
        if target not in (self.slot, EVERYONE):
            self._lost += 1
            return True  # as in a server, where only the arbiter knows who is there
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
            result = handler(from_json(payload.decode()), Sender(self.slot, 1))
            if not hasattr(result, "__await__"):
                continue
            import asyncio  # see _on_loop

            if not _on_loop():
                asyncio.run(_wait_for(result))
            else:
                task = asyncio.ensure_future(_wait_for(result))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)

    def request(self, payload: bytes, topic: bytes, target: int, timeout: float) -> str:
        """See Backend."""
        with _answering(target):
            result = self._ask(payload, topic, target)
            if hasattr(result, "__await__"):
                import asyncio  # see _on_loop

                result = asyncio.run(_answer_within(timeout, result, target))
            return to_json(result).decode()

    async def arequest(self, payload: bytes, topic: bytes, target: int, timeout: float) -> str:
        """See Backend."""
        with _answering(target):
            result = self._ask(payload, topic, target)
            if hasattr(result, "__await__"):
                result = await _answer_within(timeout, result, target)
            return to_json(result).decode()

    def _ask(self, payload: bytes, topic: bytes, target: int) -> Any:
        if target != self.slot:
            raise NoSuchWorker(f"there is no worker {target}")
        self._received += 1
        handlers = handlers_for(topic.decode(), answering=True)
        if not handlers:
            self._unheard += 1
            raise RequestFailed(f"there is no handler for {topic.decode()!r}")
        return handlers[0](from_json(payload.decode()), Sender(self.slot, 1))

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


def _on_loop() -> bool:
    """Whether this thread runs an event loop.

    asyncio takes as long to import as half of a server, and 5 MB: who needs no loop goes without.
    """
    # By `getattr`: another thread may be importing it just now.
    running = getattr(sys.modules.get("asyncio"), "_get_running_loop", None)
    return running is not None and running() is not None


async def _wait_for(awaitable: Any) -> Any:
    return await awaitable


async def _answer_within(timeout: float, awaitable: Any, target: int) -> Any:
    import asyncio  # see _on_loop

    try:
        return await asyncio.wait_for(_wait_for(awaitable), timeout)
    except asyncio.TimeoutError as error:
        raise RequestTimeout(f"no answer of worker {target} within {timeout:g} s") from error


@contextlib.contextmanager
def _answering(target: int) -> Iterator[None]:
    """What goes wrong in a handler, as whoever asks from another process sees it."""
    try:
        yield
    except ClusterError:
        raise
    except Exception as error:
        raise RequestFailed(f"worker {target}: {type(error).__name__}: {error}") from error


_backend: Backend = Alone()


def install(backend: Backend) -> None:
    """Have this backend carry the messages of this process from now on."""
    global _backend
    _backend = backend
