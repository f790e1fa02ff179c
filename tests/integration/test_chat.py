"""The chat of `examples/`: all readers get all lines, in the same order, even during reloads."""

from __future__ import annotations

import json
import signal
import threading
from collections.abc import Callable
from typing import Any

import pytest
import requests

from integration.server import DEADLINE_S, REPOSITORY, Server, wait_for

WORKERS = 4
READERS = 8


class Reader(threading.Thread):
    """A browser: it reads the stream, and connects again when that ends."""

    def __init__(self, url: str) -> None:
        super().__init__(daemon=True)
        self.url = url
        self.lines: list[str] = []
        self.workers: list[str] = []
        self.failures: list[str] = []
        self._ids: list[str] = []
        self._over = threading.Event()

    def run(self) -> None:
        while not self._over.is_set():
            headers = {"Last-Event-ID": self._ids[-1]} if self._ids else {}
            with requests.get(
                f"{self.url}/events", headers=headers, stream=True, timeout=DEADLINE_S
            ) as response:
                assert response.status_code == 200
                try:
                    self._read(response)
                except requests.RequestException as error:
                    self.failures.append(repr(error))

    def _read(self, response: requests.Response) -> None:
        fields: dict[str, str] = {}
        for line in response.iter_lines(chunk_size=1, decode_unicode=True):
            if self._over.is_set():
                return
            name, _, value = line.partition(": ")
            if line:
                fields[name] = value
                continue
            if fields.get("event") == "worker":
                self.workers.append(fields["data"])
            elif "data" in fields and fields["id"] not in self._ids:
                self._ids.append(fields["id"])
                self.lines.append(json.loads(fields["data"])["text"])
            fields = {}

    def end(self) -> None:
        self._over.set()


@pytest.mark.slow
def test_a_chat_across_workers_and_through_reloads(serve: Callable[..., Server]) -> None:
    server = serve(f"{REPOSITORY}/examples/chat.py:app", "-w", str(WORKERS), ready=WORKERS)
    assert "<h1>Chat</h1>" in requests.get(f"{server.url}/", timeout=DEADLINE_S).text
    said: list[str] = []

    def say() -> None:
        said.append(f"line {len(said)}")
        line: dict[str, Any] = {"name": "me", "text": said[-1]}
        # A connection each, so that another worker may take it.
        answer = requests.post(f"{server.url}/say", json=line, timeout=DEADLINE_S)
        assert answer.status_code == 204

    readers = [Reader(server.url) for _ in range(READERS)]
    for reader in readers:
        reader.start()
    wait_for(lambda: all(reader.workers for reader in readers), "a stream for each reader")
    assert len({reader.workers[0] for reader in readers}) > 1
    for _ in range(20):
        say()
    for _ in range(2):
        old = server.worker_pids()
        server.signal(signal.SIGHUP)
        # Lines go on while workers come and go.
        wait_for(lambda: say() or len(said) % 20 == 0, "lines during the reload", every_s=0.01)
        server.wait_replaced(old)
        for _ in range(5):
            say()
    wait_for(
        lambda: all(len(reader.lines) >= len(said) for reader in readers), "every line, everywhere"
    )
    for reader in readers:
        reader.end()
    say()  # which ends their waiting
    for reader in readers:
        reader.join(DEADLINE_S)
        assert reader.failures == []
        # One order for all; it need not be that of the requests, which other workers took.
        assert reader.lines[: len(said) - 1] == readers[0].lines[: len(said) - 1]
        assert sorted(reader.lines[: len(said) - 1]) == sorted(said[:-1])
        assert len(reader.workers) >= 3  # one at least before, between and after the reloads
