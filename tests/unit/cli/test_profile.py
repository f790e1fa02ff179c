"""Profiling of a worker: which process, which sampler, its failures, and the files it writes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import xml.etree.ElementTree as ET
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import pytest

from servo.cli import profile as profiling
from servo.control.client import ControlClient, ControlError

VERSION = ".".join(map(str, sys.version_info[:3]))
STACKS = "tid:1;app;report 30\ntid:1;app;report;<listcomp> 60\ntid:1;app;log 10\nnonsense\n"


class Client:
    """A server with the given workers."""

    server_pid = 7

    def __init__(self, *workers: dict[str, Any], pid: int = 7) -> None:
        self.workers = list(workers)
        self.pid = pid

    def request(self, command: str) -> dict[str, Any]:
        if command == "status":
            return {"python": VERSION}
        assert command == "workers"
        return {"server_pid": self.pid, "workers": self.workers}


def worker(slot: int, pid: int, serial: int = 1, leaving: str = "") -> dict[str, Any]:
    return {"slot": slot, "pid": pid, "serial": serial, "leaving": leaving}


def client(*workers: dict[str, Any], pid: int = 7) -> ControlClient:
    return cast("ControlClient", Client(*workers, pid=pid))


@pytest.fixture
def child() -> Iterator[int]:
    """A live process that stands for the worker."""
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    yield process.pid
    process.communicate(b"\n")


@pytest.fixture
def py_spy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """Makes a py-spy that runs some lines of a shell, with $OUT as its output file."""

    def make(script: str) -> Path:
        program = tmp_path / "py-spy"
        head = f'#!/bin/sh\necho "$@" > {tmp_path}/arguments\nfor OUT; do :; done\n'
        program.write_text(head + script)
        program.chmod(0o755)
        monkeypatch.setattr(profiling, "_find_py_spy", lambda: str(program))
        return tmp_path / "arguments"

    return make


def test_the_worker_of_a_slot() -> None:
    found = client(worker(1, 11), worker(2, 12, 2, "it is replaced"), worker(2, 13, 3))
    assert profiling.worker_pid(found, 2) == 13
    with pytest.raises(ControlError, match="there is no worker 9; the slots are 1, 2"):
        profiling.worker_pid(found, 9)
    with pytest.raises(ControlError, match="another PID namespace"):
        profiling.worker_pid(client(worker(1, 11), pid=1), 1)


@pytest.mark.parametrize(
    ("form", "name"), [(profiling.SVG, "flamegraph"), (profiling.SPEEDSCOPE, "speedscope")]
)
def test_py_spy_looks_at_this_process_only(
    child: int, py_spy: Callable[[str], Path], tmp_path: Path, form: str, name: str
) -> None:
    arguments = py_spy('echo "the profile" > "$OUT"\n')
    target = tmp_path / "out"
    result = profiling.profile(client(worker(1, child)), 1, 3, form, str(target))
    assert result["file"] == str(target)
    assert result["pid"] == child
    assert target.read_text() == "the profile\n"
    given = arguments.read_text().split()
    assert given[:7] == ["record", "--pid", str(child), "--duration", "3", "--rate", "100"]
    assert given[7:9] == ["--format", name]
    assert "--subprocesses" not in given


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("echo 'Permission Denied: Try running again' >&2; exit 1", "run servoctl as root"),
        ("echo 'Error: Operation not permitted (os error 1)'; exit 1", "SYS_PTRACE"),
        ("echo 'Error: No stack counts found'; exit 1", "was idle all the time"),
        ("exit 0", "was idle all the time"),
        ("echo 'Error: no python here'; echo more; exit 1", "failed: Error: no python here"),
        ("kill -9 $$", "failed"),
    ],
)
def test_failures_of_py_spy(
    child: int, py_spy: Callable[[str], Path], tmp_path: Path, script: str, message: str
) -> None:
    py_spy(script)
    target = tmp_path / "out"
    with pytest.raises(ControlError, match=message):
        profiling.profile(client(worker(1, child)), 1, 1, profiling.SVG, str(target))
    assert not target.exists()


def test_a_sampler_can_be_interrupted(
    child: int, py_spy: Callable[[str], Path], tmp_path: Path
) -> None:
    arguments = py_spy("echo x > $OUT\ntrap 'exit 0' INT\nread line < \"$0.wait\"\n")
    os.mkfifo(tmp_path / "py-spy.wait")
    errors: list[ControlError] = []

    def run() -> None:
        try:
            profiling.profile(client(worker(1, child)), 1, 60, profiling.SVG, str(tmp_path / "o"))
        except ControlError as error:
            errors.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    # This returns once the shell has opened its end, after it has set its trap.
    with open(tmp_path / "py-spy.wait", "w"):
        profiling.interrupt()
    thread.join()
    assert arguments.exists()
    assert [str(error) for error in errors] == ["interrupted"]
    assert not (tmp_path / "o").exists()
    profiling.interrupt()  # there is none


def test_an_output_that_can_not_be_written(
    child: int, py_spy: Callable[[str], Path], tmp_path: Path
) -> None:
    py_spy('echo x > "$OUT"')
    target = str(tmp_path / "missing" / "out")
    with pytest.raises(ControlError, match="can't write"):
        profiling.profile(client(worker(1, child)), 1, 1, profiling.SVG, target)


def test_a_worker_that_ends_or_is_replaced(py_spy: Callable[[str], Path]) -> None:
    arguments = py_spy("exit 0")
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    with pytest.raises(ControlError, match=f"worker 1 .pid {gone.pid}. has ended"):
        profiling.profile(client(worker(1, gone.pid)), 1, 1, profiling.SVG, "")
    pids = iter([os.getpid(), os.getppid()])

    class Replaced(Client):
        def request(self, command: str) -> dict[str, Any]:
            self.workers = [worker(1, next(pids))] if command == "workers" else []
            return super().request(command)

    with pytest.raises(ControlError, match="worker 1 has just been replaced"):
        profiling.profile(cast("ControlClient", Replaced()), 1, 1, profiling.SVG, "")
    assert not arguments.exists()  # nothing was traced


def test_without_a_sampler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(profiling, "_find_py_spy", lambda: None)
    monkeypatch.setattr(profiling, "_has_sampler", lambda: False)
    with pytest.raises(ControlError, match="-m pip install py-spy"):
        profiling.sampler(VERSION)
    monkeypatch.setattr(profiling, "_has_sampler", lambda: True)
    with pytest.raises(ControlError, match=r"can't read a server with Python 3\.9\.1"):
        profiling.sampler("3.9.1")


@pytest.mark.parametrize("form", [profiling.SVG, profiling.SPEEDSCOPE])
def test_the_standard_sampler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str) -> None:
    commands: list[list[str]] = []

    def run(command: list[str], pid: int, seconds: int) -> None:
        commands.append(command)
        Path(command[command.index("-o") + 1]).write_text(STACKS)

    monkeypatch.setattr(profiling, "_find_py_spy", lambda: None)
    monkeypatch.setattr(profiling, "_has_sampler", lambda: True)
    monkeypatch.setattr(profiling, "_run", run)
    profiling.sampler(VERSION)(11, 2, form, tmp_path / "out")
    ((python, *words),) = commands
    assert python == sys.executable
    assert words[:3] == ["-m", "profiling.sampling", "attach"]
    assert words[-1] == "11"
    counts = profiling.parse_stacks(STACKS)
    text = (tmp_path / "out").read_text()
    assert text == (profiling.as_svg if form == profiling.SVG else profiling.as_speedscope)(counts)


def test_counted_stacks() -> None:
    assert profiling.parse_stacks(STACKS) == Counter(
        {
            ("tid:1", "app", "report"): 30,
            ("tid:1", "app", "report", "<listcomp>"): 60,
            ("tid:1", "app", "log"): 10,
        }
    )


def test_a_flame_graph() -> None:
    root = ET.fromstring(profiling.as_svg(profiling.parse_stacks(STACKS)))
    boxes = {}
    for group in root.iter("{http://www.w3.org/2000/svg}g"):
        title, rect = group[0].text or "", group[1].attrib
        boxes[title.split(": ")[0]] = (float(rect["x"]), float(rect["width"]), int(rect["y"]))
    assert boxes == {
        "tid:1": (0.0, 1200.0, 0),
        "app": (0.0, 1200.0, 18),
        "log": (0.0, 120.0, 36),
        "report": (120.0, 1080.0, 36),
        "<listcomp>": (120.0, 720.0, 54),
    }
    assert root.attrib["height"] == "72"
    assert profiling.as_svg(Counter()).startswith("<svg")


def test_a_speedscope_file() -> None:
    value = json.loads(profiling.as_speedscope(profiling.parse_stacks(STACKS)))
    names = [frame["name"] for frame in value["shared"]["frames"]]
    (profile,) = value["profiles"]
    stacks = [[names[number] for number in sample] for sample in profile["samples"]]
    assert stacks[1] == ["tid:1", "app", "report", "<listcomp>"]
    assert profile["weights"] == [0.3, 0.6, 0.1]
    assert profile["endValue"] == pytest.approx(1.0)
