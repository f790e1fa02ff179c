"""A worker's mailbox with a real channel. The test holds the arbiter's end."""

from __future__ import annotations

from typing import Any

from servo.ipc.channel import SharedChannel, channel_pair
from servo.ipc.messages import PLAIN, REPLY, AppMessage, Message, to_json
from servo.shared_memory.scoreboard import Scoreboard
from servo.workers.messages.handlers import InlineRunner, Runner
from servo.workers.messages.mailbox import Mailbox

SLOT, SERIAL = 2, 5


class Owner:
    """A worker that counts how often it is woken."""

    draining = False

    def __init__(self) -> None:
        self.wakes = 0
        self.watched: list[bool] = []

    def wake(self) -> None:
        self.wakes += 1

    def watch_channel(self, writable: bool) -> None:
        self.watched.append(writable)


class Pair:
    """A mailbox and the arbiter's end of its channel."""

    def __init__(self) -> None:
        self.arbiter, theirs = channel_pair()
        self.scoreboard = Scoreboard(4)
        self.mailbox = Mailbox(SharedChannel(theirs), SLOT, SERIAL, self.scoreboard)
        self.theirs = theirs
        self.owner = Owner()

    def attach(self, *, any_thread_reads: bool = False, **options: Any) -> None:
        self.mailbox.attach(self.owner, any_thread_reads=any_thread_reads, **options)
        self.owner.wakes = 0

    def tell(self, value: Any, topic: str = "t", kind: int = PLAIN, **options: Any) -> None:
        """What another worker (slot 1, serial 4) sends to this one."""
        sender = options.pop("sender", (1, 4))
        target = options.pop("target", SLOT)
        message = AppMessage.make(
            kind, sender, target, topic.encode(), to_json(value), options.pop("number", 0)
        )
        self.arbiter.send(message)

    def reply(self, value: Any, number: int, kind: int = REPLY) -> None:
        self.tell(value, "", kind, target=SERIAL, number=number)

    def said(self) -> list[Message]:
        return self.arbiter.receive()

    def values(self) -> list[Any]:
        return [message.value() for message in self.said() if isinstance(message, AppMessage)]

    def run_all(self) -> None:
        """As many slices of time as the handlers take."""
        self.mailbox.run()
        while self.mailbox.inbox:
            self.mailbox.run()

    def close(self) -> None:
        self.arbiter.close()
        self.theirs.close()
        self.scoreboard.close()


def inline(pair: Pair) -> Runner:
    return InlineRunner(pair.mailbox, pair.owner.wake)
