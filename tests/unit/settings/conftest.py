"""Undoes the imports and the changes of sys.path that reading a configuration file causes."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True)
def _imports_undone(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(sys, "dont_write_bytecode", True)  # so that a rewritten file is compiled
    before = {*sys.modules}
    yield
    for name in {*sys.modules} - before:
        if "/tmp/" in (getattr(sys.modules[name], "__file__", None) or ""):
            del sys.modules[name]
