"""Ends the old workers after an upgrade whose new program can't read the old one's state.

The new program has the old workers' pids and channels, but can't use their rows of the scoreboard
or read their messages. So it only lets them end: when a new worker is ready, it tells the old ones
to retire, as in a reload, and kills those that take too long. The form of messages may differ
between versions, so the new program sends a message that the old one had encoded for this purpose.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
from typing import TYPE_CHECKING

from servo.arbiter import process_info

if TYPE_CHECKING:
    from collections.abc import Iterable

    from servo.arbiter.upgrade_state import OldWorker

log = logging.getLogger("servo.error")


class OldWorkers:
    """The workers of the previous program, from the upgrade to their end.

    workers   their pids and channels
    order     the encoded message that tells a worker to retire
    """

    def __init__(self, workers: Iterable[OldWorker], order: bytes) -> None:
        self._workers = {worker.pid: worker for worker in workers}
        self._channels = {
            worker.pid: socket.socket(fileno=worker.channel)
            for worker in self._workers.values()
            if worker.channel >= 0
        }
        self._order = order
        self._retired_at: float | None = None

    def left(self) -> list[OldWorker]:
        """The workers that have not ended."""
        return list(self._workers.values())

    def retire(self, now: float) -> None:
        """Tell all of them to finish their requests and end. A second call does nothing.

        now   monotonic seconds
        """
        if self._retired_at is not None or not self._workers:
            return
        self._retired_at = now
        log.info("The %d workers of the old program finish their requests", len(self._workers))
        for pid, channel in self._channels.items():
            data = self._workers[pid].unsent + self._order
            try:
                channel.setblocking(False)
                is_sent = channel.send(data) == len(data)
            except OSError as error:
                log.debug("Worker process %d can't be told to retire: %s", pid, error)
                is_sent = False
            if not is_sent:
                # To the worker it looks as if the arbiter had died: it finishes its requests, too.
                channel.close()

    def tick(self, now: float) -> None:
        """Forget ended workers, and kill those that take too long. Called once a second.

        now   monotonic seconds
        """
        for pid, worker in list(self._workers.items()):
            if not _exists(pid):
                del self._workers[pid]
                if pid in self._channels:
                    self._channels.pop(pid).close()
            elif self._retired_at is not None and now >= self._retired_at + worker.grace_s:
                log.warning(
                    "Worker process %d of the old program needs more than %g s; killing it",
                    pid,
                    worker.grace_s,
                )
                process_info.send_signal(pid, signal.SIGKILL)

    def close(self) -> None:
        """Close all channels. A worker that was not told to retire then also finishes and ends."""
        for channel in self._channels.values():
            channel.close()


def _exists(pid: int) -> bool:
    """Whether a child is not yet reaped."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
