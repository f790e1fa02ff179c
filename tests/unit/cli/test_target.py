"""The server that a `servoctl` command is for."""

from __future__ import annotations

import os

import pytest

from servo.cli import target
from servo.control import instances


def test_the_users_own_servers(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    monkeypatch.setattr(instances, "directories", lambda _environ, uid: asked.append(uid) or [])
    assert target.running_servers() == []
    assert asked == [os.geteuid()]
