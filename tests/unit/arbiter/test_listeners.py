"""The arbiter's sockets: what it notices about their files."""

from __future__ import annotations

from pathlib import Path

import pytest

from servo.arbiter.listeners import Sockets
from servo.settings.sources import Settings


def test_a_removed_socket_file_is_told_of_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    sockets = Sockets(Settings({"bind": ["unix:a", "unix:b", "127.0.0.1:0"]}, {}))
    try:
        sockets.look_after()
        assert caplog.messages == []
        Path("b").unlink()
        sockets.look_after()
        sockets.look_after()
        (message,) = caplog.messages
        assert message.startswith("The socket file of unix:b was removed or replaced")
    finally:
        sockets.close()
    sockets.look_after()
    assert len(caplog.messages) == 1
