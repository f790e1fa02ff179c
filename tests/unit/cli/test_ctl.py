"""`servoctl` against a server with prepared answers: options, output, exit codes."""

from __future__ import annotations

import json
import os
import re
import socket
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from click.shell_completion import ShellComplete

from servo.cli import ctl
from servo.control import instances, protocol
from servo.control.instances import Lock

WORKER = {
    "slot": 1,
    "pid": 4711,
    "serial": 1,
    "generation": 2,
    "state": "ready",
    "age_s": 75.0,
    "leaving": "",
    "last_exit": "no_heartbeat",
    "requests": 1234,
    "in_flight": 2,
    "oldest_s": 0.5,
    "connections": 3,
    "requests_per_s": 12.5,
    "p50_s": 0.0012,
    "p99_s": 0.25,
    "lag_s": 0.0,
    "utilisation": 0.43,
    "threads": {"busy": 2, "idle": 6, "waiting": 0},
    "heartbeat_s": 0.1,
}
STATUS = {
    "name": "shop",
    "pid": 7,
    "app": "shop:app",
    "state": "running",
    "phase": "",
    "generation": 2,
    "version": "1.2",
    "python": "3.11.9",
    "started_at": 0.0,
    "uptime_s": 7300.0,
    "listeners": ["http://127.0.0.1:8000"],
    "workers": {"target": 2, "ready": 2, "total": 2},
    "requests": 1234,
    "requests_per_s": 25.0,
    "in_flight": 2,
    "connections": 6,
    "statuses": {"1xx": 0, "2xx": 1200, "3xx": 0, "4xx": 34, "5xx": 0},
    "p50_s": 0.0012,
    "p99_s": 0.25,
    "last_reload": {"time": 0.0, "text": "reload (servoctl) finished after 1.00 s"},
    "directory": "/srv/shop",
}
LOGS = [
    {"time": 1.0, "level": "info", "pid": 7, "text": "the server starts"},
    {"time": 2.0, "level": "error", "slot": 1, "pid": 11, "text": "it failed\nTraceback: x"},
    {"time": 3.0, "level": "warning", "slot": 2, "pid": 12, "text": "a slow request"},
]
ANSWERS: dict[str, list[bytes]] = {
    "status": [protocol.result_line(STATUS)],
    "workers": [
        protocol.result_line({"server_pid": -1, "target": 1, "workers": [WORKER]}),
    ],
    "config": [
        protocol.result_line(
            {
                "settings": [
                    {"name": "workers", "value": "2", "unit": "", "source": "flag --workers"},
                    {"name": "errorlog", "value": "-", "unit": "", "source": "default"},
                ]
            }
        )
    ],
    "requests": [
        protocol.result_line(
            {
                "workers": [
                    {
                        "slot": 1,
                        "pid": 11,
                        "in_flight": 1,
                        "oldest_s": 2.0,
                        "answered": True,
                        "requests": [
                            {
                                "method": "GET",
                                "target": "/x\x1b[2J",
                                "client": "192.0.2.1",
                                "seconds": 2.0,
                            }
                        ],
                    },
                    {
                        "slot": 2,
                        "pid": 12,
                        "in_flight": 3,
                        "oldest_s": 65.0,
                        "answered": False,
                        "requests": [],
                    },
                ]
            }
        )
    ],
    "stack": [
        protocol.result_line(
            {
                "slot": 1,
                "pid": 11,
                "state": "ready",
                "answered": True,
                "threads": [{"name": "MainThread", "stack": '  File "a.py", line 1, in f\n'}],
                "tasks": [{"name": "Task-1", "stack": '  File "b.py", line 2, in g\n'}],
                "left_out": 0,
            }
        )
    ],
    "logs": [*map(protocol.note_line, LOGS), protocol.result_line({})],
    "events": [
        protocol.note_line({"name": "ready", "time": 1.0, "slot": 1, "text": "worker 1 is ready"}),
        protocol.result_line({}),
    ],
    "reload": [
        protocol.note_line({"step": "accepted", "generation": 3, "workers": 1}),
        protocol.note_line({"step": "replaced", "text": "worker 1 replaced: pid 1 -> 2 (1/1)"}),
        protocol.result_line({"generation": 3, "replaced": 1, "seconds": 1.5}),
    ],
    "scale": [protocol.result_line({"workers": 4, "before": 2})],
    "restart-worker": [
        protocol.result_line({"slot": 1, "old_pid": 1, "pid": 2, "trouble": ""}),
    ],
    "rollback": [protocol.result_line({"generation": 1, "code": True})],
    "reopen": [protocol.result_line({"files": ["/a.log", "/b.log"], "workers": 1})],
    "signal": [
        protocol.result_line({"slot": 1, "pid": 11, "signal": "SIGKILL", "effect": "it ends"}),
    ],
    "stop": [protocol.note_line({"step": "exited", "text": "worker 1 ended"})],
}


class Server:
    """Answers requests from the table `answers`, and records them in `asked`."""

    def __init__(self, directory: Path, name: str, pid: int) -> None:
        self.answers = dict(ANSWERS)
        self.asked: list[dict[str, Any]] = []
        self.lock = Lock(directory / f"{name}-{pid}.lock")
        assert self.lock.acquire()
        self.path = str(directory / f"{name}-{pid}.sock")
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.bind(self.path)
        self.sock.listen()
        self.lock.write({"name": name, "pid": pid, "socket": self.path}, 0o600)
        self.thread = threading.Thread(target=self._serve)
        self.thread.start()

    def _serve(self) -> None:
        while True:
            peer, _ = self.sock.accept()
            with peer, peer.makefile("rb") as lines:
                for line in lines:
                    if line == b"end\n":
                        return
                    request = json.loads(line)
                    self.asked.append(request)
                    peer.sendall(b"".join(self.answers[request["command"]]))
                    if request["command"] == "stop":
                        break  # closes the connection, as a server that ends does

    def close(self) -> None:
        with socket.socket(socket.AF_UNIX) as sock:
            sock.connect(self.path)
            sock.sendall(b"end\n")
        self.thread.join()
        self.sock.close()
        self.lock.release()


Start = Callable[..., Server]


@pytest.fixture
def start(monkeypatch: pytest.MonkeyPatch) -> Iterator[Start]:
    """Starts servers in the only directory that servoctl searches."""
    monkeypatch.delenv("NO_COLOR", raising=False)
    with tempfile.TemporaryDirectory(prefix="servo-") as directory:
        place = Path(directory)
        monkeypatch.setattr(instances, "search_directories", lambda _environ, _uid: [place])
        monkeypatch.setattr(instances, "other_users_directories", list)
        servers: list[Server] = []

        def start(name: str = "shop", pid: int = 7) -> Server:
            servers.append(Server(place, name, pid))
            return servers[-1]

        yield start
        for server in servers:
            server.close()


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    code = ctl.main(arguments)
    captured = capsys.readouterr()
    return code, captured.out, captured.err


# --- choosing a server ------------------------------------------------------------------------


def test_the_only_server_need_not_be_named(
    start: Start, capsys: pytest.CaptureFixture[str]
) -> None:
    start()
    code, out, _ = run(capsys, "status")
    assert code == 0
    assert "shop:app" in out


def test_no_server(start: Start, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(capsys, "status")
    assert (code, out) == (3, "")
    assert "no server of this user is running" in err
    assert run(capsys, "list") == (0, "", "no server of this user is running\n")
    assert run(capsys, "list", "--json")[:2] == (0, "[]\n")


def test_several_servers(start: Start, capsys: pytest.CaptureFixture[str]) -> None:
    shop, blog = start("shop", 7), start("blog", 8)
    code, _, err = run(capsys, "status")
    assert code == 2
    assert "several servers are running" in err
    assert re.search(r"blog +8 .*\n.*shop +7 ", err)
    assert run(capsys, "--name", "blog", "scale", "4")[0] == 0
    assert run(capsys, "scale", "4", "-n", "blog")[0] == 0
    assert run(capsys, "scale", "4", "--pid", "8")[0] == 0
    assert run(capsys, "scale", "4", "--socket", blog.path)[0] == 0
    assert (len(blog.asked), len(shop.asked)) == (4, 0)


def test_two_of_one_name(start: Start, capsys: pytest.CaptureFixture[str]) -> None:
    start("shop", 7), start("shop", 8)
    code, _, err = run(capsys, "-n", "shop", "status")
    assert code == 2
    assert "several servers are named shop; choose one" in err
    assert run(capsys, "-n", "shop", "-p", "8", "status")[0] == 0


def test_wrong_names(start: Start, capsys: pytest.CaptureFixture[str]) -> None:
    server = start()
    for arguments, message in [
        (("-n", "shpo"), "no server named shpo is running; running are:"),
        (("-p", "9"), "no server with pid 9 is running; running are:"),
        (("-s", server.path + "x"), "does not exist"),
    ]:
        code, out, err = run(capsys, *arguments, "status")
        assert (code, out) == (3, "")
        assert message in err
        code, out, err = run(capsys, *arguments, "status", "--json")
        assert (code, err) == (3, "")
        answer = json.loads(out)
        assert (answer["ok"], message in answer["error"]) == (False, True)


def test_a_command_for_all_servers(start: Start, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(capsys, "--all", "reload")[0] == 3
    blog, shop = start("blog", 8), start("shop", 7)
    code, out, err = run(capsys, "--all", "reload", "--no-wait")
    assert (code, err) == (0, "")
    assert out.startswith("blog (pid 8):\nreloading") or "the reload has started" in out
    assert "\n\nshop (pid 7):\n" in out
    # A failure does not keep the others from it.
    blog.answers["reopen"] = [protocol.failure_line(protocol.REFUSED, "no room")]
    code, out, err = run(capsys, "--all", "reopen")
    assert (code, err) == (1, "servoctl: error: blog: no room\n")
    assert "reopened /a.log" in out
    code, out, _ = run(capsys, "--all", "status", "--json")
    lines = [json.loads(line) for line in out.splitlines()]
    assert [line["server"] for line in lines[::2]] == [
        {"name": "blog", "pid": 8},
        {"name": "shop", "pid": 7},
    ]
    assert [line["app"] for line in lines[1::2]] == ["shop:app", "shop:app"]
    asked = len(blog.asked)
    assert run(capsys, "--all", "-n", "shop", "reopen")[0] == 0
    assert len(blog.asked) == asked
    assert shop.asked[-1]["command"] == "reopen"
    assert run(capsys, "--all", "list")[1].count("running") == 2


@pytest.mark.parametrize(
    "arguments",
    [
        ("--all", "logs", "-f"),
        ("--all", "events", "--follow"),
        ("--all", "status", "-p", "7"),
        ("--all", "-s", "/x.sock", "status"),
        ("--all", "completion", "bash"),
        ("--all", "unit", "shop:app"),
    ],
)
def test_not_for_all_servers(
    start: Start, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...]
) -> None:
    server = start()
    code, out, err = run(capsys, *arguments)
    assert (code, out) == (2, "")
    assert "--all" in err
    assert server.asked == []


# --- the command line -------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments",
    [
        ("bogus",),
        ("status", "--bogus"),
        ("scale",),
        ("scale", "many"),
        ("scale", "--", "--2"),
        ("stack", "one"),
        ("restart-worker",),
        ("signal", "1"),
        ("signal", "one", "TERM"),
        ("signal", "1", "TREM"),
        ("signal", "1", "0"),
        ("logs", "--level", "loud"),
        ("logs", "--grep", "("),
        ("status", "--timeout", "0"),
        ("completion", "tcsh"),
        ("call", "1", "topic"),
        ("call", "0", "topic", "1"),
        ("call", "1", "topic", "{'a': 1}"),
        ("call", "1", "topic", "1", "--wait", "0"),
        ("send", "1", "{"),
    ],
)
def test_usage(
    start: Start, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...]
) -> None:
    server = start()
    code, out, err = run(capsys, *arguments)
    assert (code, out) == (2, "")
    assert err.startswith("servoctl: error: ")
    assert server.asked == []


def test_help_and_version(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "--help")
    assert code == 0
    for name in (
        "list",
        "status",
        "workers",
        "reload",
        "scale",
        "restart-worker",
        "stop",
        "logs",
        "signal",
    ):
        assert f"  {name} " in out
    assert run(capsys, "--version")[0] == 0
    assert "--now" in run(capsys, "stop", "--help")[1]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion(capsys: pytest.CaptureFixture[str], shell: str) -> None:
    code, out, _ = run(capsys, "completion", shell)
    assert code == 0
    assert "_SERVOCTL_COMPLETE" in out


def test_negative_numbers_are_no_options(start: Start, capsys: pytest.CaptureFixture[str]) -> None:
    server = start()
    for to in ("-1", "+2", "3"):
        assert run(capsys, "scale", to)[0] == 0
    assert [each["args"]["to"] for each in server.asked] == ["-1", "+2", "3"]


def test_a_rollback_says_which_code_runs(start: Start, capsys: pytest.CaptureFixture[str]) -> None:
    server = start()
    assert run(capsys, "rollback") == (0, "rolled back to generation 1\n", "")
    server.answers["rollback"] = [protocol.result_line({"generation": 1, "code": False})]
    assert (
        "import the code that is on disk, because preload_app is off" in run(capsys, "rollback")[1]
    )


def test_reopened_logs_are_named(start: Start, capsys: pytest.CaptureFixture[str]) -> None:
    server = start()
    assert run(capsys, "reopen") == (0, "reopened /a.log\nreopened /b.log\n", "")
    server.answers["reopen"] = [protocol.result_line({"files": [], "workers": 1})]
    assert run(capsys, "reopen")[1] == "no log has a file: all go to standard output and error\n"


def test_a_signal_is_named_as_for_kill(start: Start, capsys: pytest.CaptureFixture[str]) -> None:
    server = start()
    names = ["KILL", "SIGKILL", "9", "-9", "-KILL", "RTMIN+1"]
    for name in names:
        code, out, _ = run(capsys, "signal", "1", name)
        assert (code, out) == (0, "sent SIGKILL to worker 1 (pid 11): it ends\n")
    assert [each["args"]["name"] for each in server.asked] == names
    code, _, err = run(capsys, "signal", "1", "KIL")
    assert (code, "did you mean KILL?" in err) == (2, True)


@pytest.mark.parametrize(
    ("typed", "found"), [("US", ["USR1", "USR2"]), ("sigk", ["SIGKILL"]), ("X", ["XCPU", "XFSZ"])]
)
def test_the_shell_completes_signals(typed: str, found: list[str]) -> None:
    completion = ShellComplete(ctl.servoctl, {}, "servoctl", "_SERVOCTL_COMPLETE")
    items = completion.get_completions(["signal", "1"], typed)
    assert [item.value for item in items] == found


def test_a_call_prints_the_answer(start: Start, capsys: pytest.CaptureFixture[str]) -> None:
    server = start()
    answer = {"who": "é", "bad": "\x9b2J\u202e\ud800"}
    server.answers["call"] = [protocol.result_line({"slot": 1, "answer": json.dumps(answer)})]
    code, out, _ = run(capsys, "call", "1", "who", '{"a": 1}', "--wait", "0.5")
    assert code == 0
    assert json.loads(out) == answer
    assert "é" in out
    assert "\\u009b2J\\u202e\\ud800" in out
    (asked,) = server.asked
    assert asked["args"] == {"slot": 1, "topic": "who", "message": '{"a": 1}', "timeout_ms": 500}
    whole = {"ok": True, "result": {"slot": 1, "answer": answer}}
    assert json.loads(run(capsys, "call", "1", "who", "1", "--json")[1]) == whole
    server.answers["call"] = [protocol.result_line({"slot": 1, "answer": "no JSON"})]
    code, _, err = run(capsys, "call", "1", "who", "1")
    assert (code, "can't decode the answer of worker 1" in err) == (1, True)


def test_without_a_command_it_helps(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(capsys)
    assert (code, out) == (2, "")
    assert "restart-worker" in err
    code, out, err = run(capsys, "scale")
    assert (code, out) == (2, "")
    assert "Try 'servoctl scale --help'." in err


# --- output -----------------------------------------------------------------------------------


def test_tables_are_plain_when_piped(start: Start, capsys: pytest.CaptureFixture[str]) -> None:
    start()
    code, out, _ = run(capsys, "workers")
    header, row = out.splitlines()
    assert code == 0
    assert header.split() == (
        [
            "slot",
            "pid",
            "gen",
            "state",
            "age",
            "use",
            "requests",
            "busy",
            "threads",
            "req/s",
            "p50",
            "p99",
            "lag",
            "CPU",
            "RSS",
            "PSS",
            "last",
            "exit",
        ]
    )
    assert re.split(r"  +", row.strip()) == (
        [
            "1",
            "4711",
            "2",
            "ready",
            "75 s",
            "43%",
            "1234",
            "2",
            "2/8",
            "12",
            "1.2 ms",
            "250 ms",
            "0",
            "-",
            "-",
            "-",
            "no heartbeat",
        ]
    )
    _, out, _ = run(capsys, "list")
    assert out.splitlines()[1].split()[:4] == ["shop", "7", "running", "2/2"]
    for command in ("status", "config", "requests", "events", "logs", "workers", "list"):
        code, out, _ = run(capsys, command)
        assert code == 0
        assert "\x1b" not in out


def test_clients_can_not_write_to_the_terminal(
    start: Start, capsys: pytest.CaptureFixture[str]
) -> None:
    start()
    _, out, _ = run(capsys, "requests")
    assert r"/x\x1b[2J" in out
    assert "3 in flight; the worker is blocked" in out


def test_stacks(start: Start, capsys: pytest.CaptureFixture[str]) -> None:
    server = start()
    _, out, _ = run(capsys, "stack", "1")
    assert 'thread MainThread, most recent call last:\n  File "a.py", line 1, in f' in out
    assert 'task Task-1, most recent await last:\n  File "b.py", line 2, in g' in out
    text = 'Thread 0x1 (most recent call first):\n  File "c.py", line 3 in h\n'
    text += '  File "base.py", line 9 in run_worker\n  File "loop.py", line 1 in main\n'
    result = {"slot": 1, "pid": 11, "state": "ready", "answered": False, "text": text}
    server.answers["stack"] = [protocol.result_line(result)]
    _, out, _ = run(capsys, "stack", "1")
    assert "It is busy and does not answer" in out
    assert "line 3 in h" in out
    assert "loop.py" not in out


def test_busy_threads_come_first(start: Start, capsys: pytest.CaptureFixture[str]) -> None:
    server = start()
    wait = '  File "/usr/lib/python3.11/threading.py", line 1, in wait\n'
    threads = [
        {"name": "worker-1", "stack": wait},
        {"name": "worker-2", "stack": '  File "/srv/shop.py", line 2, in app\n'},
    ]
    result = {"slot": 1, "pid": 11, "state": "ready", "answered": True, "threads": threads}
    result |= {"tasks": [], "left_out": 0}
    server.answers["stack"] = [protocol.result_line(result)]
    _, out, _ = run(capsys, "stack", "1")
    assert re.findall("^thread .*", out, re.MULTILINE) == [
        "thread worker-2, most recent call last:",
        "thread worker-1, idle, most recent call last:",
    ]
    found = json.loads(run(capsys, "stack", "1", "--json")[1])["threads"]
    assert [each["idle"] for each in found] == [True, False]
    text = (
        "Thread 0x1 (most recent call first):\n"
        '  File "/usr/lib/python3.11/queue.py", line 3 in get\n'
        '\nCurrent thread 0x2 (most recent call first):\n  File "/srv/shop.py", line 3 in app\n'
    )
    result = {"slot": 1, "pid": 11, "state": "ready", "answered": False, "text": text}
    server.answers["stack"] = [protocol.result_line(result)]
    _, out, _ = run(capsys, "stack", "1")
    assert out.index("Current thread 0x2 (most recent call first):\n") < out.index(
        "Thread 0x1 (most recent call first), idle:\n"
    )


def test_changed_settings_keep_their_source(
    start: Start, capsys: pytest.CaptureFixture[str]
) -> None:
    """A value that equals the default is shown if somebody has given it."""
    server = start()
    rows = [
        {"name": "workers", "value": "1", "unit": "", "source": "servo.toml:3"},
        {"name": "timeout", "value": "30", "unit": "seconds", "source": "default"},
        {"name": "bind", "value": "0.0.0.0:8000", "unit": "", "source": "PORT"},
    ]
    server.answers["config"] = [protocol.result_line({"settings": rows})]
    _, out, _ = run(capsys, "config", "--changed")
    assert [line.split() for line in out.splitlines()[1:]] == [
        ["workers", "1", "-", "servo.toml:3"],
        ["bind", "0.0.0.0:8000", "-", "PORT"],
    ]
    found = json.loads(run(capsys, "config", "--changed", "--json")[1])
    assert found == {"settings": [rows[0], rows[2]]}
    assert "timeout" in run(capsys, "config")[1]


@pytest.mark.parametrize(
    ("words", "typed", "found"),
    [
        (["-n"], "", ["blog", "shop"]),
        (["status", "--name"], "s", ["shop"]),
        (["--pid"], "8", ["8"]),
        (["-n", "shop", "stack"], "", ["1"]),
        (["stack", "--name", "shop"], "", ["1"]),
        (["-n", "blog", "profile", "-n", "shop"], "", ["1"]),
        (["-n", "shop", "logs", "--worker"], "", ["1"]),
        (["-n", "shop", "restart-worker"], "2", []),
        (["stack"], "", []),  # two servers run, and none is chosen
    ],
)
def test_the_shell_completes_servers_and_slots(
    start: Start, words: list[str], typed: str, found: list[str]
) -> None:
    start("shop", 7)
    start("blog", 8).answers["workers"] = [protocol.failure_line(protocol.REFUSED, "no")]
    completion = ShellComplete(ctl.servoctl, {}, "servoctl", "_SERVOCTL_COMPLETE")
    assert [item.value for item in completion.get_completions(words, typed)] == found


@pytest.mark.parametrize(
    ("arguments", "shown"),
    [
        ((), [0, 1, 2]),
        (("--lines", "2"), [1, 2]),
        (("--lines", "0"), []),
        (("--worker", "1"), [1]),
        (("--level", "warning"), [1, 2]),
        (("--grep", "s[lt]"), [0, 2]),
        (("--grep", "Traceback", "--level", "error"), [1]),
        (("--worker", "9"), []),
    ],
)
def test_log_lines_are_filtered(
    start: Start,
    capsys: pytest.CaptureFixture[str],
    arguments: tuple[str, ...],
    shown: list[int],
) -> None:
    start()
    code, out, _ = run(capsys, "logs", "--json", *arguments)
    assert code == 0
    assert [json.loads(line) for line in out.splitlines()] == [LOGS[number] for number in shown]


def test_the_access_log(start: Start, capsys: pytest.CaptureFixture[str]) -> None:
    server = start()
    assert run(capsys, "logs", "--access")[0] == 0
    assert server.asked[-1]["args"] == {"access": True}
    assert run(capsys, "logs")[0] == 0
    assert server.asked[-1]["args"] == {}  # older servers don't know the argument
    code, _, err = run(capsys, "logs", "--access", "--file")
    assert code == 2
    assert "leave out --access or --file" in err


def test_a_follower_remembers_only_as_much_as_a_server_keeps() -> None:
    seen = ctl._SeenFilter([{"text": "past"}])
    for number in range(3000):
        assert seen.is_new({"text": f"line {number}"})
    assert len(seen._seen) == ctl._MOST_KEPT
    seen.start_again()
    assert not seen.is_new({"text": "line 2999"})


def test_following_shows_nothing_twice(start: Start, capsys: pytest.CaptureFixture[str]) -> None:
    server = start()
    more = {"time": 4.0, "level": "info", "pid": 7, "text": "more"}
    lines = map(protocol.note_line, [*LOGS, more])
    server.answers["logs"] = [*lines, protocol.lost_line(5), protocol.result_line({})]
    code, out, err = run(capsys, "logs", "-f", "--lines", "1")
    assert code == 0
    assert [line.split(" ", 2)[2] for line in out.splitlines()] == [
        "arbiter [7] INFO more",
    ]
    assert "5 lines were lost" in err


def test_a_good_reload(start: Start, capsys: pytest.CaptureFixture[str]) -> None:
    server = start()
    code, out, err = run(capsys, "reload")
    assert (code, err) == (0, "")
    assert out.splitlines() == [
        "reloading 1 worker: reading the configuration",
        "worker 1 replaced: pid 1 -> 2 (1/1)",
        "reloaded: 1 worker replaced in 1.50 s, generation 3",
    ]
    code, out, _ = run(capsys, "reload", "--json")
    *steps, result = map(json.loads, out.splitlines())
    assert [step["step"] for step in steps] == ["accepted", "replaced"]
    assert result == {"ok": True, "result": {"generation": 3, "replaced": 1, "seconds": 1.5}}
    server.answers["reload"] = [protocol.result_line({"generation": 3, "workers": 2})]
    assert run(capsys, "reload", "--no-wait") == (0, "the reload has started\n", "")
    assert server.asked[-1]["args"] == {"wait": False}


def test_a_reload_that_is_rolled_back(start: Start, capsys: pytest.CaptureFixture[str]) -> None:
    failure = protocol.failure_line(protocol.ROLLED_BACK, "it raised", "Traceback: …")
    start().answers["reload"] = [failure]
    code, out, err = run(capsys, "reload")
    assert (code, out) == (1, "")
    assert err == "Traceback: …\n\nservoctl: error: rolled back: it raised\n"
    code, out, err = run(capsys, "reload", "--json")
    assert (code, err) == (1, "")
    assert json.loads(out) == {
        "ok": False,
        "kind": "rolled back",
        "error": "it raised",
        "details": "Traceback: …",
    }


def test_refusals(start: Start, capsys: pytest.CaptureFixture[str]) -> None:
    start().answers["scale"] = [protocol.failure_line(protocol.REFUSED, "there is no room")]
    assert run(capsys, "scale", "999") == (1, "", "servoctl: error: there is no room\n")


def test_a_stop_ends_with_the_connection(start: Start, capsys: pytest.CaptureFixture[str]) -> None:
    server = start()
    assert run(capsys, "stop", "--now") == (0, "worker 1 ended\nthe server has ended\n", "")
    assert server.asked[-1]["args"] == {"now": True, "wait": True}


def test_list_shows_a_server_that_does_not_answer(
    start: Start, capsys: pytest.CaptureFixture[str]
) -> None:
    start("shop", 7)
    start("stuck", 8).answers["status"] = []
    code, out, _ = run(capsys, "list", "--timeout", "0.2")
    assert code == 0
    _, shop, stuck = out.splitlines()
    assert "running" in shop
    assert "does not answer" in stuck
    _, out, _ = run(capsys, "list", "--timeout", "0.2", "--json")
    assert [row["state"] for row in json.loads(out)] == ["running", "does not answer"]
    code, _, err = run(capsys, "-n", "stuck", "--timeout", "0.2", "status")
    assert code == 1
    assert "does not answer within 0.2 s" in err


def test_a_server_whose_socket_is_gone(
    start: Start, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """The server is running and `list` shows it, so commands must not say that there is none."""
    server = start("shop", 7)
    os.rename(server.path, server.path + ".away")
    code, out, err = run(capsys, "-n", "shop", "status")
    assert (code, out) == (1, "")
    assert "shop (pid 7) does not answer at its socket" in err
    assert "does not answer" in run(capsys, "list")[1]
    os.rename(server.path + ".away", server.path)
