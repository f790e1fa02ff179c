"""Locks between processes, with real forks: the kernel decides who holds one."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator

import pytest

from servo.errors import ClusterError
from servo.shared_memory.locks import LockFile


@pytest.fixture
def fd() -> Iterator[int]:
    fd = os.memfd_create("test")
    yield fd
    os.close(fd)


@pytest.fixture
def locks(fd: int) -> Iterator[LockFile]:
    locks = LockFile(fd)
    yield locks
    locks.close()


def in_child(work: Callable[[], bool]) -> bool:
    """Whether a function returns True in a forked process."""
    pid = os.fork()
    if pid == 0:
        code = 2
        try:
            code = int(not work())
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def test_one_process_holds_a_byte(locks: LockFile) -> None:
    assert locks.try_lock(7)
    assert in_child(lambda: not locks.try_lock(7))
    assert in_child(lambda: locks.is_locked(7))
    assert in_child(lambda: locks.try_lock(8))
    locks.unlock(7)
    assert in_child(lambda: locks.try_lock(7))
    assert not locks.is_locked(7)


def test_a_byte_far_behind_the_end_of_the_file(locks: LockFile) -> None:
    last = (1 << 63) - 2
    assert locks.try_lock(last)
    assert in_child(lambda: not locks.try_lock(last))


def test_unlock_of_a_file_that_was_never_opened(locks: LockFile) -> None:
    locks.unlock(3)
    assert not locks.is_locked(3)


def test_a_killed_owner_releases_its_lock(locks: LockFile) -> None:
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        locks.try_lock(1)
        os.write(writer, b"x")
        signal.pause()
    os.read(reader, 1)
    assert not locks.try_lock(1)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    assert locks.try_lock(1)
    os.close(reader)
    os.close(writer)


def test_a_child_does_not_keep_the_lock_of_its_parent(locks: LockFile) -> None:
    """The parent is itself a child here, so that it can end first."""
    reader, writer = os.pipe()
    parent = os.fork()
    if parent == 0:
        locks.try_lock(1)
        if os.fork() == 0:
            os.write(writer, os.getpid().to_bytes(4, "little"))
        signal.pause()
    grandchild = int.from_bytes(os.read(reader, 4), "little")
    assert not locks.try_lock(1)
    os.kill(parent, signal.SIGKILL)
    os.waitpid(parent, 0)
    held = not locks.try_lock(1)
    os.kill(grandchild, signal.SIGKILL)
    assert not held
    os.close(reader)
    os.close(writer)


def test_wait_lock_waits_for_the_owner(locks: LockFile) -> None:
    reader, writer = os.pipe()
    go, let_go = os.pipe()
    pid = os.fork()
    if pid == 0:
        locks.try_lock(1)
        os.write(writer, b"x")
        os.read(go, 1)
        os._exit(0)
    os.read(reader, 1)
    assert not locks.try_lock(1)
    os.write(let_go, b"x")
    locks.wait_lock(1)
    os.waitpid(pid, 0)
    for fd in (reader, writer, go, let_go):
        os.close(fd)


def test_another_file_under_the_same_number_is_noticed() -> None:
    fd = os.memfd_create("test")
    locks = LockFile(fd)
    other = os.memfd_create("other")
    os.dup2(other, fd)
    with pytest.raises(ClusterError, match="has closed the server's descriptors"):
        locks.try_lock(1)
    os.close(fd)
    with pytest.raises(ClusterError, match="can't be opened"):
        locks.try_lock(1)
    os.close(other)


def test_a_child_is_told_that_it_holds_nothing(locks: LockFile) -> None:
    told = []
    locks.on_fork = lambda: told.append(os.getpid())
    assert in_child(lambda: told == [os.getpid()])
    assert not told
