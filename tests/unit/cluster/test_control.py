"""`cluster.retire`, `reload` and `scale`: the messages to the arbiter, and wrong arguments."""

from __future__ import annotations

from typing import Any

import pytest

from servo import cluster
from servo.cluster.messages import LocalBackend, install
from servo.ipc.messages import AppCommand, ReplaceMe


class Recorder(LocalBackend):
    """A backend that only keeps the commands."""

    def __init__(self) -> None:
        super().__init__()
        self.sent: list[Any] = []

    def control(self, message: ReplaceMe | AppCommand) -> None:
        self.sent.append(message)


@pytest.fixture
def sent() -> Any:
    recorder = Recorder()
    install(recorder)
    yield recorder.sent
    install(LocalBackend())


def test_the_messages(sent: list[Any]) -> None:
    cluster.retire()
    cluster.retire("the model\n is old")
    cluster.reload()
    cluster.scale(3)
    assert sent == [
        ReplaceMe("recycled", "the application asks for it"),
        ReplaceMe("recycled", "the application asks for it: the model is old"),
        AppCommand("reload"),
        AppCommand("scale", "3"),
    ]


def test_a_long_reason_is_cut(sent: list[Any]) -> None:
    cluster.retire("x" * 100_000)
    assert len(sent[0].detail) < 300


def test_wrong_arguments(sent: list[Any]) -> None:
    for count in (0, -1, 1_000_000):
        with pytest.raises(ValueError, match=f"1 worker or more, not {count}"):
            cluster.scale(count)
    for wrong in ("3", 2.0, True, None):
        with pytest.raises(TypeError, match="must be a whole number"):
            cluster.scale(wrong)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="must be text"):
        cluster.retire(5)  # type: ignore[arg-type]
    assert not sent


def test_outside_of_a_server() -> None:
    for call in (cluster.retire, cluster.reload, lambda: cluster.scale(2)):
        with pytest.raises(cluster.ClusterError, match="there is no server"):
            call()
