"""The loop, with real processes and model workers."""

from __future__ import annotations

import os
import select
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from arbiter_model import asks_to_stop, gets_ready, obeys, serve

from servo.arbiter.operator.control_service import ControlService
from servo.ipc import messages as msg
from servo.settings.config_hooks import Hooks
from servo.settings.sources import Settings
from servo.workers.context import WorkerContext


def test_hooks_and_what_they_see(tmp_path: Path) -> None:
    notes: list[Any] = []

    def on_starting(server: Any) -> None:
        notes.append(["on_starting", server.cfg.app, server.pid == os.getpid()])
        notes.append([server.address, server.num_workers, server.WORKERS])

    def pre_fork(server: Any, worker: Any) -> None:
        notes.append(["pre_fork", worker.slot, worker.pid, server.num_workers, len(server.WORKERS)])

    def child_exit(server: Any, worker: Any) -> None:
        notes.append(["child_exit", worker.slot, worker.age, worker.pid > 1])

    hooks = {
        "on_starting": on_starting,
        "when_ready": lambda s: notes.append(["when_ready", s.address]),
        "nworkers_changed": lambda s, new, old: notes.append(["nworkers_changed", new, old]),
        "pre_fork": lambda s, w: notes.append(
            ["pre_fork", w.slot, w.pid, s.num_workers, len(s.WORKERS)]
        ),
        "child_exit": child_exit,
        "on_exit": lambda s: notes.append(["on_exit", len(s.WORKERS)]),
    }
    pidfile = tmp_path / "pid"
    outcome = serve(
        tmp_path, asks_to_stop, hooks=hooks, note=notes, workers=2, pidfile=str(pidfile)
    )
    assert outcome.code == 0
    assert outcome.notes[:6] == [
        ["on_starting", "x:app", True],
        [[f"{tmp_path}/s"], 2, {}],
        ["when_ready", [f"{tmp_path}/s"]],
        ["nworkers_changed", 2, None],
        ["pre_fork", 1, None, 2, 0],
        ["pre_fork", 2, None, 2, 1],
    ]
    assert sorted(outcome.notes[6:8]) == [["child_exit", 1, 1, True], ["child_exit", 2, 2, True]]
    assert outcome.notes[8:] == [["on_exit", 0]]
    assert not pidfile.exists()
    assert not (tmp_path / "s").exists()


def test_a_reload_takes_new_settings_to_new_workers(tmp_path: Path) -> None:
    def worker(context: WorkerContext) -> int:
        first = context.generation == 1
        assert context.settings.app == ("x:app" if first else "y:app")
        assert os.environ.get("COLOUR") == (None if first else "blue")
        if first:
            os.kill(context.arbiter_pid, signal.SIGHUP)
            obeys(context)
            os.kill(context.arbiter_pid, signal.SIGTERM)
            return 0
        return obeys(context)

    notes: list[Any] = []
    new = Settings(
        {"app": "y:app", "bind": ["unix:elsewhere"], "raw_env": ["COLOUR=blue"], "errorlog": "-"},
        {},
        hooks=Hooks({"on_reload": lambda server: notes.append("on_reload")}),
    )
    outcome = serve(tmp_path, worker, reload=lambda: new, note=notes)
    assert outcome.code == 0
    assert outcome.notes == ["on_reload"]
    assert "bind has changed: this takes a restart" in outcome.log
    assert "replaced by a newer one" in outcome.log


def test_a_configuration_that_ends_its_process_is_survived(tmp_path: Path) -> None:
    def worker(context: WorkerContext) -> int:
        gets_ready(context)
        os.kill(context.arbiter_pid, signal.SIGHUP)
        # The check has ended when the log says so.
        while "rolled back" not in (tmp_path / "log").read_text():
            select.select([], [], [], 0.01)
        return asks_to_stop(context)

    def read() -> Settings:
        raise SystemExit("on purpose")

    outcome = serve(tmp_path, worker, reload=read)
    assert outcome.code == 0
    assert "the configuration is bad: it called sys.exit('on purpose')" in outcome.log


@pytest.mark.parametrize(("kind", "code"), [("app", 4), ("boot", 3)])
def test_no_worker_can_boot(tmp_path: Path, kind: str, code: int) -> None:
    def worker(context: WorkerContext) -> int:
        context.channel.send(msg.BootFailed(kind, "ImportError: on purpose"))
        return code

    outcome = serve(tmp_path, worker, workers=3)
    assert outcome.code == code
    assert "could not boot: ImportError: on purpose" in outcome.log
    assert not (tmp_path / "s").exists()


def test_a_killed_worker_is_replaced(tmp_path: Path) -> None:
    def worker(context: WorkerContext) -> int:
        if context.serial == 1:
            gets_ready(context)
            os.kill(os.getpid(), signal.SIGKILL)
        return asks_to_stop(context)

    outcome = serve(tmp_path, worker)
    assert outcome.code == 0
    assert "killed by signal 9 (SIGKILL), not by the arbiter" in outcome.log


def test_strangers_are_reaped(tmp_path: Path) -> None:
    def pre_fork(_server: Any, _worker: Any) -> None:
        stranger = os.fork()
        if stranger == 0:
            os._exit(0)
        # Dead, and not reaped, before the arbiter goes on: it may be over soon.
        os.waitid(os.P_PID, stranger, os.WEXITED | os.WNOWAIT)

    outcome = serve(tmp_path, asks_to_stop, hooks={"pre_fork": pre_fork})
    assert outcome.code == 0


def test_a_failing_hook_is_logged(tmp_path: Path) -> None:
    def fail(*_args: object) -> None:
        raise RuntimeError("this hook is broken")

    hooks = dict.fromkeys(("when_ready", "pre_fork", "child_exit", "on_exit"), fail)
    outcome = serve(tmp_path, asks_to_stop, hooks=hooks)
    assert outcome.code == 0
    assert outcome.log.count("RuntimeError: this hook is broken") == 4


HOOKS = ("when_ready", "nworkers_changed", "pre_fork", "on_event", "child_exit", "on_exit")


def hang(*_args: object) -> None:
    while True:
        try:
            signal.pause()
        except Exception:  # noqa: BLE001  it takes the interruption for no error of its own
            continue


@pytest.mark.parametrize("name", HOOKS)
def test_a_hanging_hook_is_interrupted(tmp_path: Path, name: str) -> None:
    outcome = serve(tmp_path, asks_to_stop, hooks={name: hang}, hook_timeout=0.05)
    assert outcome.code == 0
    assert f"The {name} hook failed" in outcome.log
    assert "it took over 0.05 s (hook_timeout)" in outcome.log


def leave(*_args: object) -> None:
    raise SystemExit(7)


def interrupt(*_args: object) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize("hook", [leave, interrupt])
def test_no_hook_ends_the_arbiter(tmp_path: Path, hook: Callable[..., None]) -> None:
    outcome = serve(tmp_path, asks_to_stop, hooks=dict.fromkeys(HOOKS, hook))
    assert outcome.code == 0
    for name in HOOKS:
        assert f"The {name} hook failed" in outcome.log


def test_a_stop_interrupts_a_hook_without_a_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("servo.arbiter.limit.STOP_S", 0.05)

    def hang_in_the_second(server: Any, worker: Any) -> None:
        if worker.age > 1:
            os.kill(os.getpid(), signal.SIGTERM)
            hang()

    outcome = serve(
        tmp_path, obeys, hooks={"pre_fork": hang_in_the_second}, hook_timeout=0, workers=2
    )
    assert outcome.code == 0
    assert "it was interrupted because the server is stopping" in outcome.log


@pytest.mark.parametrize("ending", [hang, leave, interrupt])
def test_a_configuration_that_is_bad_only_in_the_arbiter(
    tmp_path: Path, ending: Callable[[], None]
) -> None:
    arbiter: list[int] = []

    def worker(context: WorkerContext) -> int:
        gets_ready(context)
        os.kill(context.arbiter_pid, signal.SIGHUP)
        while "rolled back" not in (tmp_path / "log").read_text():
            select.select([], [], [], 0.01)
        return asks_to_stop(context)

    def read() -> Settings:
        if os.getpid() == arbiter[0]:
            ending()
        return Settings({"app": "y:app"}, {})

    hooks = {"when_ready": lambda _server: arbiter.append(os.getpid())}
    outcome = serve(tmp_path, worker, reload=read, hooks=hooks, hook_timeout=0.05)
    assert outcome.code == 0
    assert "the configuration can't be used: " in outcome.log


def test_a_system_call_that_fails_after_the_inbox(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    failures = [OSError("on purpose")]

    def settle(_control: ControlService) -> None:
        if failures:
            raise failures.pop()

    monkeypatch.setattr(ControlService, "settle", settle)
    outcome = serve(tmp_path, asks_to_stop)
    assert outcome.code == 0
    assert "A system call failed; the arbiter goes on" in outcome.log


def test_a_child_has_no_end_of_a_siblings_channel(tmp_path: Path) -> None:
    """Or a dead arbiter would not be the end of any channel."""

    def sockets() -> int:
        links = [
            os.readlink(f"/proc/self/fd/{fd}")
            for fd in os.listdir("/proc/self/fd")
            if os.path.lexists(f"/proc/self/fd/{fd}")
        ]
        return sum(link.startswith("socket:") for link in links)

    def worker(context: WorkerContext) -> int:
        (tmp_path / f"open-{context.serial}").write_text(str(sockets()))
        return asks_to_stop(context) if context.serial == 3 else obeys(context)

    before = sockets()
    serve(tmp_path, worker, workers=3)
    counts = {path.read_text() for path in tmp_path.glob("open-*")}
    assert counts == {str(before + 2)}  # the listener, and its own channel
