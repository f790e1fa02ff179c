"""`cluster.every` in real servers: one worker runs each job, whatever happens to the workers."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import requests

from integration.server import APPS, Server, wait_for
from integration.test_counters import CLASSES
from integration.test_metrics import serve_with_metrics

pytestmark = pytest.mark.slow

Serve = Callable[..., Server]


def arguments(worker_class: str) -> tuple[str, ...]:
    app, *flags = CLASSES[worker_class]
    return (f"{APPS / 'schedule_app.py'}:{app}", *flags)


class Runs:
    """What the jobs have written."""

    def __init__(self, directory: Path) -> None:
        self.path = directory / "runs"
        self.directory = directory

    def of(self, job: str, event: str = "begin") -> list[tuple[int, int]]:
        """The slot and pid of each run of a job."""
        lines = [line.split() for line in self.path.read_text().splitlines()]
        return [
            (int(slot), int(pid)) for name, slot, pid, what in lines if (name, what) == (job, event)
        ]

    def wait_more(self, count: int = 3) -> None:
        """Until both jobs have begun so many more times."""
        for job in ("tick", "atick"):
            before = len(self.of(job)) if self.path.exists() else 0
            wait_for(lambda: len(self.of(job)) >= before + count, f"{count} runs of {job}")  # noqa: B023

    def assert_never_two(self) -> None:
        assert not (self.directory / "violated").exists()


def test_one_worker_runs_the_jobs(serve: Serve, worker_class: str, tmp_path: Path) -> None:
    server, metrics = serve_with_metrics(serve, *arguments(worker_class), "-w", "3", ready=3)
    runs = Runs(tmp_path)
    runs.wait_more()
    assert {slot for slot, _ in runs.of("tick")[-3:]} == {1}
    assert {slot for slot, _ in runs.of("atick")[-3:]} == {1}
    server.wait_log(r"The job 'fails' failed")
    server.wait_log(r"ValueError: on purpose")
    wait_for(lambda: metrics.value("servo_schedule_failures_total", job="fails") >= 2, "failures")
    assert metrics.value("servo_schedule_runs_total", job="tick") >= 3
    assert metrics.value("servo_schedule_skipped_total", job="tick") == 0
    assert not any(name.startswith("servo_schedule_due") for name, _ in metrics.last)
    runs.assert_never_two()


def test_the_leader_moves_when_it_is_killed_or_stopped(
    serve: Serve, worker_class: str, tmp_path: Path
) -> None:
    """Kill -9 at random, a reload, and a leader that SIGSTOP pauses."""
    chance = random.Random(18)
    server = serve(*arguments(worker_class), "-w", "3", "--timeout", "60", ready=3)
    runs = Runs(tmp_path)
    for signum in (0, signal.SIGHUP):
        if signum:
            server.signal(signum)
        end = time.monotonic() + 2.5
        while time.monotonic() < end:
            time.sleep(chance.uniform(0.1, 0.5))
            with contextlib.suppress(ProcessLookupError, IndexError):
                os.kill(chance.choice(server.worker_pids()), signal.SIGKILL)
    server.wait_workers(3)
    runs.wait_more()
    leader = runs.of("tick")[-1][1]
    os.kill(leader, signal.SIGSTOP)
    before = len(runs.of("tick"))
    # A run that was stopped half way holds its lock: the others skip the job then.
    wait_for(
        lambda: len(runs.of("tick")) > before or "is skipped" in server.log(),
        "a run in another worker",
    )
    assert {pid for _, pid in runs.of("tick")[before:]} & {leader} == set()
    os.kill(leader, signal.SIGCONT)
    runs.wait_more()
    runs.assert_never_two()


def test_a_drain_waits_for_a_running_job(serve: Serve, worker_class: str, tmp_path: Path) -> None:
    environment = {"INTERVAL": "0.3", "LENGTH": "1.5"}
    server = serve(*arguments(worker_class), "-w", "1", env=environment)
    runs = Runs(tmp_path)
    wait_for(lambda: runs.path.exists() and runs.of("tick") and runs.of("atick"), "both jobs")
    server.wait_log("The job 'tick' is skipped")
    assert server.stop() == 0
    for job in ("tick", "atick"):
        assert len(runs.of(job)) == len(runs.of(job, "end")) >= 1
    runs.assert_never_two()


def test_a_job_longer_than_graceful_timeout_is_cut_off(
    serve: Serve, worker_class: str, tmp_path: Path
) -> None:
    environment = {"INTERVAL": "0.3", "LENGTH": "60"}
    server = serve(*arguments(worker_class), "-w", "1", "--graceful-timeout", "1", env=environment)
    runs = Runs(tmp_path)
    wait_for(lambda: runs.path.exists() and runs.of("tick") and runs.of("atick"), "both jobs")
    server.stop()
    assert runs.of("tick", "end") == runs.of("atick", "end") == []


def test_an_upgrade_keeps_the_rhythm(serve: Serve, tmp_path: Path) -> None:
    server = serve(*arguments("thread"), "-w", "2", "--preload", ready=2)
    runs = Runs(tmp_path)
    runs.wait_more()
    server.signal(signal.SIGUSR2)
    server.wait_log(r"upgraded: Servo")
    runs.wait_more(5)
    runs.assert_never_two()


def test_the_example_of_a_nightly_job(serve: Serve, tmp_path: Path) -> None:
    pytest.importorskip("cronsim", reason="the extra [cron] is not installed")
    (tmp_path / "cache").mkdir()
    example = APPS.parents[2] / "examples" / "nightly.py"
    server = serve(f"{example}:app", "-k", "thread", "-w", "2", ready=2)
    assert requests.get(server.url, timeout=30).text == "0 files\n"


def test_without_cronsim_one_line_names_the_command(serve: Serve, tmp_path: Path) -> None:
    (tmp_path / "cronsim.py").write_text("raise ImportError('No module named cronsim')\n")
    (tmp_path / "jobs.py").write_text(
        "from servo import cluster\n@cluster.cron('0 3 * * *')\ndef job(): ...\n"
    )
    server = serve("jobs:app", "-k", "sync", "-w", "1", ready=0)
    assert server.wait_exit() == 4
    assert "cluster.cron needs cronsim: pip install 'servo-server[cron]'" in server.log()
