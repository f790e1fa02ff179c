"""Fixtures for the tests of messages; see `mailboxes`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from unit.workers.mailboxes import Pair

from servo import cluster


@pytest.fixture
def pair() -> Iterator[Pair]:
    cluster.forget_handlers()
    found = Pair()
    cluster.install(found.mailbox)
    yield found
    cluster.install(cluster.LocalBackend())
    cluster.forget_handlers()
    found.close()


@pytest.fixture
def heard() -> list[Any]:
    messages: list[Any] = []
    cluster.on_message("t")(messages.append)
    return messages
