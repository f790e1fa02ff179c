"""Does what the quick starts say: writes their files, runs their commands, compares the output."""

from __future__ import annotations

import re
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from integration.server import DEADLINE_S, REPOSITORY, environment, free_port, wait_for

PAGES = sorted((REPOSITORY / "docs" / "quickstart").glob("*.md"))
# A file's name stands before its text; commands stand in blocks of their own.
PARTS = re.compile(
    r"`(?P<file>\w+\.py)`:\n\n```python\n(?P<text>.*?)```|```console\n\$ (?P<command>.*?)```",
    re.DOTALL,
)
# Commands about a project that the page does not have.
OTHERS = ("servo shop.wsgi ",)


@contextmanager
def serving(command: str, port: int, directory: Path) -> Iterator[None]:
    words = [sys.executable, "-m", "servo", *shlex.split(command)[1:]]
    log = directory / "server.log"
    with log.open("w") as file:
        server = subprocess.Popen(
            [*words, "--bind", f"127.0.0.1:{port}"],
            cwd=directory,
            env=environment(),
            stdout=file,
            stderr=file,
        )
    try:
        wait_for(
            lambda: "is ready" in log.read_text() or server.poll() is not None,
            f"a ready worker of {command}",
        )
        assert server.poll() is None, log.read_text()
        yield
    finally:
        server.send_signal(signal.SIGTERM)
        assert server.wait(DEADLINE_S) == 0, log.read_text()


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_quick_start(page: Path, tmp_path: Path) -> None:
    port = free_port()
    answers = 0
    start = ""
    for part in PARTS.finditer(page.read_text()):
        if part["file"]:
            (tmp_path / part["file"]).write_text(part["text"])
            continue
        command, _, expected = part["command"].partition("\n")
        if command.startswith(OTHERS):
            continue
        if command.startswith("servo "):
            start = command
            with serving(start, port, tmp_path):
                pass
            continue
        assert command.startswith("curl ")
        with serving(start, port, tmp_path):
            done = subprocess.run(
                [*shlex.split(command.replace(":8000", f":{port}")), "-sS"],
                capture_output=True,
                text=True,
                timeout=DEADLINE_S,
                check=True,
            )
        assert done.stdout.strip() == expected.strip()
        answers += 1
    assert answers
