"""The event loop of an `async` worker."""

from __future__ import annotations

import asyncio
import sys

import pytest

from servo.errors import ConfigError
from servo.workers.aio.event_loop import new_event_loop


def test_an_event_loop_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    loop = new_event_loop("asyncio")
    assert isinstance(loop, asyncio.SelectorEventLoop)
    loop.close()
    monkeypatch.setitem(sys.modules, "uvloop", None)
    loop = new_event_loop("auto")
    assert isinstance(loop, asyncio.SelectorEventLoop)
    loop.close()
    with pytest.raises(ConfigError, match="uvloop is not installed"):
        new_event_loop("uvloop")
