"""Plain HTTP on a TLS port: each client gets a response, but the log few lines."""

from __future__ import annotations

import logging
import socket

import pytest

from servo.workers.accept.plain_http import ANSWER, LOG_INTERVAL_S, PlainHTTPRefusal


def test_each_is_answered_and_few_are_logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    now = 5.0
    refusal = PlainHTTPRefusal(lambda: now)
    for _ in range(3):
        ours, theirs = socket.socketpair()
        with ours, theirs:
            refusal.send(ours, "192.0.2.1")
            assert theirs.recv(1000) == ANSWER
    assert caplog.messages == ["192.0.2.1 sent a plain HTTP request to an HTTPS port: 400"]
    now += LOG_INTERVAL_S
    ours, theirs = socket.socketpair()
    theirs.close()
    with ours:
        refusal.send(ours, "192.0.2.2")
    assert caplog.messages[1:] == [
        "192.0.2.2 sent a plain HTTP request to an HTTPS port: 400 (and 2 before, not logged)"
    ]
