"""The package: what it offers to programs."""

from __future__ import annotations

import asyncio
import subprocess
import sys

import pytest

import servo
from servo.serving import run as run_module
from servo.serving import server as server_module


def test_run(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[object] = []
    monkeypatch.setattr(run_module, "run", lambda app, options: calls.append((app, options)))
    servo.run("main:app", port=80)
    assert calls == [("main:app", {"port": 80})]


def test_serve(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[object] = []

    class Server:
        def __init__(self, app: object, **options: object) -> None:
            calls.append((app, options))

        async def serve(self) -> None:
            calls.append("served")

    monkeypatch.setattr(server_module, "Server", Server)
    asyncio.run(servo.serve("main:app", port=80))
    assert calls == [("main:app", {"port": 80}), "served"]


def test_other_names() -> None:
    assert servo.Server is server_module.Server
    with pytest.raises(AttributeError, match="has no attribute 'Sever'"):
        servo.Sever  # noqa: B018


def test_the_import_of_the_package_loads_none_of_its_modules() -> None:
    code = "import servo, sys; print([name for name in sys.modules if name.startswith('servo.')])"
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert result.stdout.strip() == "[]"
