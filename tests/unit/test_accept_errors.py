"""Errors of accept(2): which of them make a server pause its listeners."""

from __future__ import annotations

import errno
import os

import pytest

from servo.accept_errors import CLIENT_LOST, MAX_LOST_IN_A_ROW, NO_ROOM, AcceptErrors


def error(code: int) -> OSError:
    return OSError(code, os.strerror(code))


@pytest.mark.parametrize("code", sorted(CLIENT_LOST))
def test_a_lost_client_does_not_pause_the_listeners(code):
    assert not AcceptErrors().must_pause(error(code))


@pytest.mark.parametrize("code", [*sorted(NO_ROOM), errno.EACCES, errno.EINVAL])
def test_a_lasting_error_pauses_the_listeners(code):
    assert AcceptErrors().must_pause(error(code))


def test_too_many_lost_clients_in_a_row_pause_the_listeners():
    errors = AcceptErrors()
    for _ in range(2):
        judged = [errors.must_pause(error(errno.EPERM)) for _ in range(MAX_LOST_IN_A_ROW)]
        assert judged == [False] * (MAX_LOST_IN_A_ROW - 1) + [True]


def test_an_accept_that_succeeds_begins_a_new_row():
    errors = AcceptErrors()
    for _ in range(MAX_LOST_IN_A_ROW - 1):
        errors.must_pause(error(errno.ECONNABORTED))
    errors.lost = 0
    assert not errors.must_pause(error(errno.ECONNABORTED))
    assert errors.lost == 1
