"""Releases behind a link: `current` is switched to another directory, and the server reloads."""

from __future__ import annotations

import json
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import requests

from integration.conftest import CLASSES
from integration.server import Server, run_servo, wait_for

pytestmark = pytest.mark.slow

Serve = Callable[..., Server]

FACTS = """
import os, sys, json

VERSION = {version!r}

def facts():
    import late  # only now: it must come from the same release
    return json.dumps({{
        "version": VERSION,
        "late": late.VERSION,
        "file": __file__,
        "cwd": os.getcwd(),
        "path": sys.path,
        "setting": os.environ["SETTING"],
    }}).encode()
"""
WSGI = """
def app(environ, start_response):
    start_response("200 OK", [])
    return [facts()]
"""
ASGI = """
async def app(scope, receive, send):
    assert scope["type"] == "http"
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": facts()})
"""


def release(root: Path, version: str, worker_class: str, *, inner: str = "") -> Path:
    directory = root / version
    (directory / inner).mkdir(parents=True)
    app = FACTS.format(version=version) + (ASGI if worker_class == "async" else WSGI)
    (directory / inner / "shop.py").write_text(app)
    (directory / inner / "late.py").write_text(f"VERSION = {version!r}\n")
    config = f"import beside\nraw_env = ['SETTING=' + {version!r} + beside.VERSION]\n"
    (directory / "servo.conf.py").write_text(config)
    (directory / "beside.py").write_text(f"VERSION = {version!r}\n")
    return directory


def switch(root: Path, version: str) -> None:
    (root / "next").symlink_to(version)
    (root / "next").rename(root / "current")


def answer(server: Server) -> dict[str, object]:
    return dict(json.loads(requests.get(f"{server.url}/", timeout=30).content))


def start(serve: Serve, *args: str, cwd: Path, pwd: Path | str, **options: Path) -> Server:
    env = {"PWD": str(pwd)}
    return serve("shop:app", "-w", "2", *args, cwd=cwd, env=env, ready=2, **options)


def reload(server: Server) -> None:
    mark = server.mark()
    server.signal(signal.SIGHUP)
    server.wait_log("reload .*finished", mark)


@pytest.mark.parametrize(
    ("worker_class", "way"),
    [*((name, "PWD") for name in CLASSES), ("sync", "chdir"), ("async", "relative chdir")],
)
def test_a_reload_follows_the_link(
    serve: Serve, tmp_path: Path, worker_class: str, way: str
) -> None:
    root = tmp_path / "releases"
    for version in ("one", "two"):
        release(root, version, worker_class)
    switch(root, "one")
    current = root / "current"
    where = {
        "PWD": ((), current, current),
        "chdir": (("--chdir", str(current)), root, "/"),
        "relative chdir": (("--chdir", "current"), root, root),
    }
    more, cwd, pwd = where[way]
    server = start(serve, *CLASSES[worker_class][1], *more, cwd=cwd, pwd=pwd)
    old = answer(server)
    assert (old["version"], old["late"], old["setting"]) == ("one", "one", "oneone")
    switch(root, "two")
    reload(server)
    new = answer(server)
    assert (new["version"], new["late"], new["setting"]) == ("two", "two", "twotwo")
    assert new["file"] == str(root / "two" / "shop.py")
    assert new["cwd"] == str(root / "two")
    path = new["path"]
    assert isinstance(path, list)
    assert path[0] == str(root / "two")
    assert not any(str(entry).startswith(str(root / "one")) for entry in path)


def test_the_release_that_the_server_was_started_in_is_removed(
    serve: Serve, tmp_path: Path
) -> None:
    root = tmp_path / "releases"
    for version in ("one", "two", "three"):
        release(root, version, "sync")
    switch(root, "one")
    current = root / "current"
    server = start(serve, cwd=current, pwd=current, log_directory=tmp_path)
    for before, version in (("one", "two"), ("two", "three")):
        switch(root, version)
        shutil.rmtree(root / before)
        reload(server)
        assert answer(server)["version"] == version
    # A worker that takes another's place before a reload can only have the new release.
    release(root, "four", "sync")
    switch(root, "four")
    shutil.rmtree(root / "three")
    old = server.wait_workers(2)
    server.signal_worker(old[0], signal.SIGTERM)
    server.signal_worker(old[1], signal.SIGTERM)
    server.wait_replaced(old)
    assert answer(server)["version"] == "four"


def test_pythonpath_below_the_link(serve: Serve, tmp_path: Path) -> None:
    root = tmp_path / "releases"
    for version in ("one", "two"):
        release(root, version, "sync", inner="src")
    switch(root, "one")
    current = root / "current"
    server = start(serve, "--pythonpath", f"{current}/src", cwd=current, pwd=current)
    assert answer(server)["version"] == "one"
    switch(root, "two")
    reload(server)
    new = answer(server)
    assert (new["version"], new["late"]) == ("two", "two")
    assert new["file"] == str(root / "two" / "src" / "shop.py")


def test_workers_of_a_generation_have_one_release(serve: Serve, tmp_path: Path) -> None:
    """A worker that is replaced before the reload, or after one was rolled back, has the old."""
    root = tmp_path / "releases"
    for version in ("one", "two"):
        release(root, version, "sync")
    switch(root, "one")
    current = root / "current"
    server = start(serve, cwd=current, pwd=current)
    (root / "two" / "shop.py").write_text("raise RuntimeError('a broken release')\n")
    switch(root, "two")
    server.signal(signal.SIGHUP)
    server.wait_log("rolled back")
    old = server.wait_workers(2)
    for pid in old:
        server.signal_worker(pid, signal.SIGTERM)
    server.wait_replaced(old)
    now = answer(server)
    assert (now["version"], now["late"], now["cwd"]) == ("one", "one", str(root / "one"))


def test_relative_paths_of_a_reload_start_at_the_new_release(serve: Serve, tmp_path: Path) -> None:
    root = tmp_path / "releases"
    for version in ("one", "two"):
        release(root, version, "sync")
        handler = {"class": "logging.FileHandler", "filename": str(root / f"{version}.log")}
        loggers = {"servo.error": {"handlers": ["console", "own"]}}
        config = {"handlers": {"own": handler}, "loggers": loggers}
        (root / version / "log.json").write_text(json.dumps(config))
    switch(root, "one")
    current = root / "current"
    arguments = ("--log-config", "log.json", "--pid", "servo.pid", "--bind", "unix:servo.sock")
    server = start(serve, *arguments, cwd=current, pwd=current)
    assert "ready" in (root / "one.log").read_text()
    switch(root, "two")
    reload(server)
    wait_for(lambda: "finished" in (root / "two.log").read_text(), "the log of the new release")
    assert {"servo.pid", "servo.sock"} <= {entry.name for entry in (root / "one").iterdir()}
    server.stop()
    assert not {"servo.pid", "servo.sock"} & {entry.name for entry in (root / "one").iterdir()}


def test_print_and_check_config_know_the_link(tmp_path: Path) -> None:
    root = tmp_path / "releases"
    release(root, "one", "sync")
    switch(root, "one")
    current = root / "current"
    done = run_servo("--print-config", cwd=current, env={"PWD": str(current)})
    rows = [line.split() for line in done.stdout.splitlines()]
    assert ["chdir", str(current)] in [row[:2] for row in rows]
    done = run_servo("shop:app", "--check-config", cwd=current, env={"PWD": str(current)})
    assert (done.returncode, done.stdout) == (0, "configuration OK\n")


def test_a_link_to_nowhere_is_a_bad_configuration(serve: Serve, tmp_path: Path) -> None:
    root = tmp_path / "releases"
    release(root, "one", "sync")
    switch(root, "one")
    current = root / "current"
    server = start(serve, cwd=current, pwd=current)
    switch(root, "gone")
    server.signal(signal.SIGHUP)
    server.wait_log(f"rolled back: .*the directory {current} no longer exists")
    assert answer(server)["version"] == "one"
