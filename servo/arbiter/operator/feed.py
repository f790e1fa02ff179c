"""A stream of records for operators: it keeps the last ones, and sends new ones to followers.

`servoctl events` shows past records, and with `--follow` also new ones. A record is a dict of JSON
values. The feed of the arbiter's own log lines has no followers here: WorkerOutput sends them
together with the workers' lines.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

    from servo.control.server import Caller


class Feed:
    """The last records, and the callers that follow.

    most             how many records to keep
    most_characters  how many characters their texts may have together; the newest record is kept
                     even if it is longer

    on_record        called with each new record
    """

    on_record: Callable[[dict[str, Any]], None] | None = None

    def __init__(self, most: int, most_characters: int) -> None:
        self._records: deque[tuple[int, dict[str, Any]]] = deque()
        self._most = most
        self._most_characters = most_characters
        self._characters = 0
        self._followers: list[Caller] = []

    @property
    def records(self) -> list[dict[str, Any]]:
        """The kept records, oldest first."""
        return [record for _, record in self._records]

    def append(self, record: dict[str, Any]) -> None:
        """Add a record, send it to the followers, and drop old records above the limits."""
        size = sum(len(value) for value in record.values() if isinstance(value, str))
        self._records.append((size, record))
        self._characters += size
        while len(self._records) > self._most or (
            self._characters > self._most_characters and len(self._records) > 1
        ):
            self._characters -= self._records.popleft()[0]
        if self.on_record is not None:
            self.on_record(record)
        if self._followers:
            self._followers = [caller for caller in self._followers if not caller.gone]
            for caller in self._followers:
                caller.note(record)

    def show(self, caller: Caller, follow: bool) -> None:
        """Send a caller the kept records.

        follow  whether to send it new records, too
        """
        caller.notes(self.records)
        if follow:
            caller.following = True
            self._followers.append(caller)
        else:
            caller.done({})
