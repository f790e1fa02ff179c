"""The application that is passed on as an object."""

from __future__ import annotations

import pytest

from servo.apps.loader import load_app
from servo.serving import given_app


def test_workers_find_it_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    async def app(scope: object, receive: object, send: object) -> None:
        """Do nothing."""

    monkeypatch.setattr(given_app, "app", app)
    assert load_app(given_app.NAME).app is app
