"""A worker's reports: stacks, requests and log lines, all within limits."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import threading
from typing import Any

import pytest

from servo.ipc.channel import (
    MAX_FRAME_BYTES,
)
from servo.workers import inspection
from servo.workers.query_signals import REQUESTS_SIGNAL


def test_stacks_of_threads() -> None:
    inside, leave = threading.Event(), threading.Event()

    def waits_here() -> None:
        inside.set()
        leave.wait()

    thread = threading.Thread(target=waits_here, name="a-thread")
    thread.start()
    inside.wait()
    found = inspection.stacks(None)
    leave.set()
    thread.join()
    stacks = {each["name"]: each["stack"] for each in found["threads"]}
    assert "in waits_here" in stacks["a-thread"]
    assert "in test_stacks_of_threads" in stacks["MainThread"]
    assert (found["tasks"], found["left_out"]) == ([], 0)


def test_stacks_of_tasks_to_their_depth_and_within_bounds() -> None:
    async def deep() -> None:
        await asyncio.Event().wait()

    async def outer() -> None:
        await deep()

    async def main() -> dict[str, Any]:
        tasks = [asyncio.create_task(outer(), name=f"task {number}") for number in range(3000)]
        await asyncio.sleep(0)
        found = inspection.stacks(asyncio.get_running_loop())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        return found

    found = asyncio.run(main())
    waiting = [task["stack"] for task in found["tasks"] if "in outer" in task["stack"]]
    assert all("in deep" in stack for stack in waiting)
    assert 0 < len(found["tasks"]) < 3001
    assert found["left_out"] == 3001 - len(found["tasks"])
    assert len(json.dumps(found)) < MAX_FRAME_BYTES


def test_requests_are_the_oldest_first_and_not_all() -> None:
    now = 10**12
    requests = [(now - n * 10**9, "GET", b"/%d" % n, "192.0.2.1") for n in range(500)]
    found = inspection.running(requests, now)
    assert found["total"] == 500
    assert len(found["requests"]) == inspection.MAX_REQUESTS
    assert found["requests"][0] == {
        "method": "GET",
        "target": "/499",
        "client": "192.0.2.1",
        "seconds": 499.0,
    }
    (long,) = inspection.running([(now, "GET", b"/" * 9000, "")], now)["requests"]
    assert len(long["target"]) == inspection.MAX_TARGET


@pytest.mark.skipif(not REQUESTS_SIGNAL, reason="there are no spare signals here")
def test_a_busy_main_thread_answers_a_signal() -> None:
    before = signal.getsignal(REQUESTS_SIGNAL)
    reader, writer = os.pipe()
    found: list[dict[str, Any]] = [{"requests": [], "total": 0}]
    inspection.answer_requests_signal(found.pop, writer)
    try:
        signal.raise_signal(REQUESTS_SIGNAL)
        assert json.loads(os.read(reader, 1000)) == {"requests": [], "total": 0}
        # The application must not get to see what goes wrong here.
        signal.raise_signal(REQUESTS_SIGNAL)
    finally:
        signal.signal(REQUESTS_SIGNAL, before)
        os.close(reader)
        os.close(writer)
