"""What a mold warns of, and what each worker seeds anew."""

from __future__ import annotations

import os
import socket
import sys
import threading
from pathlib import Path
from types import ModuleType

import pytest

from servo.errors import AppImportError
from servo.workers.fork_safety import (
    check_descriptors,
    open_sockets,
    reseed,
    warn_of_sockets,
    warn_of_threads,
)


def test_threads(caplog: pytest.LogCaptureFixture) -> None:
    end = threading.Event()

    def wait_for_the_end() -> None:
        end.wait()

    thread = threading.Thread(target=wait_for_the_end, name="exporter")
    thread.start()
    try:
        warn_of_threads("while the app was imported")
    finally:
        end.set()
        thread.join()
    (text,) = [each.getMessage() for each in caplog.records if "exporter" in each.getMessage()]
    assert text.startswith("The thread exporter was started while the app was imported")
    assert "wait_for_the_end" in text


@pytest.mark.parametrize("reused", [False, True])
def test_a_connection_to_the_arbiter_that_the_app_has_closed(
    reused: bool, capfd: pytest.CaptureFixture[str]
) -> None:
    ours, theirs = socket.socketpair()
    with theirs:
        check_descriptors(ours)
        fd = ours.fileno()
        os.close(fd)
        if reused:
            null = os.open(os.devnull, os.O_RDONLY)
            if null != fd:
                os.dup2(null, fd)
                os.close(null)
        with pytest.raises(AppImportError, match="the app has closed the descriptors"):
            check_descriptors(ours)
    ours.detach()
    if reused:
        os.close(fd)
    assert capfd.readouterr().err.startswith("servo: error: the app has closed")


def test_a_connection(caplog: pytest.LogCaptureFixture) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        before = open_sockets()
        warn_of_sockets(before)
        assert caplog.records == []
        with socket.create_connection(server.getsockname()):
            warn_of_sockets(before)
        assert f"connected to 127.0.0.1:{server.getsockname()[1]}" in caplog.text
        assert len(caplog.records) == 1


def test_sockets_without_a_connection(caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    before = open_sockets()
    one, other = socket.socketpair()
    with one, other, socket.socket(socket.AF_UNIX) as bound, socket.socket(socket.AF_INET6) as six:
        bound.bind(f"{tmp_path}/s")
        six.bind(("::1", 0))
        warn_of_sockets(before)
        texts = [record.getMessage() for record in caplog.records]
        assert len(texts) == 4
        assert sum("without an address" in text for text in texts) == 2
        assert sum(f"bound to {tmp_path}/s" in text for text in texts) == 1
        assert sum(f"bound to [::1]:{six.getsockname()[1]}" in text for text in texts) == 1


def test_numpys_generator_is_seeded_if_it_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "numpy.random", raising=False)
    reseed()
    model, seeds = ModuleType("numpy.random"), []
    model.seed = lambda *seed: seeds.append(seed)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "numpy.random", model)
    reseed()
    assert seeds == [()]
