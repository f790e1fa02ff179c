"""Samples the stacks of one worker, for `servoctl profile`.

The samplers read the worker's memory from outside, so the worker needs no preparation. py-spy does
this for all versions of Python; from 3.15 on, Python has a sampler of its own, which writes counted
stacks that this module turns into a picture or a speedscope file.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any
from xml.sax.saxutils import escape

from servo.control.client import ControlError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from servo.control.client import ControlClient

SVG = "svg"
SPEEDSCOPE = "speedscope"
SUFFIXES = {SVG: ".svg", SPEEDSCOPE: ".speedscope.json"}

# Samples per second.
_RATE = 100
# After the end of the measurement, a sampler may need this many seconds to write its file.
_GRACE_S = 60.0
_DENIED = ("permission denied", "operation not permitted", "permissionerror")
# The size of a picture, in pixels.
_WIDTH, _ROW_HEIGHT, _LETTER_WIDTH = 1200, 18, 7
# A narrower box is left out.
_MIN_WIDTH = 0.5
_COLOURS = ("#e8a33d", "#e5944b", "#e28457", "#d9b24a", "#e37b5b", "#dca048")

# The samplers that run now. `interrupt` removes those that it ends.
_running: set[subprocess.Popen[bytes]] = set()

# A stack, outermost call first.
Stack = tuple[str, ...]


def worker_pid(client: ControlClient, slot: int) -> int:
    """The pid of the worker in a slot; during a replacement, that of the newer one.

    client   the connection to the server
    slot     the slot

    Raises ControlError if there is none, or its pid has no meaning here.
    """
    result = client.request("workers")
    if result["server_pid"] != client.server_pid:
        raise ControlError(
            "the server is in another PID namespace (a container): run servoctl inside of it"
        )
    rows = [row for row in result["workers"] if row["slot"] == slot and row["pid"]]
    if not rows:
        slots = sorted({row["slot"] for row in result["workers"]})
        known = ", ".join(map(str, slots)) or "empty"
        raise ControlError(f"there is no worker {slot}; the slots are {known}")
    newest = max(rows, key=lambda row: (not row["leaving"], row["serial"]))
    return int(newest["pid"])


def sampler(python: str) -> Callable[[int, int, str, Path], None]:
    """The function that profiles a process: (pid, seconds, format, output file).

    python   the version of the server's Python

    Raises ControlError if there is no sampler.
    """
    program = _find_py_spy()
    if program is not None:
        return lambda pid, seconds, form, path: _run_py_spy(program, pid, seconds, form, path)
    own = ".".join(map(str, sys.version_info[:3]))
    if not _has_sampler():
        advice = f"{sys.executable} -m pip install py-spy"
        raise ControlError(
            f"profiling needs py-spy, or Python 3.15 or later for servoctl: {advice}"
        )
    if python != own:
        raise ControlError(
            f"the sampler of Python {own} can't read a server with Python {python}: run servoctl "
            f"with the server's Python, or {sys.executable} -m pip install py-spy"
        )
    return _run_standard_sampler


def _find_py_spy() -> str | None:
    beside = Path(sys.executable).parent / "py-spy"
    return str(beside) if os.access(beside, os.X_OK) else shutil.which("py-spy")


def _has_sampler() -> bool:
    try:
        return importlib.util.find_spec("profiling.sampling") is not None
    except ModuleNotFoundError:  # the package `profiling` is missing
        return False


def _run_py_spy(program: str, pid: int, seconds: int, form: str, path: Path) -> None:
    name = {SVG: "flamegraph", SPEEDSCOPE: "speedscope"}[form]
    # Without --subprocesses, py-spy looks at this process only.
    arguments = ["--pid", str(pid), "--duration", str(seconds), "--rate", str(_RATE)]
    _run([program, "record", *arguments, "--format", name, "--output", str(path)], pid, seconds)
    _check_written(path, pid, seconds)


def _run_standard_sampler(pid: int, seconds: int, form: str, path: Path) -> None:
    stacks = path.with_suffix(".collapsed")
    arguments = ["-a", "--mode", "cpu", "-r", str(_RATE), "-d", str(seconds), "--collapsed"]
    module = [sys.executable, "-m", "profiling.sampling", "attach"]
    _run([*module, *arguments, "-o", str(stacks), str(pid)], pid, seconds)
    _check_written(stacks, pid, seconds)
    counts = parse_stacks(stacks.read_text(encoding="utf-8"))
    path.write_text(as_svg(counts) if form == SVG else as_speedscope(counts), encoding="utf-8")


def _check_written(path: Path, pid: int, seconds: int) -> None:
    if not path.exists() or not path.stat().st_size:
        raise ControlError(_idle(pid, seconds))


def _idle(pid: int, seconds: int) -> str:
    return f"the worker (pid {pid}) was idle all the time: no sample in {seconds} s"


def _run(command: list[str], pid: int, seconds: int) -> None:
    """Run a sampler to its end. Raises ControlError with the reason if it fails."""
    try:
        process = subprocess.Popen(  # noqa: S603  the sampler
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
    except OSError as error:
        raise ControlError(f"can't run {command[0]}: {error.strerror}") from error
    _running.add(process)
    with process:
        try:
            output = process.communicate(timeout=seconds + _GRACE_S)[0].decode(errors="replace")
        except subprocess.TimeoutExpired as error:
            process.kill()
            raise ControlError(f"{command[0]} did not end in time") from error
        except BaseException:  # Ctrl-C: let the sampler leave the worker alone first
            process.send_signal(signal.SIGINT)
            raise
        finally:
            was_interrupted = process not in _running
            _running.discard(process)
    if was_interrupted:
        raise ControlError("interrupted")
    if process.returncode == 0:
        return
    if any(each in output.lower() for each in _DENIED):
        raise ControlError(
            f"the system does not allow this user to trace the worker (pid {pid}): run servoctl as "
            "root (in a container, with the capability SYS_PTRACE), or as the worker's user with "
            "kernel.yama.ptrace_scope=0"
        )
    if "no stack counts found" in output.lower():
        raise ControlError(_idle(pid, seconds))
    reason = next((line for line in output.splitlines() if line.startswith("Error")), "")
    raise ControlError(f"{command[0]} failed: {reason or output.strip()[-300:]}")


def interrupt() -> None:
    """End the samplers that other threads run; their `profile` raises ControlError."""
    while _running:
        _running.pop().send_signal(signal.SIGINT)


def profile(
    client: ControlClient, slot: int, seconds: int, form: str, output: str
) -> dict[str, Any]:
    """Profile a worker, and return the facts about the result.

    client    the connection to the server
    slot      the worker's slot
    seconds   for how long
    form      SVG or SPEEDSCOPE
    output    the file to write; "" for a name with the slot and the pid

    Raises ControlError.
    """
    run = sampler(client.request("status")["python"])
    pid = worker_pid(client, slot)
    target = Path(output or f"profile-{slot}-{pid}{SUFFIXES[form]}")
    try:
        # With the descriptor, the kernel can't give the pid to another process unnoticed.
        process = os.pidfd_open(pid)
    except OSError as error:
        raise ControlError(f"worker {slot} (pid {pid}) has ended: {error.strerror}") from error
    try:
        if worker_pid(client, slot) != pid:
            raise ControlError(f"worker {slot} has just been replaced; try again")
        with tempfile.TemporaryDirectory(prefix="servoctl-") as directory:
            made = Path(directory, "profile")
            run(pid, seconds, form, made)
            _copy(made, target)
    finally:
        os.close(process)
    return {"slot": slot, "pid": pid, "seconds": seconds, "format": form, "file": str(target)}


def _copy(made: Path, target: Path) -> None:
    try:
        shutil.copyfile(made, target)
    except OSError as error:
        raise ControlError(f"can't write {target}: {error.strerror}") from error


# --- counted stacks ---------------------------------------------------------------------------


def parse_stacks(text: str) -> Counter[Stack]:
    """Read counted stacks, one a line: `outer;inner;innermost 12`."""
    found: Counter[Stack] = Counter()
    for line in text.splitlines():
        stack, _, count = line.rpartition(" ")
        if stack and count.isdecimal():
            found[tuple(stack.split(";"))] += int(count)
    return found


def as_speedscope(counts: Mapping[Stack, int]) -> str:
    """Counted stacks in the file format of https://www.speedscope.app."""
    names = list(dict.fromkeys(name for stack in counts for name in stack))
    numbers = {name: number for number, name in enumerate(names)}
    weights = [count / _RATE for count in counts.values()]
    return json.dumps(
        {
            "$schema": "https://www.speedscope.app/file-format-schema.json",
            "exporter": "servoctl",
            "shared": {"frames": [{"name": name} for name in names]},
            "profiles": [
                {
                    "type": "sampled",
                    "name": "worker",
                    "unit": "seconds",
                    "startValue": 0,
                    "endValue": sum(weights),
                    "samples": [[numbers[name] for name in stack] for stack in counts],
                    "weights": weights,
                }
            ],
        }
    )


def as_svg(counts: Mapping[Stack, int]) -> str:
    """Counted stacks as a flame graph: a box for each call, as wide as its share of the time."""
    total = sum(counts.values()) or 1
    depth = max(map(len, counts), default=0)
    prefixes: Counter[Stack] = Counter()
    for stack, count in counts.items():
        for length in range(1, len(stack) + 1):
            prefixes[stack[:length]] += count
    ends: dict[Stack, float] = {(): 0.0}
    boxes = []
    for stack in sorted(prefixes):  # each call comes after its caller
        width = prefixes[stack] / total * _WIDTH
        x = ends[stack[:-1]]
        ends[stack[:-1]] = x + width
        ends[stack] = x
        if width >= _MIN_WIDTH:
            share = f"{prefixes[stack]} samples, {prefixes[stack] / total:.1%}"
            boxes.append(_box(stack[-1], share, x, len(stack) - 1, width))
    height = depth * _ROW_HEIGHT
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" height="{height}" '
        f'viewBox="0 0 {_WIDTH} {height}" font-family="monospace" font-size="11">\n'
        + "\n".join(boxes)
        + "\n</svg>\n"
    )


def _box(name: str, share: str, x: float, row: int, width: float) -> str:
    letters = int((width - 4) / _LETTER_WIDTH)
    shown = name if len(name) <= letters else name[: max(0, letters - 1)] + "…"
    colour = _COLOURS[sum(name.encode()) % len(_COLOURS)]
    y = row * _ROW_HEIGHT
    text = f'<text x="{x + 2:.1f}" y="{y + 13}">{escape(shown)}</text>' if letters > 2 else ""
    return (
        f"<g><title>{escape(name)}: {share}</title>"
        f'<rect x="{x:.1f}" y="{y}" width="{width:.1f}" height="{_ROW_HEIGHT - 1}" '
        f'fill="{colour}"/>{text}</g>'
    )
