"""The connections of the dashboard to its arbiter: figures, events and commands.

The arbiter makes three connected pairs of sockets before it forks the process. They carry the
protocol of the control socket (`servo.control.protocol`), so the dashboard shows what `servoctl`
shows, also if the server has no control socket. When the arbiter ends, or its program is replaced,
the kernel closes its ends. Then this process ends, too.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from servo.control import protocol
from servo.control.client import ConnectionEnded, NoAnswer, RequestFailed
from servo.dashboard.samples import Sampler
from servo.metrics.usage import Usage, next_reading_at

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

    from servo.dashboard.history import History

log = logging.getLogger("servo.error")

# The time between two samples, in seconds.
SAMPLE_S = 1.0
# If an answer takes longer, the second's sample says that the server is lost.
LOST_S = 2.0
# The longest time for a command, which does not include the time until a reload is over.
COMMAND_S = 15.0
# The longest line of an answer: the arbiter sends at most 2 MiB at a time.
_MAX_LINE = 4 << 20


class Connection:
    """One connection. Requests are sent one after the other.

    reader, writer   its streams
    """

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._lock = asyncio.Lock()

    async def request(
        self,
        command: str,
        args: dict[str, Any] | None = None,
        on_note: Callable[[dict[str, Any]], None] | None = None,
    ) -> dict[str, Any]:
        """Send a request, and return its result. Raises RequestFailed and ConnectionEnded.

        command   the command's name
        args      its arguments by name
        on_note   called with each note of the answer
        """
        async with self._lock:
            self._writer.write(protocol.request_line(command, args or {}))
            while True:
                line = await self._line()
                if not line.strip():
                    continue  # a sign of life
                answer = protocol.parse_answer(line)
                if "ok" in answer:
                    break
                if "note" in answer and on_note is not None:
                    on_note(answer["note"])
        if answer["ok"]:
            return dict(answer["result"])
        raise RequestFailed(str(answer["kind"]), str(answer["error"]), str(answer["details"]))

    def close(self) -> None:
        """Close the connection."""
        self._writer.close()

    async def _line(self) -> bytes:
        try:
            line = await self._reader.readline()
        except OSError as error:
            raise ConnectionEnded(f"the arbiter is gone: {error}") from error
        if not line.endswith(b"\n"):
            raise ConnectionEnded("the arbiter is gone")
        return line


class ServerLink:
    """Fills the history, and sends commands.

    sockets    the three connections: for figures, for events and for commands
    history    gets a sample each second, and each event
    about      what the description of the server says about the dashboard itself
    on_change  called when the history has changed
    on_end     called when the arbiter has closed a connection
    """

    def __init__(
        self,
        sockets: list[socket.socket],
        history: History,
        about: dict[str, Any],
        on_change: Callable[[], None],
        on_end: Callable[[], None],
    ) -> None:
        self._sockets = sockets
        self._history = history
        self._about = about
        self._on_change = on_change
        self._on_end = on_end
        self._sampler = Sampler()
        self._usage = Usage()
        self._connections: list[Connection] = []
        self._tasks: set[asyncio.Task[Any]] = set()
        self._answered = asyncio.Event()

    async def start(self) -> None:
        """Connect, and start to fill the history."""
        for sock in self._sockets:
            reader, writer = await asyncio.open_unix_connection(sock=sock, limit=_MAX_LINE)
            self._connections.append(Connection(reader, writer))
        self._start(self._follow_events(), "events")
        self._start(self._poll(), "figures")

    async def first_answer(self) -> None:
        """Wait until the history describes the server, but at most LOST_S seconds."""
        with suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self._answered.wait(), LOST_S)

    def close(self) -> None:
        """Close the connections."""
        for task in self._tasks:
            task.cancel()
        for connection in self._connections:
            connection.close()

    async def command(self, name: str, args: dict[str, Any]) -> dict[str, Any]:
        """Send a command, and return its result. Raises RequestFailed, ConnectionEnded, NoAnswer.

        name   the command in the protocol of the control socket
        args   its arguments
        """
        # After the limit the request goes on, and its answer is dropped. Otherwise the next request
        # would get this answer.
        task = self._start(self._connections[2].request(name, args), name)
        done, _ = await asyncio.wait({task}, timeout=COMMAND_S)
        if not done:
            raise NoAnswer(f"the server does not answer within {COMMAND_S:g} s")
        result: dict[str, Any] = task.result()
        return result

    def _start(self, coroutine: Any, name: str) -> asyncio.Task[Any]:
        task: asyncio.Task[Any] = asyncio.get_running_loop().create_task(coroutine, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        error = None if task.cancelled() else task.exception()
        if isinstance(error, ConnectionEnded):
            self._on_end()
        elif error is not None and not isinstance(error, RequestFailed):
            log.error("The dashboard's link to the arbiter has failed", exc_info=error)
            self._on_end()

    # --- events -----------------------------------------------------------------------------------

    async def _follow_events(self) -> None:
        connection = self._connections[1]
        kept: list[dict[str, Any]] = []
        await connection.request("events", on_note=kept.append)
        for event in kept:
            self._history.add_event(event)
        # The next answer begins with the kept events once more.
        known = {json.dumps(event) for event in kept}

        def on_note(event: dict[str, Any]) -> None:
            if known and json.dumps(event) in known:
                return
            known.clear()
            self._history.add_event(event)
            self._on_change()

        await connection.request("events", {"follow": True}, on_note)

    # --- figures ----------------------------------------------------------------------------------

    async def _poll(self) -> None:
        answer: asyncio.Task[None] | None = None
        at, limit_s = time.monotonic(), LOST_S
        while True:
            if answer is None:
                answer = self._start(self._add_sample(), "sample")
            done, _ = await asyncio.wait({answer}, timeout=limit_s)
            limit_s = LOST_S if done else SAMPLE_S
            if done:
                answer.result()
                answer = None
            else:
                self._history.add_sample(self._sampler.lost(self._number(), time.time()))
            self._on_change()
            # Keep the pace of one sample a second, but don't hurry after a delay.
            at = next_reading_at(at, time.monotonic(), SAMPLE_S)
            await asyncio.sleep(at - time.monotonic())

    async def _add_sample(self) -> None:
        connection = self._connections[0]
        status = await connection.request("status")
        workers = await connection.request("workers")
        pools = await connection.request("pools")
        at, now = time.monotonic(), time.time()
        self._usage.add(workers, os.getppid(), at)
        self._history.set_server(
            {
                "name": status["name"],
                "pid": status["pid"],
                "version": status["version"],
                "python": status["python"],
                "app": status["app"],
                "worker_class": status["worker_class"],
                "listeners": status["listeners"],
                "started": status["started_at"],
                **self._about,
            }
        )
        sample = self._sampler.sample(self._number(), now, at, status, workers, pools["pools"])
        self._history.add_sample(sample)
        self._answered.set()

    def _number(self) -> int:
        # The numbers go on after a restart of this process, even if its history is lost.
        return max(self._history.last_number + 1, int(time.time()))
