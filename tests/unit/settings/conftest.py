"""Reading a configuration file imports modules and puts directories on the path."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True)
def _imports_undone(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(sys, "dont_write_bytecode", True)  # a rewritten file is read anew
    before = {*sys.modules}
    yield
    for name in {*sys.modules} - before:
        if "/tmp/" in (getattr(sys.modules[name], "__file__", None) or ""):
            del sys.modules[name]
