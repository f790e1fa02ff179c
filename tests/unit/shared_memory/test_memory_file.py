"""Files without a name: sealed, and with their space allocated."""

from __future__ import annotations

import errno
import os

import pytest

from servo.shared_memory.memory_file import fill, open_file, seal


def test_a_sealed_file_keeps_its_size() -> None:
    fd = open_file("test", None)
    os.ftruncate(fd, 4096)
    seal(fd)
    with pytest.raises(PermissionError):
        os.ftruncate(fd, 0)
    os.close(fd)


def test_a_part_is_filled_without_posix_fallocate(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "posix_fallocate")
    fd = open_file("test", None)
    os.write(fd, b"x" * 8)
    fill(fd, 4, 10)
    assert os.pread(fd, 100, 0) == b"xxxx" + bytes(10)
    os.close(fd)


def test_without_memfd_the_file_is_on_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_args: object) -> int:
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(os, "memfd_create", refuse)
    fd = open_file("test", None)
    assert os.fstat(fd).st_nlink == 0
    seal(fd)  # such a file takes no seals; that is no error
    os.close(fd)
