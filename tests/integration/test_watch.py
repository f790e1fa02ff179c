"""`--reload`: Servo serves a change soon. After a broken change, it waits for the next one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import requests

from integration import releases
from integration.conftest import CLASSES
from integration.server import REPOSITORY, Server, wait_for

pytestmark = pytest.mark.slow


def answer(server: Server) -> str:
    try:
        return requests.get(f"{server.url}/", timeout=30).text
    except requests.ConnectionError:
        return ""  # a development server may have no worker while it waits for a fix


def test_change_mistake_and_fix(
    serve: Callable[..., Server], tmp_path: Path, worker_class: str
) -> None:
    pytest.importorskip("watchfiles")
    releases.deploy(tmp_path, releases.good(worker_class, "1"))
    server = serve("release:app", *CLASSES[worker_class][1], "--reload")
    assert answer(server) == "1"

    releases.deploy(tmp_path, releases.good(worker_class, "2"))
    wait_for(lambda: answer(server) == "2", "the changed app")

    mark = server.mark()
    releases.deploy(tmp_path, releases.BROKEN["syntax error"])
    server.wait_log("SyntaxError", mark)
    assert not server.exited()

    releases.deploy(tmp_path, releases.good(worker_class, "3"))
    wait_for(lambda: answer(server) == "3", "the mended app")


def test_mistake_at_the_start(serve: Callable[..., Server], tmp_path: Path) -> None:
    """A development server that can't boot waits for the fix too."""
    pytest.importorskip("watchfiles")
    releases.deploy(tmp_path, releases.BROKEN["syntax error"])
    server = serve("release:app", *CLASSES["sync"][1], "--reload", ready=0)
    server.wait_log("SyntaxError")
    releases.deploy(tmp_path, releases.good("sync", "1"))
    wait_for(lambda: answer(server) == "1", "the mended app")


def test_extra_file(serve: Callable[..., Server], tmp_path: Path) -> None:
    pytest.importorskip("watchfiles")
    releases.deploy(tmp_path, releases.good("sync", "1"))
    template = tmp_path / "page.html"
    template.write_text("1")
    server = serve("release:app", "-k", "sync", "--reload", "--reload-extra-file", str(template))
    old = server.wait_workers(1)
    template.write_text("2")
    server.wait_replaced(old)


@pytest.mark.parametrize("way", ["watchfiles", "polling"])
def test_patterns(serve: Callable[..., Server], tmp_path: Path, way: str) -> None:
    env: dict[str, str | None] = {}
    if way == "watchfiles":
        pytest.importorskip("watchfiles")
    else:  # a package of that name that can't be found: find_spec says None
        (tmp_path / "hide").mkdir()
        hides = "import sys\nsys.modules['watchfiles'] = None\n"
        (tmp_path / "hide" / "sitecustomize.py").write_text(hides)
        env["PYTHONPATH"] = f"{tmp_path / 'hide'}:{REPOSITORY}"
    app = tmp_path / "app"
    for name in ("templates/mail", "sub"):
        (app / name).mkdir(parents=True)
    releases.deploy(app, releases.good("sync", "1"))
    for name in ("templates/mail/a.html", ".env", "sub/b.py", "c.html"):
        (app / name).write_text("1")
    patterns = ("--reload-include", "templates/**/*.html", "--reload-include", ".env")
    server = serve(
        *("release:app", "-k", "sync", "-w", "1", "--reload", *patterns),
        *("--reload-exclude", "sub/*"),
        cwd=app,
        env=env,
    )
    workers = server.wait_workers(1)
    assert ("are checked every" in server.log()) == (way == "polling")
    for name in ("templates/mail/a.html", ".env", "release.py"):
        mark = server.mark()
        # What doesn't count comes first: it would be named.
        (app / "sub" / "b.py").write_text(name)
        (app / "c.html").write_text(name)
        (app / name).write_text((app / name).read_text() + "\n")
        assert server.wait_log(r"reload \((.*)\): reading", mark)[1] == f"{name} changed"
        workers = server.wait_replaced(workers)


def test_a_link_that_is_switched(serve: Callable[..., Server], tmp_path: Path) -> None:
    pytest.importorskip("watchfiles")
    for version in ("1", "2"):
        (tmp_path / version).mkdir()
        releases.deploy(tmp_path / version, releases.good("sync", version))
    current = tmp_path / "current"
    current.symlink_to("1")
    server = serve("release:app", "--reload", cwd=current, env={"PWD": str(current)})
    assert answer(server) == "1"
    (tmp_path / "next").symlink_to("2")
    (tmp_path / "next").rename(current)
    wait_for(lambda: answer(server) == "2", "the other release")
    releases.deploy(tmp_path / "2", releases.good("sync", "3"))
    wait_for(lambda: answer(server) == "3", "a change of it")
