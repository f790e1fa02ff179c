"""The client against servers that are silent, send too much, or send nonsense."""

from __future__ import annotations

import os
import socket
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from servo.control import protocol
from servo.control.client import (
    ConnectionEnded,
    ControlClient,
    ControlError,
    NoAnswer,
    NoSuchInstance,
    RequestFailed,
)

Script = Callable[[socket.socket], None]


@pytest.fixture
def path() -> Iterator[str]:
    with tempfile.TemporaryDirectory(prefix="servo-") as directory:
        yield str(Path(directory, "s"))


def listening(path: str, backlog: int = 5) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX)
    sock.bind(path)
    sock.listen(backlog)
    return sock


def talk(path: str, answer: bytes | Script, **options: Any) -> dict[str, Any]:
    """Send a request to a server that reads one line and sends this answer."""

    def serve() -> None:
        peer, _ = sock.accept()
        with peer:
            peer.recv(1000)
            if callable(answer):
                answer(peer)
            else:
                peer.sendall(answer)

    with listening(path) as sock:
        thread = threading.Thread(target=serve)
        thread.start()
        try:
            with ControlClient(path, 5.0) as client:
                return client.request("status", {}, **options)
        finally:
            thread.join()


def test_notes_losses_and_the_result(path: str) -> None:
    notes: list[Any] = []
    lost: list[int] = []
    answer = (
        protocol.note_line({"n": 1})
        + b"\n\n"
        + protocol.lost_line(7)
        + protocol.note_line({"n": 2})
        + protocol.result_line({"all": "well"})
    )
    result = talk(path, answer, on_note=notes.append, on_lost=lost.append)
    assert result == {"all": "well"}
    assert (notes, lost) == ([{"n": 1}, {"n": 2}], [7])


def test_a_refusal_with_its_traceback(path: str) -> None:
    with pytest.raises(RequestFailed) as failure:
        talk(path, protocol.failure_line(protocol.ROLLED_BACK, "no", "Traceback …"))
    error = failure.value
    assert (error.kind, str(error), error.details) == ("rolled back", "no", "Traceback …")
    assert error.exit_code == 1


def test_a_server_that_does_not_answer(path: str) -> None:
    with listening(path), ControlClient(path, 0.05) as client:
        with pytest.raises(NoAnswer, match=r"does not answer within 0\.05 s"):
            client.request("status")
        assert NoAnswer.exit_code == 1


def test_a_server_that_takes_no_connection(path: str) -> None:
    with listening(path, backlog=0):
        waiting = []
        with pytest.raises(NoAnswer):  # noqa: PT012  how many fit is the kernel's affair
            for _ in range(10):
                waiting.append(ControlClient(path, 0.05))  # noqa: PERF401  kept one by one
        assert waiting
        for client in waiting:
            client.close()


def test_a_server_that_ends_amid_the_answer(path: str) -> None:
    with pytest.raises(ConnectionEnded):
        talk(path, protocol.note_line({"n": 1}))


@pytest.mark.parametrize("answer", [b"HTTP/1.1 400 Bad Request\r\n\r\n", b'{"hello": 1}\n'])
def test_something_else_is_there(path: str, answer: bytes) -> None:
    with pytest.raises(NoSuchInstance, match="not a control socket of Servo"):
        talk(path, answer)


def test_an_endless_line_is_not_kept(path: str) -> None:
    def endless(peer: socket.socket) -> None:
        try:
            while True:
                peer.sendall(b"x" * 1_000_000)
        except OSError:
            return

    with pytest.raises(NoSuchInstance, match="endless line"):
        talk(path, endless)


def test_the_reason_for_closing_is_read_after_a_failed_send(path: str) -> None:
    def refuse(peer: socket.socket) -> None:
        peer.sendall(protocol.failure_line(protocol.DENIED, "not you"))

    with pytest.raises(ControlError, match="not you"):
        talk(path, refuse)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may do everything")
def test_a_socket_of_another_user(path: str) -> None:
    with listening(path):
        os.chmod(path, 0)
        with pytest.raises(ControlError, match="this user may not connect"):
            ControlClient(path)


def test_no_server_listens(path: str) -> None:
    place = Path(path).parent
    with pytest.raises(NoSuchInstance, match="does not exist"):
        ControlClient(str(place / "none"))
    left = socket.socket(socket.AF_UNIX)
    left.bind(str(place / "dead"))
    left.close()
    with pytest.raises(NoSuchInstance, match="left over from a dead server"):
        ControlClient(str(place / "dead"))
    (place / "file").write_text("")
    with pytest.raises((NoSuchInstance, ControlError)):
        ControlClient(str(place / "file"))


def test_a_socket_of_another_user_than_expected(path: str) -> None:
    with listening(path):
        ControlClient(path, 5.0, os.geteuid()).close()
        with pytest.raises(ControlError, match="is a server's of user 60001, but user"):
            ControlClient(path, 5.0, 60_001)
