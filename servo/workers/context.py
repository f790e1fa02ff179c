"""What a worker is born with. The arbiter fills it in before it forks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from servo.ipc.channel import Channel
    from servo.net.listeners import Listener
    from servo.observe.scoreboard import Scoreboard
    from servo.settings.sources import Settings


@dataclass
class WorkerContext:
    """Everything that a worker process may use.

    slot         what an operator names; reused by a successor
    serial       never reused in the life of an arbiter
    generation   counts the releases (reloads) of this arbiter
    row_index    the worker's row of the scoreboard
    server       what gunicorn's hooks get as their `server` argument
    """

    slot: int
    serial: int
    generation: int
    settings: Settings
    listeners: list[Listener]
    channel: Channel
    scoreboard: Scoreboard
    row_index: int
    arbiter_pid: int
    server: object
