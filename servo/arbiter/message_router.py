"""Messages between applications: from a worker's channel to another's, without a look inside.

Children collect what arrives; `deliver` is called once a turn of the loop, routes for a few
milliseconds at most, each sender in its turn, and sends all that one worker gets by one system
call. So neither a flood nor a worker that does not read keeps the arbiter from its work: what finds
no room in a worker's queue is dropped, counted and logged; a request is answered with the reason.
"""

from __future__ import annotations

import logging
import os
from time import monotonic
from typing import TYPE_CHECKING, Any

from servo.cluster import ClusterError, encode_message, encode_topic
from servo.ipc.drops import Drops
from servo.ipc.messages import (
    ARBITER,
    EVERYONE,
    FAILURE,
    PLAIN,
    REPLY,
    REQUEST,
    AppMessage,
    MessageError,
    to_json,
)
from servo.shared_memory import row_layout

if TYPE_CHECKING:
    from collections.abc import Callable

    from servo.arbiter.hook_objects import WorkerFacade
    from servo.arbiter.processes.workers import Child, Children

log = logging.getLogger("servo.error")

# One turn of the loop routes for so long, and so many messages of one sender before another's.
SLICE_S = 0.005
MESSAGES_A_TURN = 128
# Requests of one worker that are remembered until it has answered, so that its end can be told.
# More can't wait in a worker; of handlers that never answer the oldest are forgotten.
MAX_OWED = 32_768

_ARBITER = (0, 0)
# How well a worker of a slot can take a message, by its state; else it can't.
_RANKS = {
    row_layout.STATE_READY: 3,
    row_layout.STATE_BOOTING: 2,
    row_layout.STATE_SPAWNED: 2,
    row_layout.STATE_DRAINING: 1,
}


class Post:
    """Routes.

    on_message   the configuration's hook, as (worker, value, topic); None when there is none

    routed       messages that were put into a worker's queue
    overflows    ... and those that found no room there
    strays       messages to slots that no worker has
    """

    def __init__(
        self,
        children: Children,
        on_message: Callable[[], Callable[[Any, Any, str], Any] | None],
    ) -> None:
        self._children = children
        self._on_message = on_message
        self._pid = os.getpid()
        self._dirty: dict[int, Child] = {}
        self.routed = 0
        self.overflows = Drops()
        self.strays = Drops()

    @property
    def waiting(self) -> bool:
        """Whether `deliver` has more to do."""
        return bool(self._children.with_mail)

    def deliver(self) -> None:
        """Route what has arrived, for a slice of time; then send."""
        end = monotonic() + SLICE_S
        with_mail = self._children.with_mail
        while with_mail:
            child = with_mail.popleft()
            mail = child.mail
            for _ in range(MESSAGES_A_TURN):
                message = mail.popleft()
                if message is None:
                    self._on_gone(child)
                else:
                    self._route(child, message)
                if not mail or monotonic() >= end:
                    break
            if mail:
                with_mail.append(child)
            if monotonic() >= end:
                break
        self._send_out()

    def report(self) -> None:
        """Log the drops that were not logged yet, from time to time."""
        self._say_strays(self.strays.due(monotonic()))
        for child in self._children:
            self._say_overflows(child, child.overflows.due(monotonic()))

    # --- what the arbiter sends itself ------------------------------------------------------------

    def by_slot(self) -> dict[int, WorkerFacade]:
        """The worker of each slot that messages go to."""
        slots = sorted({child.slot for child in self._children})
        found = ((slot, self._of_slot(slot)) for slot in slots)
        return {slot: child.facade for slot, child in found if child is not None}

    def send(self, value: Any, *, to: int, topic: str = "") -> bool:
        """Send a message to the worker of a slot. False: there is none, or it is too far behind.

        Raises TypeError for what is no JSON value, ValueError when it is too long.
        """
        child = self._of_slot(to)
        return child is not None and self.send_to(child.serial, value, topic)

    def send_to(self, serial: int, value: Any, topic: str = "") -> bool:
        """Likewise, to one worker, by its serial."""
        self._refuse_in_child()
        child = self._children.get(serial)
        if child is None or child.channel is None:
            return False
        sent = self._put(child, _message(value, child.slot, topic).data)
        self._send_out()
        return sent

    def broadcast(self, value: Any, *, topic: str = "") -> int:
        """Send a message to every worker; how many it is queued for. Raises as `send`."""
        self._refuse_in_child()
        data = _message(value, EVERYONE, topic).data
        count = sum(self._put(child, data) for child in self._children if child.channel is not None)
        self._send_out()
        return count

    def _refuse_in_child(self) -> None:
        # A forked worker has a copy of all this, for its hooks, but the channels are the arbiter's.
        if os.getpid() != self._pid:
            raise ClusterError("in a worker, messages are sent by servo.cluster")

    # --- routing ----------------------------------------------------------------------------------

    def _route(self, sender: Child, message: AppMessage) -> None:
        if message.serial != sender.serial:
            log.error("Worker %d has sent a message in the name of another", sender.slot)
        elif message.kind == PLAIN:
            self._route_plain(sender, message)
        elif message.kind == REQUEST:
            self._route_request(sender, message)
        else:
            self._route_reply(sender, message)

    def _route_plain(self, sender: Child, message: AppMessage) -> None:
        if message.target == EVERYONE:
            for child in self._children:
                if child.channel is not None and child.serial != message.number:
                    self._put(child, message.data)
        elif message.target == ARBITER:
            self._take(sender, message)
        else:
            receiver = self._of_slot(message.target)
            if receiver is None:
                self._say_strays(self.strays.note(monotonic()))
            else:
                self._put(receiver, message.data)

    def _route_request(self, sender: Child, message: AppMessage) -> None:
        if message.target == ARBITER:
            self._take(sender, message)
            return
        child = self._of_slot(message.target)
        if child is None:
            self._fail(message, "no_worker", f"there is no worker {message.target}")
        elif self._put(child, message.data):
            if len(child.owed) >= MAX_OWED:
                del child.owed[next(iter(child.owed))]
            child.owed[message.serial, message.number] = message
        else:
            self._fail(message, "overflow", f"worker {child.slot} does not read its messages")

    def _route_reply(self, sender: Child, message: AppMessage) -> None:
        sender.owed.pop((message.target, message.number), None)
        asker = self._children.get(message.target)
        if asker is not None and asker.channel is not None:
            self._put(asker, message.data)

    def _on_gone(self, child: Child) -> None:
        """A worker is gone, and all that it had said is routed: what it owes it will not answer."""
        owed, child.owed = child.owed, {}
        for request in owed.values():
            text = f"worker {child.slot} (pid {child.pid}) has ended"
            self._fail(request, "lost", text)

    def _of_slot(self, slot: int) -> Child | None:
        """The worker that a slot's messages go to: the newest ready one; else one that boots, which
        reads them when it is ready; else one that drains."""
        best: Child | None = None
        best_rank = (0, 0)
        for child in self._children.in_slot(slot):
            if child.channel is None or child.row is None:
                continue
            rank = (_RANKS.get(child.row[row_layout.STATE], 0), child.serial)
            if rank > best_rank and rank[0]:
                best, best_rank = child, rank
        return best

    def _take(self, sender: Child, message: AppMessage) -> None:
        """A message to the arbiter: the configuration's hook is called."""
        hook = self._on_message()
        asks = message.kind == REQUEST
        if hook is None:
            if asks:
                self._fail(message, "failed", "the configuration has no on_message hook")
            else:
                self._say_strays(self.strays.note(monotonic()))
            return
        try:
            result = hook(sender.facade, message.value(), message.topic)
            payload = encode_message(result) if asks else b""
        except MessageError as error:
            log.error("A message of worker %d makes no sense: %s", sender.slot, error)
        except Exception as error:
            log.exception("The on_message hook failed")
            self._fail(message, "failed", f"the on_message hook: {type(error).__name__}: {error}")
        else:
            self._reply(message, REPLY, payload)

    def _fail(self, request: AppMessage, error: str, text: str) -> None:
        self._reply(request, FAILURE, to_json([error, text]))

    def _reply(self, request: AppMessage, kind: int, payload: bytes) -> None:
        asker = self._children.get(request.serial)
        if request.kind == REQUEST and asker is not None and asker.channel is not None:
            number = request.number
            reply = AppMessage.make(kind, _ARBITER, request.serial, b"", payload, number)
            self._put(asker, reply.data)

    # --- queues -----------------------------------------------------------------------------------

    def _put(self, child: Child, data: bytes) -> bool:
        assert child.channel is not None
        if child.channel.queue(data):
            self.routed += 1
            self._dirty[child.serial] = child
            return True
        self.overflows.note(monotonic())
        self._say_overflows(child, child.overflows.note(monotonic()))
        return False

    def _send_out(self) -> None:
        while self._dirty:
            self._children.flush(self._dirty.popitem()[1])

    def _say_overflows(self, child: Child, count: int) -> None:
        if count:
            text = "Worker %d (pid %d) does not read its messages: %d dropped"
            log.warning(text, child.slot, child.pid, count)

    def _say_strays(self, count: int) -> None:
        if count:
            log.warning("%d messages dropped: nobody has the slots that they were for", count)


def _message(value: Any, target: int, topic: str) -> AppMessage:
    return AppMessage.make(PLAIN, _ARBITER, target, encode_topic(topic), encode_message(value))
