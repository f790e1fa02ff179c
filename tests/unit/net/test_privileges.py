"""Giving up root in a child process, and the groups that it has afterwards."""

from __future__ import annotations

import json
import os
import pwd
from collections.abc import Callable
from typing import Any

import pytest

from servo.errors import ConfigError
from servo.net.privileges import become

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to give it up")
NOBODY = pwd.getpwnam("nobody")


def in_child(act: Callable[[], None]) -> Any:
    """Call `act` in a child. Returns its ids afterwards, or the text of its ConfigError."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.setgroups([0, 4])
            act()
            told: Any = [os.getresuid(), os.getresgid(), sorted(os.getgroups())]
        except ConfigError as error:
            told = str(error)
        os.write(writer, json.dumps(told).encode())
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as file:
        told = json.loads(file.read())
    os.waitpid(pid, 0)
    return told


def own_groups(name: str, gid: int) -> list[int]:
    return sorted(os.getgrouplist(name, gid))


@needs_root
def test_a_user_brings_its_own_groups() -> None:
    uid, gid = NOBODY.pw_uid, NOBODY.pw_gid
    groups = own_groups("nobody", gid)
    for initgroups in (False, True):
        told = in_child(lambda initgroups=initgroups: become(uid, None, initgroups))
        assert told == [[uid] * 3, [gid] * 3, groups]


@needs_root
def test_a_group_that_is_given_is_the_only_one() -> None:
    uid = NOBODY.pw_uid
    assert in_child(lambda: become(uid, 7, False)) == [[uid] * 3, [7] * 3, [7]]
    groups = own_groups("nobody", 7)
    assert in_child(lambda: become(uid, 7, True)) == [[uid] * 3, [7] * 3, groups]


@needs_root
def test_a_group_alone() -> None:
    assert in_child(lambda: become(None, 7, False)) == [[0] * 3, [7] * 3, [7]]
    assert in_child(lambda: become(None, None, False)) == [[0] * 3, [0] * 3, [0, 4]]


@needs_root
def test_a_user_without_an_account() -> None:
    uid = 2_000_000
    assert "the user database has no such user" in in_child(lambda: become(uid, None, False))
    assert in_child(lambda: become(uid, 7, False)) == [[uid] * 3, [7] * 3, [7]]


def test_no_change_needs_no_root() -> None:
    become(None, None, False)
    become(os.geteuid(), None, False)
