"""The arbiter's sockets, and their removed files."""

from __future__ import annotations

import json
import os
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


def test_addresses_have_the_port_that_the_kernel_chose(tmp_path: Path) -> None:
    sockets = Sockets(Settings({"bind": [f"unix:{tmp_path}/a", "127.0.0.1:0"]}, {}))
    try:
        path, (host, port) = sockets.addresses()
        assert (path, host) == (f"{tmp_path}/a", "127.0.0.1")
        assert port > 0
    finally:
        sockets.close()


def test_the_next_program_goes_on_with_the_sockets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    before = Sockets(Settings({"bind": ["127.0.0.1:0", "unix:a"], "reuse_port": True}, {}), True)
    of_second = before.for_slot(2)[0]
    state = json.loads(json.dumps(before.to_state(lambda fd: fd)))
    after = Sockets.from_state(state, os.dup, 7)
    ports = [each.socket.getsockname() for each in before.listeners]
    names = [each.name for each in before.listeners]
    second = of_second.fileno()
    for listener in (*before.listeners, of_second):
        listener.close(unlink=False)
    monkeypatch.chdir("/")
    assert [each.socket.getsockname() for each in after.listeners] == ports
    assert [each.name for each in after.listeners] == names
    assert names[0].startswith("https://127.0.0.1:")
    assert after.for_slot(2)[0].fileno() not in (-1, second, after.listeners[0].fileno())
    assert after.for_slot(2)[1:] == after.for_slot(1)[1:] == after.listeners[1:]
    assert len(after.others(1)) == 1
    after.look_after()
    after.close()
    assert not (tmp_path / "a").exists()
