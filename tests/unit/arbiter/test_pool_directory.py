"""The directory of the pools' sockets."""

from __future__ import annotations

import os
import stat
import tempfile

import pytest

from servo.arbiter.pool_directory import PoolDirectory


@pytest.fixture
def base(monkeypatch):
    """A directory with a short path: the path of a Unix socket is limited."""
    with tempfile.TemporaryDirectory(prefix="sp") as name:
        monkeypatch.setattr(tempfile, "tempdir", name)
        yield name


def test_only_its_user_can_search_it_and_it_is_removed(base):
    directory = PoolDirectory()
    assert os.path.dirname(directory.path) == base
    assert stat.S_IMODE(os.stat(directory.path).st_mode) == 0o700
    open(os.path.join(directory.path, "ml.sock"), "w").close()
    directory.close()
    assert os.listdir(base) == []
    directory.close()


def test_a_dead_server_s_directory_is_removed_and_a_live_one_s_is_not(base):
    live, dead = PoolDirectory(), PoolDirectory()
    dead.close_in_child()  # as if the process had ended
    third = PoolDirectory()
    assert sorted(os.listdir(base)) == sorted(os.path.basename(d.path) for d in (live, third))
    live.close()
    third.close()


def test_a_forked_child_leaves_it(base, monkeypatch):
    directory = PoolDirectory()
    monkeypatch.setattr(os, "getpid", lambda: 1)
    directory.close()
    assert os.path.isdir(directory.path)


def test_an_upgrade_passes_it_on(base):
    directory = PoolDirectory()
    state = directory.to_state(lambda fd: fd)
    following = PoolDirectory.from_state(state, os.dup)
    directory.close_in_child()
    other = PoolDirectory()
    assert os.path.isdir(following.path)
    following.close()
    assert not os.path.isdir(following.path)
    other.close()


def test_a_long_path_of_temporary_files_is_not_used(tmp_path, monkeypatch):
    long = tmp_path / ("x" * 100)
    long.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(long))
    directory = PoolDirectory()
    assert directory.path.startswith("/tmp/")
    directory.close()


def test_it_belongs_to_the_workers_user(base, monkeypatch):
    given = []
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(
        "servo.arbiter.pool_directory.os.chown",
        lambda path, user, group, **_options: given.append((user, group)),
    )
    directory = PoolDirectory((33, None))
    directory.give_away(directory.path)
    assert given == [(33, -1), (33, -1)]
    directory.close()
