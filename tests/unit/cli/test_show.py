"""The output of `servoctl` for people."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest

from servo.cli import show
from servo.cli.target import Target
from servo.control.client import ControlError, NoAnswer
from servo.control.instances import Instance
from servo.metrics.procfs import CPU, Memory

STATUS: dict[str, Any] = {
    "name": "shop",
    "app": "shop:app",
    "pid": 7,
    "state": "running",
    "phase": "",
    "uptime_s": 75.0,
    "version": "1.2",
    "python": "3.11.9",
    "listeners": ["http://127.0.0.1:8000"],
    "workers": {"ready": 1, "target": 2, "total": 3},
    "generation": 4,
    "requests": 1234,
    "requests_per_s": 2.5,
    "statuses": {"1xx": 0, "2xx": 1200, "4xx": 34},
    "p50_s": 0.0012,
    "p99_s": 0.25,
    "in_flight": 5,
    "connections": 6,
    "last_reload": None,
    "directory": "/srv/shop",
}


def lines_of(text: str) -> dict[str, str]:
    return {line[:14].strip(): line[14:] for line in text.splitlines()}


def test_a_status(capsys: pytest.CaptureFixture[str]) -> None:
    show.status(STATUS)
    lines = lines_of(capsys.readouterr().out)
    assert lines["workers"] == "1 of 2 ready, 3 in all"
    assert lines["requests"] == "1234, 2.5 a second"
    assert lines["statuses"] == "2xx 1200, 4xx 34"
    assert lines["latency"] == "p50 1.2 ms, p99 250 ms"
    assert "queue time" not in lines
    assert lines["state"] == "running"
    assert "last reload" not in lines


def test_a_status_during_and_after_a_reload(capsys: pytest.CaptureFixture[str]) -> None:
    last = {"time": 0.0, "text": "reload rolled back: it raised\nTraceback"}
    show.status({**STATUS, "phase": "canary", "p50_s": None, "last_reload": last})
    lines = lines_of(capsys.readouterr().out)
    assert lines["state"] == "running: canary"
    assert lines["last reload"].endswith("reload rolled back: it raised")
    assert "latency" not in lines


def test_a_status_names_blocked_workers(capsys: pytest.CaptureFixture[str]) -> None:
    counts = {"ready": 2, "blocked": 1, "target": 2, "total": 2, "least": 2, "most": 4}
    show.status({**STATUS, "workers": counts})
    lines = lines_of(capsys.readouterr().out)
    assert lines["workers"] == "2 of 2 ready, 2 in all, 1 blocked; 2 to 4 by load"


def test_a_status_shows_the_time_in_queues(capsys: pytest.CaptureFixture[str]) -> None:
    show.status({**STATUS, "utilisation": 0.427, "queue_p50_s": 0.004, "queue_p99_s": 0.2})
    lines = lines_of(capsys.readouterr().out)
    assert lines["queue time"] == "p50 4 ms, p99 200 ms"
    assert lines["utilisation"] == "43%"


def test_a_status_shows_threads_and_the_accept_queue(capsys: pytest.CaptureFixture[str]) -> None:
    assert "threads" not in lines_of(_shown(capsys, {"threads": None, "accept_queue": None}))
    threads = {"busy": 3, "idle": 5, "waiting": 0}
    queue = {"waiting": 2, "limit": 2048}
    lines = lines_of(_shown(capsys, {"threads": threads, "accept_queue": queue}))
    assert lines["threads"] == "3 of 8 busy"
    assert lines["accept queue"] == "2 of 2048 connections wait"
    assert "thread wait" not in lines
    threads = {"busy": 8, "idle": 0, "waiting": 5}
    waits = {"thread_wait_p50_s": 0.002, "thread_wait_p99_s": 1.5}
    lines = lines_of(_shown(capsys, {"threads": threads, **waits}))
    assert lines["threads"] == "8 of 8 busy, 5 requests wait"
    assert lines["thread wait"] == "p50 2 ms, p99 1.5 s"


def _shown(capsys: pytest.CaptureFixture[str], values: dict[str, Any]) -> str:
    show.status({**STATUS, **values})
    return capsys.readouterr().out


@pytest.mark.parametrize(
    ("state", "blocked_s", "shown"),
    [
        ("ready", 0.0, "ready"),
        ("ready", 0.9, "ready"),
        ("ready", 2.13, "blocked 2.1 s"),
        ("draining", 65.0, "draining, blocked 65 s"),
    ],
)
def test_a_blocked_worker_is_not_shown_as_ready(
    capsys: pytest.CaptureFixture[str], state: str, blocked_s: float, shown: str
) -> None:
    row = {"slot": 1, "pid": 11, "generation": 1, "state": state, "age_s": 70.0, "last_exit": ""}
    show.workers({"workers": [{**row, "blocked_s": blocked_s}]})
    heading, line = capsys.readouterr().out.splitlines()
    assert line[heading.index("state") :].startswith(f"{shown}  ")


def test_a_silent_server_has_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    class Client:
        def __init__(self, path: str, timeout_s: float, owner: int | None) -> None:
            assert (timeout_s, owner) == (0.5, 33 if path == "/silent" else None)
            if path == "/silent":
                raise NoAnswer("it does not answer")

        def __enter__(self) -> Client:
            return self

        def __exit__(self, *_: object) -> None:
            pass

        server_pid = 7

        def request(self, command: str) -> dict[str, Any]:
            assert command == "status"
            return STATUS

    monkeypatch.setattr(show, "ControlClient", Client)
    monkeypatch.setattr(show, "_usage", lambda pid: {"memory_bytes": pid << 20})
    found = [Instance("shop", 7, "/shop"), Instance("blog", 8, "/silent", 33)]
    shop, blog = show.query_all(found, 0.5)
    assert (shop["state"], shop["error"], shop["socket"]) == ("running", "", "/shop")
    assert shop["memory_bytes"] == 7 << 20
    Client.server_pid = 4711  # the server is in a container, so its pids mean nothing here
    assert "memory_bytes" not in show.query_all(found[:1], 0.5)[0]
    assert "memory_bytes" not in show.query_all(found, 0.5, with_usage=False)[1]
    assert blog == {
        "name": "blog",
        "pid": 8,
        "socket": "/silent",
        "uid": 33,
        "state": "does not answer",
        "error": "it does not answer",
    }
    assert show.query_all([], 0.5) == []


def test_a_silent_server_is_listed(capsys: pytest.CaptureFixture[str]) -> None:
    show.servers([STATUS, {"name": "blog", "pid": 8, "state": "does not answer"}])
    _, shop, blog = capsys.readouterr().out.splitlines()
    assert shop.split()[:4] == ["shop", "7", "running", "1/2"]
    assert blog.split()[:5] == ["blog", "8", "does", "not", "answer"]


def test_the_list_shows_what_servers_use(capsys: pytest.CaptureFixture[str]) -> None:
    used = {"restarts": 3, "cpu_percent": 41.6, "memory_bytes": 90 << 20}
    show.servers([{**STATUS, **used, "uid": 0}])
    heading, line = capsys.readouterr().out.splitlines()
    assert heading.split()[:7] == ["name", "pid", "state", "workers", "restarts", "CPU", "memory"]
    assert line.split()[:8] == ["shop", "7", "running", "1/2", "3", "42%", "90", "MB"]
    show.servers([{**STATUS, "uid": 0}, {**STATUS, "uid": 4_000_000_001}])
    heading, root, other = capsys.readouterr().out.splitlines()
    assert heading.split()[:3] == ["name", "user", "pid"]
    assert (root.split()[1], other.split()[1]) == ("root", "4000000001")


def test_the_usage_of_a_server(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, times = iter([1.0, 1.5]), iter([CPU(1.0, 0.5), CPU(1.2, 0.55)])
    monkeypatch.setattr(time, "monotonic", lambda: next(clock))
    monkeypatch.setattr(time, "sleep", lambda _seconds: None)
    monkeypatch.setattr(show, "cpu_with_children", lambda _pid: next(times))
    monkeypatch.setattr(show, "children_of", lambda _pid: [12, 13, 14])
    memory = {11: Memory(5, 3), 12: Memory(7, 4), 13: Memory(9, None), 14: None}
    monkeypatch.setattr(show, "memory_of", memory.get)
    assert show._usage(11) == {"cpu_percent": 50.0, "memory_bytes": 3 + 4 + 9}


@pytest.fixture
def usage(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Fakes /proc: pid 11 uses 0.1 s of CPU time between two readings; pid 12 has ended."""
    slept: list[float] = []
    clock = iter([100.0, 100.25, 100.25])
    times = iter([CPU(1.0, 0.5), CPU(1.075, 0.525)])
    monkeypatch.setattr(time, "monotonic", lambda: next(clock))
    monkeypatch.setattr(time, "sleep", slept.append)
    monkeypatch.setattr(show, "cpu_of", lambda pid: next(times) if pid == 11 else None)
    monkeypatch.setattr(show, "memory_of", lambda pid: Memory(3 << 20, 1 << 20))
    return slept


def test_usage_of_workers(usage: list[float]) -> None:
    result: dict[str, Any] = {"server_pid": 7, "workers": [{"pid": 11}, {"pid": 12}, {"pid": 0}]}
    show.add_usage(result, 7)
    assert usage == [show.CPU_SAMPLE_S]
    assert result["workers"] == [
        {"pid": 11, "cpu_percent": 40.0, "rss_bytes": 3 << 20, "pss_bytes": 1 << 20},
        {"pid": 12, "cpu_percent": None, "rss_bytes": None, "pss_bytes": None},
        {"pid": 0, "cpu_percent": None, "rss_bytes": None, "pss_bytes": None},
    ]


def test_pids_of_another_namespace_mean_nothing(usage: list[float]) -> None:
    result: dict[str, Any] = {"server_pid": 1, "workers": [{"pid": 11}]}
    show.add_usage(result, 7)
    assert usage == []
    assert result["workers"][0]["cpu_percent"] is None


def test_requests_are_printable(capsys: pytest.CaptureFixture[str]) -> None:
    request = {"client": "192.0.2.1", "method": "GET", "target": "/x\x1b[2J\n", "seconds": 2.0}
    blocked = {"slot": 2, "pid": 12, "in_flight": 3, "oldest_s": 65.0, "answered": False}
    workers = [
        {"slot": 1, "pid": 11, "answered": True, "requests": [request]},
        {**blocked, "requests": []},
    ]
    show.requests({"workers": workers})
    _, first, second = capsys.readouterr().out.splitlines()
    assert first.endswith(r"/x\x1b[2J\n")
    assert second.endswith("3 in flight; the worker is blocked and can't list them")


def test_no_requests(capsys: pytest.CaptureFixture[str]) -> None:
    show.requests({"workers": [{"slot": 1, "pid": 11, "answered": True, "requests": []}]})
    assert capsys.readouterr().out == "no request is being served\n"


def test_stacks_that_are_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    tasks = [{"name": "Task-1", "stack": ""}]
    show.stack(
        {"slot": 1, "pid": 11, "state": "ready", "threads": [], "tasks": tasks, "left_out": 3}
    )
    out = capsys.readouterr().out
    assert "  (it is running, or has not started)\n" in out
    assert out.endswith("\n3 more stacks are not shown\n")


def test_the_log_file_lies_where_the_server_is(tmp_path: Path) -> None:
    (tmp_path / "error.log").write_text("")
    rows = [{"name": "errorlog", "value": "error.log"}, {"name": "chdir", "value": str(tmp_path)}]
    assert show.log_path({"settings": rows}) == str(tmp_path / "error.log")


def test_a_log_that_is_not_a_file(tmp_path: Path) -> None:
    rows = [{"name": "errorlog", "value": "-"}, {"name": "chdir", "value": str(tmp_path)}]
    with pytest.raises(ControlError, match="the log goes to '-', which isn't a file"):
        show.log_path({"settings": rows})


@pytest.mark.parametrize(
    ("note", "text"),
    [
        ({"step": "accepted", "workers": 2}, "reloading 2 workers: reading the configuration\n"),
        ({"step": "replaced", "text": "worker 1 replaced\nmore"}, "worker 1 replaced\n"),
        ({"step": "ready", "text": "worker 1 is ready"}, ""),
    ],
)
def test_steps_of_a_reload(
    capsys: pytest.CaptureFixture[str], note: dict[str, Any], text: str
) -> None:
    show.reload_step(note)
    assert capsys.readouterr().out == text


def test_steps_of_other_commands(capsys: pytest.CaptureFixture[str]) -> None:
    show.step({"step": "exited", "text": "worker 1 ended\nmore"})
    show.step({"step": "accepted"})
    assert capsys.readouterr().out == "worker 1 ended\n"


def test_the_last_line_of_a_command(capsys: pytest.CaptureFixture[str]) -> None:
    show.done(Target(), {"workers": 2}, "scaled")
    show.done(Target(json=True), {"workers": 2}, "scaled")
    text, line = capsys.readouterr().out.splitlines()
    assert text == "scaled"
    assert json.loads(line) == {"ok": True, "result": {"workers": 2}}


def test_log_records(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(show, "format_time", lambda seconds: f"<{seconds}>")
    record = {"time": 1.0, "level": "error", "pid": 11, "text": "it failed\nTraceback"}
    show.log_line({**record, "slot": 1})
    show.log_line(record)
    show.log_line({**record, "line": "as the file has it"})
    assert capsys.readouterr().out == (
        "<1.0> worker 1 [11] ERROR it failed\nTraceback\n"
        "<1.0> arbiter [11] ERROR it failed\nTraceback\n"
        "as the file has it\n"
    )


def test_records_of_the_output_of_workers(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(show, "format_time", lambda seconds: f"<{seconds}>")
    record = {"time": 1.0, "level": "info", "pid": 11, "text": "hello"}
    show.log_line({**record, "slot": 1, "stream": "stdout"})
    show.log_line({**record, "slot": 1, "logger": "shop"})
    show.log_line({**record, "mold": 2, "stream": "stderr"})
    show.log_line({**record, "slot": 1, "stream": "access"})
    assert capsys.readouterr().out == (
        "<1.0> worker 1 [11] STDOUT hello\n"
        "<1.0> worker 1 [11] INFO hello\n"
        "<1.0> mold 2 [11] STDERR hello\n"
        "<1.0> worker 1 [11] hello\n"
    )


TRACEBACK = """\
it failed
Traceback (most recent call last):
  File "a.py", line 1, in a
    1 / 0
ZeroDivisionError: division by zero

During handling of the above exception, another exception occurred:

Traceback (most recent call last):
  File "b.py", line 2
KeyError: 'x'
more"""


def test_tracebacks_are_highlighted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(show, "styled", lambda text, kind: f"<{kind}>{text}" if kind else text)
    monkeypatch.setattr(show, "format_time", lambda _seconds: "now")
    record = {"time": 1.0, "level": "error", "pid": 11, "text": TRACEBACK}
    lines = show.log_text(record).split("\n")
    assert lines == [
        "now arbiter [11] <error>ERROR it failed",
        "<frame>Traceback (most recent call last):",
        '<frame>  File "a.py", line 1, in a',
        "<frame>    1 / 0",
        "<exception>ZeroDivisionError: division by zero",
        "",
        "During handling of the above exception, another exception occurred:",
        "",
        "<frame>Traceback (most recent call last):",
        '<frame>  File "b.py", line 2',
        "<exception>KeyError: 'x'",
        "more",
    ]


def test_a_line_of_a_file_is_highlighted(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(show, "styled", lambda text, kind: f"<{kind}>{text}")
    line = "[2026-11-29 10:00:00 +0000] [7] [WARNING] a [WARNING] in the text"
    show.log_line({"pid": 7, "level": "warning", "text": "a", "line": line})
    first, _, rest = capsys.readouterr().out.partition("<warning>WARNING")
    assert first + "WARNING" + rest == line + "\n"
    assert rest == "] a [WARNING] in the text\n"


def test_an_event(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(show, "format_time", lambda seconds: f"<{seconds}>")
    show.event({"time": 1.0, "name": "ready", "text": "worker 1 is ready\nmore"})
    assert capsys.readouterr().out == f"<1.0>  {'ready':<18}  worker 1 is ready\n"


def test_times_are_local(monkeypatch: pytest.MonkeyPatch) -> None:
    local = os.environ.get("TZ")
    monkeypatch.setenv("TZ", "UTC-2")
    time.tzset()
    try:
        assert show.format_time(0.0) == "1970-01-01 02:00:00"
    finally:
        monkeypatch.undo()
        time.tzset()
    assert os.environ.get("TZ") == local


def test_plurals() -> None:
    assert [*map(show.plural, (0, 1, 2))] == ["0 workers", "1 worker", "2 workers"]
