"""Fixtures for the tests of messages; see `mailboxes`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from unit.workers.mailboxes import Pair

from servo import cluster
from servo.cluster.messages import LocalBackend, forget_handlers, install


@pytest.fixture
def pair() -> Iterator[Pair]:
    forget_handlers()
    found = Pair()
    install(found.mailbox)
    yield found
    install(LocalBackend())
    forget_handlers()
    found.close()


@pytest.fixture
def heard() -> list[Any]:
    messages: list[Any] = []
    cluster.on_message("t")(messages.append)
    return messages
