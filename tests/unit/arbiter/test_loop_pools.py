"""Pools at the start of a server."""

from __future__ import annotations

from pathlib import Path

import pytest
from arbiter_model import asks_to_stop, serve

from servo.arbiter.processes import pool as pool_module
from servo.errors import ConfigError
from servo.settings.sections.pools import PoolSettings


def test_a_pool_that_can_not_be_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_place(_owner: object) -> None:
        raise PermissionError("no place for it")

    monkeypatch.setattr(pool_module, "PoolDirectory", no_place)
    outcome = serve(tmp_path, asks_to_stop, pools={"ml": PoolSettings()})
    assert outcome.code == ConfigError.exit_code
    assert outcome.notes == ["the pools can't be started: no place for it"]
