"""Messages between the workers of real servers, of each class."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import requests

from integration.server import APPS, DEADLINE_S, Server, alive, environment, wait_for

pytestmark = pytest.mark.slow

Serve = Callable[..., Server]

CLASSES = {
    "sync": ("app", "-k", "sync"),
    "thread": ("app", "-k", "thread", "--threads", "4"),
    "async": ("asgi", "-k", "async", "--lifespan", "off"),
}


class Workers:
    """A server whose workers do what the test says."""

    def __init__(self, server: Server, directory: Path) -> None:
        self.server = server
        self.directory = directory

    def ask(self, to: int, topic: str, message: Any = None, timeout: float = 30) -> Any:
        """What the worker of that slot answers; a dict with "error" if it does not."""
        response = requests.post(
            f"{self.server.url}/ask",
            params={"to": to, "topic": topic, "timeout": timeout},
            json=message,
            timeout=60,
        )
        assert response.status_code == 200, response.text
        return response.json()

    def wait_heard(self, slot: int, count: int) -> list[Any]:
        """What a worker has heard, when that is so many messages."""
        heard: list[Any] = []

        def enough() -> bool:
            heard[:] = self.ask(slot, "heard")
            return len(heard) >= count

        wait_for(enough, f"{count} messages in worker {slot}")
        return heard

    def pid(self, slot: int) -> int:
        return int(self.ask(slot, "who")["pid"])

    def release(self) -> None:
        (self.directory / "release").touch()

    def wait_blocked(self, slot: int) -> None:
        wait_for((self.directory / f"blocked-{slot}").exists, f"a blocked worker {slot}")

    def wait_gone(self, pid: int) -> None:
        """Until a dying worker is dead, and can't take a request of the test's with it."""
        wait_for(lambda: not alive(pid), f"the end of process {pid}")

    def start_ask(self, slot: int, to: int, topic: str, timeout: float = 30) -> None:
        """Have a thread in one worker ask another, while both go on."""
        self.ask(slot, "start ask", {"to": to, "topic": topic, "timeout": timeout})
        # Not before: the worker that is asked may be the one that has served this request.
        (self.directory / "go").touch()
        if topic == "block":
            # Nor the next request: a worker that has accepted it may be blocked before it is read.
            self.wait_blocked(to)

    def wait_result(self, slot: int) -> Any:
        """What the first thread that was started in a worker has come to."""
        return wait_for(lambda: self.ask(slot, "results"), f"the result in worker {slot}")[0]


@pytest.fixture
def start(serve: Serve, worker_class: str, tmp_path: Path) -> Callable[..., Workers]:
    def started(count: int, *args: str) -> Workers:
        app, *flags = CLASSES[worker_class]
        spec = f"{APPS / 'cluster_app.py'}:{app}"
        server = serve(spec, *flags, "-w", str(count), *args, ready=count)
        return Workers(server, tmp_path)

    return started


def test_order_and_at_most_once(start: Callable[..., Workers]) -> None:
    """Three workers send to the fourth at once: of each it hears all, once, in order."""
    workers = start(4)
    count = 2000
    for slot in (1, 2, 3):
        workers.ask(slot, "start send", {"count": count, "to": 4})
    for slot in (1, 2, 3):
        assert workers.wait_result(slot) == count
    heard = workers.wait_heard(4, 3 * count)
    for slot in (1, 2, 3):
        assert [number for sender, number in heard if sender == slot] == list(range(count))
    assert len(heard) == 3 * count
    assert workers.ask(4, "stats")["dropped"] == 0


def test_broadcasts_come_in_one_order_to_all(start: Callable[..., Workers]) -> None:
    workers = start(3)
    count = 300
    for slot in (1, 2, 3):
        workers.ask(slot, "start send", {"count": count, "to": "all"})
    for slot in (1, 2, 3):
        assert workers.wait_result(slot) == count
    first = workers.wait_heard(1, 3 * count)
    assert sorted(first) == [[slot, number] for slot in (1, 2, 3) for number in range(count)]
    assert workers.wait_heard(2, 3 * count) == first
    assert workers.wait_heard(3, 3 * count) == first


def test_requests_of_every_kind(start: Callable[..., Workers], worker_class: str) -> None:
    workers = start(3)
    who = [workers.ask(slot, "who") for slot in (1, 2, 3)]
    assert [each["slot"] for each in who] == [1, 2, 3]
    assert {each["pid"] for each in who} == set(workers.server.worker_pids())
    assert not any(each["draining"] for each in who)
    listed = workers.ask(2, "workers")
    assert [(each["slot"], each["pid"], each["state"]) for each in listed] == [
        (each["slot"], each["pid"], "ready") for each in who
    ]
    if worker_class == "thread":
        assert workers.ask(1, "relay", [2, 3]) == 3
        assert workers.ask(1, "async relay", [2, 3]) == 3
    elif worker_class == "async":
        assert workers.ask(1, "async relay", [2, 3, 3]) == 3
    assert workers.ask(2, "async note", "x") == 1
    assert workers.ask(2, "heard")[0][1] == "x"
    assert workers.ask(1, "heard") == []
    if worker_class == "async":
        refused = workers.ask(1, "relay", [2])
        assert "await cluster.arequest" in refused["text"]


def test_requests_that_fail(start: Callable[..., Workers]) -> None:
    workers = start(2)
    assert workers.ask(7, "who") == {"error": "NoSuchWorker", "text": "there is no worker 7"}
    assert workers.ask(0, "who") == {
        "error": "RequestFailed",
        "text": "the configuration has no on_message hook",
    }
    nowhere = workers.ask(2, "nowhere")
    assert nowhere["text"] == "worker 2 has no handler for 'nowhere'"
    raised = workers.ask(2, "raise")
    assert raised == {"error": "RequestFailed", "text": "worker 2: ValueError: on purpose"}
    workers.server.wait_log(r"The handler of a message on 'raise' failed\n(?s:.*)on purpose")
    assert workers.ask(2, "fork") == "this process is no worker: the application has forked it"
    assert workers.ask(2, "who")["slot"] == 2


def test_a_request_that_takes_too_long(start: Callable[..., Workers]) -> None:
    workers = start(3)
    workers.start_ask(1, 2, "block", timeout=0.2)
    late = {"error": "RequestTimeout", "text": "no answer from worker 2 within 0.2 s"}
    assert workers.wait_result(1) == late
    assert workers.ask(3, "who")["slot"] == 3
    workers.release()
    # The late reply is no other request's.
    assert workers.ask(2, "who")["slot"] == 2
    assert workers.ask(2, "block") == "released"
    assert workers.ask(1, "results") == [late]


def test_a_worker_that_does_not_handle_its_messages(start: Callable[..., Workers]) -> None:
    """It loses what does not fit; nobody waits for it, and the others lose nothing."""
    workers = start(3, "--timeout", "60")
    workers.start_ask(1, 2, "block", timeout=60)
    rounds = 15
    for done in range(1, rounds + 1):
        # More at once than a queue holds would be dropped by the sender's own.
        order = {"count": 100, "to": "all", "padding": 10_000}
        assert workers.ask(1, "send", order) == 100
        workers.wait_heard(3, 100 * done)
    assert [number for _, number in workers.ask(3, "heard")] == list(range(100)) * rounds
    refused = wait_for(
        lambda: [
            answer
            for answer in [workers.ask(2, "note", "x" * 100_000, timeout=0.2)]
            if answer["error"] == "ClusterOverflow"
        ],
        "a request that is refused because of the messages that wait",
    )
    assert "worker 2" in refused[0]["text"]
    workers.server.wait_log(r"Worker 2 .* does not read its messages: \d+|\d+ messages dropped")
    workers.release()
    assert workers.wait_result(1) == "released"
    found = [number for _, number in workers.ask(2, "heard") if isinstance(number, int)]
    assert 0 < len(found) < 100 * rounds
    # In order, and none twice: it is a part of what the others have heard.
    rest = iter(list(range(100)) * rounds)
    assert all(number in rest for number in found)


def test_a_worker_that_dies_in_between(start: Callable[..., Workers]) -> None:
    """Who waits for its answer hears of it at once; its successor hears nothing of the past."""
    workers = start(3)
    old = workers.pid(2)
    workers.start_ask(1, 2, "block", timeout=60)
    assert workers.ask(1, "send", {"count": 100, "to": 2}) == 100
    os.kill(old, signal.SIGKILL)
    workers.wait_gone(old)
    lost = {"error": "WorkerLost", "text": f"worker 2 (pid {old}) has ended"}
    assert workers.wait_result(1) == lost
    workers.server.wait_workers(3)
    assert workers.pid(2) != old
    assert workers.ask(2, "heard") == []
    assert workers.ask(1, "send", {"count": 10, "to": 2}) == 10
    assert workers.wait_heard(2, 10) == [[1, number] for number in range(10)]


def test_the_last_words_of_a_worker_are_delivered(start: Callable[..., Workers]) -> None:
    workers = start(3)
    assert workers.ask(2, "send", {"count": 500, "to": 1}) == 500
    old = workers.pid(2)
    workers.start_ask(3, 2, "die")
    workers.wait_gone(old)
    assert workers.wait_result(3)["error"] == "WorkerLost"
    assert workers.wait_heard(1, 500) == [[2, number] for number in range(500)]


def test_a_message_to_a_slot_that_is_being_replaced(
    start: Callable[..., Workers], worker_class: str
) -> None:
    """Its new worker gets it; the old one, which drains, still hears broadcasts."""
    workers = start(1)
    server = workers.server
    old = workers.pid(1)
    results: list[Any] = []

    def hold() -> None:
        results.append(requests.post(f"{server.url}/hold", timeout=60).json())

    holding = threading.Thread(target=hold)
    holding.start()
    workers.wait_blocked(1)
    mark = server.mark()
    server.signal(signal.SIGHUP)
    server.wait_log(rf"\(pid {old}\) is draining", since=mark)
    if worker_class != "sync":  # whose only thread is in that request
        wait_for(
            lambda: "draining" in [each["state"] for each in workers.ask(1, "workers")], "a drain"
        )
    new = workers.pid(1)
    assert new != old
    workers.ask(1, "send", {"count": 3, "to": "all"})
    workers.ask(1, "send", {"count": 2, "to": 1})
    assert [number for _, number in workers.wait_heard(1, 5)] == [0, 1, 2, 0, 1]
    workers.release()
    holding.join()
    assert results[0]["pid"] == old
    if worker_class != "sync":
        assert results[0]["draining"]
        assert results[0]["heard"] == [[1, 0], [1, 1], [1, 2]]
    server.wait_replaced([old])


def test_a_reload_during_a_flood(start: Callable[..., Workers]) -> None:
    """Neither signals nor requests wait for it; messages to a worker without handlers' time end in
    its queue, not in the arbiter."""
    workers = start(2)
    workers.ask(1, "start flood", 2)
    workers.ask(2, "start flood", 1)
    old = workers.server.worker_pids()
    assert requests.post(f"{workers.server.url}/ask?to=2&topic=who", timeout=30).status_code == 200
    workers.server.signal(signal.SIGHUP)
    workers.server.wait_replaced(old)
    workers.release()
    assert {workers.pid(1), workers.pid(2)} == set(workers.server.worker_pids())


CONFIG = """
import json

seen = []

def on_message(server, worker, msg, topic):
    if topic == "seen":
        return seen
    if topic == "fail":
        raise RuntimeError("the hook is broken")
    seen.append([worker.slot, worker.pid, topic, msg])
    if topic == "back":
        return server.workers[msg].send({"from": worker.slot}, "note")
    if topic == "all":
        return server.broadcast(msg)
    return {"workers": sorted(server.workers), "got": msg}

def post_fork(server, worker):
    try:
        server.broadcast("from a worker")
    except Exception as error:
        print(f"post_fork: {error}", flush=True)
"""


def test_the_hook_of_the_configuration(start: Callable[..., Workers], tmp_path: Path) -> None:
    (tmp_path / "servo.conf.py").write_text(CONFIG)
    workers = start(3)
    assert workers.ask(0, "x", {"a": 1}) == {"workers": [1, 2, 3], "got": {"a": 1}}
    seen = workers.ask(0, "seen")
    assert [entry[2:] for entry in seen] == [["x", {"a": 1}]]
    assert seen[0][1] == workers.pid(seen[0][0])
    assert workers.ask(0, "back", 2) is True
    assert workers.wait_heard(2, 1)[0][0] == 0
    assert workers.ask(0, "all", "to all") == 3
    for slot in (1, 2, 3):
        assert workers.wait_heard(slot, 1)[-1] == ["plain", "to all"]
    failed = workers.ask(0, "fail")
    assert failed["text"] == "the on_message hook: RuntimeError: the hook is broken"
    workers.server.wait_log("The on_message hook failed")
    workers.server.wait_log(r"post_fork: in a worker, messages are sent by servo\.cluster")


def servoctl(server: Server, *args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "servo.cli.ctl", "--pid", str(server.pid), *args],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        check=False,
    )


def test_an_operator_sends(start: Callable[..., Workers]) -> None:
    workers = start(2)
    server = workers.server
    sent = servoctl(server, "send", "2", '{"a": [1, "ü"]}')
    assert (sent.returncode, sent.stdout) == (0, "sent to 1 worker\n"), sent.stderr
    assert workers.wait_heard(2, 1) == [["plain", {"a": [1, "ü"]}]]
    sent = servoctl(server, "send", "--all", "--topic", "note", "7", "--json")
    assert (sent.returncode, json.loads(sent.stdout)) == (0, {"ok": True, "result": {"workers": 2}})
    assert workers.wait_heard(2, 2)[-1] == [0, 7]
    assert workers.wait_heard(1, 1) == [[0, 7]]
    for args, code, text in [
        (("9", "1"), 1, "there is no worker 9; the slots are 1, 2"),
        (("1", "{"), 2, "the message is not valid JSON"),
        (("x", "1"), 2, "'x' is not a worker's slot"),
        (("1",), 2, "give a slot and a message"),
        (("--all", "1", "2"), 2, "give a slot and a message"),
        (("--topic", "x" * 300, "1", "1"), 1, "a topic can have at most 255 bytes"),
    ]:
        refused = servoctl(server, "send", *args)
        assert (refused.returncode, text in refused.stderr) == (code, True), refused.stderr


def test_control_goes_on_in_a_flood(start: Callable[..., Workers]) -> None:
    """Every worker floods every other; whoever controls the server is still answered."""
    workers = start(3)
    for slot in (1, 2, 3):
        workers.ask(slot, "start flood", slot % 3 + 1)
    for _ in range(3):
        status = servoctl(workers.server, "status", "--json")
        assert status.returncode == 0, status.stderr
        assert json.loads(status.stdout)["workers"]["ready"] == 3
    workers.release()


def test_bytes_between_workers(serve: Serve, tmp_path: Path) -> None:
    server = serve(f"{APPS / 'cluster_app.py'}:app", "-k", "thread", "-w", "2", ready=2)
    workers = Workers(server, tmp_path)
    assert workers.ask(1, "ask for bytes", 2) == list(range(255, -1, -1))
    assert workers.ask(2, "ask for bytes", 1) == list(range(255, -1, -1))


def test_an_application_controls_its_server(serve: Serve) -> None:
    app = f"{APPS / 'control_app.py'}:app"
    server = serve(app, "-k", "thread", "-w", "1", "--cluster-control")
    (first,) = server.ready_pids()
    assert requests.get(f"{server.url}/retire", timeout=30).text == "done"
    server.wait_log(r"recycled \(the application asks for it: as the test says\)")
    server.wait_replaced([first])
    assert requests.get(f"{server.url}/up", timeout=30).text == "done"
    old = server.wait_workers(3)
    assert requests.get(f"{server.url}/reload", timeout=30).text == "done"
    server.wait_replaced(old)
    assert requests.get(f"{server.url}/too-many", timeout=30).text == "done"
    server.wait_log(
        r"scale, asked for by the application in worker \d, is refused: there is no room"
    )


def test_an_application_may_not_control_its_server(serve: Serve) -> None:
    server = serve(f"{APPS / 'control_app.py'}:app", "-k", "sync", "-w", "1")
    for path in ("/retire", "/reload", "/up"):
        response = requests.get(f"{server.url}{path}", timeout=30)
        assert response.status_code == 403
        assert "set cluster_control" in response.text
