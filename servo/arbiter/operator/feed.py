"""A stream of records for operators: the last ones are kept, and followers get the new ones.

`servoctl logs` and `servoctl events` show what has happened, and with `--follow` what happens from
then on. Records are dicts that JSON can hold.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from servo.control.server import Caller


class Feed:
    """The last records, and the callers that follow.

    most             how many records are kept
    most_characters  the total length of their texts; the last record is kept in any case
    """

    def __init__(self, most: int, most_characters: int) -> None:
        self._records: deque[tuple[int, dict[str, Any]]] = deque()
        self._most = most
        self._most_characters = most_characters
        self._characters = 0
        self._followers: list[Caller] = []

    @property
    def records(self) -> list[dict[str, Any]]:
        """The records that are kept, the oldest first."""
        return [record for _, record in self._records]

    def append(self, record: dict[str, Any]) -> None:
        """Add a record: the oldest ones make room, and the followers get it."""
        size = sum(len(value) for value in record.values() if isinstance(value, str))
        self._records.append((size, record))
        self._characters += size
        while len(self._records) > self._most or (
            self._characters > self._most_characters and len(self._records) > 1
        ):
            self._characters -= self._records.popleft()[0]
        if self._followers:
            self._followers = [caller for caller in self._followers if not caller.gone]
            for caller in self._followers:
                caller.note(record)

    def show(self, caller: Caller, follow: bool) -> None:
        """Send a caller the records that are kept, and the coming ones, too, if it follows."""
        caller.notes(self.records)
        if follow:
            caller.following = True
            self._followers.append(caller)
        else:
            caller.done({})
