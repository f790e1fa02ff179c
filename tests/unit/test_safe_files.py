"""Opening files in directories that other users can change."""

from __future__ import annotations

import errno
import os
import pwd
import struct
from pathlib import Path

import pytest

from servo.safe_files import check_appendable, is_private, open_parent, open_to_append


def content(path: Path, text: bytes = b"x") -> bytes:
    """Append `text` by this path. Returns the content of the file afterwards."""
    fd = open_to_append(str(path)).fd
    os.write(fd, text)
    os.close(fd)
    return path.read_bytes()


@pytest.fixture
def shared(tmp_path: Path) -> Path:
    """A directory that other users can write to."""
    directory = tmp_path / "shared"
    directory.mkdir()
    directory.chmod(0o777)
    return directory


def test_a_file_is_made_and_appended_to(tmp_path: Path) -> None:
    path = tmp_path / "log"
    assert content(path, b"a") == b"a"
    assert content(path, b"b") == b"ab"
    assert open_fds_are_closed(path)


def open_fds_are_closed(path: Path) -> bool:
    links = (f"/proc/self/fd/{fd}" for fd in os.listdir("/proc/self/fd"))
    return str(path) not in [os.readlink(link) for link in links if os.path.lexists(link)]


@pytest.mark.parametrize("relative", [False, True])
def test_a_link_in_a_private_directory_is_followed(tmp_path: Path, relative: bool) -> None:
    (tmp_path / "data").mkdir()
    target = "../tmp/../data" if relative else str(tmp_path / "data")
    (tmp_path / "tmp").mkdir()
    (tmp_path / "logs").symlink_to("data" if relative else target)
    (tmp_path / "logs" / "log").symlink_to("real.log")
    assert content(tmp_path / "logs" / "log") == b"x"
    assert (tmp_path / "data" / "real.log").read_bytes() == b"x"


def test_a_link_in_a_shared_directory_is_not_followed(tmp_path: Path, shared: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(b"")
    (shared / "log").symlink_to(secret)
    for use in (open_to_append, check_appendable):
        with pytest.raises(OSError, match="symbolic link in a directory that other users") as error:
            use(str(shared / "log"))
        assert error.value.errno == errno.ELOOP
        assert error.value.filename == str(shared / "log")
    assert secret.read_bytes() == b""


def test_a_link_to_a_directory_in_a_shared_directory_is_not_followed(
    tmp_path: Path, shared: Path
) -> None:
    (tmp_path / "etc").mkdir()
    (shared / "logs").symlink_to(tmp_path / "etc")
    with pytest.raises(OSError, match="symbolic link"):
        open_to_append(str(shared / "logs" / "log"))
    assert list((tmp_path / "etc").iterdir()) == []


def test_a_link_behind_a_private_link_is_not_followed(tmp_path: Path, shared: Path) -> None:
    (shared / "log").symlink_to(tmp_path / "secret")
    (tmp_path / "good").symlink_to(shared / "log")
    with pytest.raises(OSError, match="symbolic link"):
        open_to_append(str(tmp_path / "good"))
    assert not (tmp_path / "secret").exists()


def may_have(path: Path, uid: int = 65534) -> bool:
    opened = open_to_append(str(path))
    try:
        return opened.may_be_given_to(uid, -1)
    finally:
        os.close(opened.fd)


def test_which_files_may_be_given_away(tmp_path: Path, shared: Path) -> None:
    """A file may be given away only if it is new, or if no other user can have put it there."""
    assert may_have(tmp_path / "new")
    assert may_have(tmp_path / "new")
    assert may_have(shared / "new")
    assert not may_have(shared / "new")


def test_a_private_directory_in_a_shared_one(tmp_path: Path, shared: Path) -> None:
    """Another user can rename private directories in a shared one, and so choose one of them."""
    (shared / "logs").mkdir(mode=0o755)
    assert may_have(shared / "logs" / "new")
    assert not may_have(shared / "logs" / "new")
    shared.chmod(0o1777)  # now no other user can rename it
    assert may_have(shared / "logs" / "new")


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to choose the directory's group")
def test_a_directory_that_a_group_can_write(tmp_path: Path) -> None:
    """/var/log on Ubuntu. Members of its group could choose the file, other users can't."""
    tmp_path.chmod(0o775)
    (tmp_path / "data").mkdir()
    (tmp_path / "link").symlink_to("data/log")
    assert content(tmp_path / "link") == b"x"
    (tmp_path / "log").touch()
    os.chown(tmp_path, 0, 4)
    assert may_have(tmp_path / "log")
    os.chown(tmp_path, 0, pwd.getpwnam("nobody").pw_gid)
    assert not may_have(tmp_path / "log")
    os.lchown(tmp_path / "link", 65534, -1)
    with pytest.raises(OSError, match="symbolic link"):
        open_to_append(str(tmp_path / "link"))


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to become another user")
@pytest.mark.parametrize("user", ["root", "another"])
def test_a_link_in_the_directory_of_a_third_user(tmp_path: Path, user: str) -> None:
    """The link `current` of a user that deploys: root doesn't follow it, other users do."""
    tmp_path.chmod(0o755)
    (tmp_path / "release").mkdir()
    (tmp_path / "release").chmod(0o777)
    (tmp_path / "current").symlink_to("release")
    os.chown(tmp_path, 60001, -1)
    os.lchown(tmp_path / "current", 60001, -1)
    for parent in tmp_path.parents:
        parent.chmod(parent.stat().st_mode | 0o011)
    try:
        if user == "another":
            os.seteuid(60002)
            assert content(tmp_path / "current" / "log") == b"x"
        else:
            with pytest.raises(OSError, match="symbolic link"):
                open_to_append(str(tmp_path / "current" / "log"))
    finally:
        os.seteuid(0)


def test_a_link_to_the_root(tmp_path: Path) -> None:
    (tmp_path / "log").symlink_to("/")
    with pytest.raises(IsADirectoryError):
        open_to_append(str(tmp_path / "log"))


def test_the_directory_of_a_path(tmp_path: Path, shared: Path) -> None:
    (tmp_path / "here").symlink_to(tmp_path)
    (tmp_path / "pid").symlink_to("elsewhere")
    directory, name = open_parent(str(tmp_path / "here" / "pid"))
    assert name == "pid"
    assert os.readlink(name, dir_fd=directory) == "elsewhere"
    os.close(directory)
    (shared / "run").symlink_to(tmp_path)
    with pytest.raises(OSError, match="symbolic link"):
        open_parent(str(shared / "run" / "pid"))


def test_a_second_name_in_a_shared_directory(tmp_path: Path, shared: Path) -> None:
    (tmp_path / "secret").write_bytes(b"")
    os.link(tmp_path / "secret", shared / "log")
    with pytest.raises(OSError, match="hard link"):
        open_to_append(str(shared / "log"))


def test_a_loop_of_links(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    with pytest.raises(OSError, match="symbolic link"):
        open_to_append(str(tmp_path / "a"))


def test_a_fifo_without_a_reader_does_not_block(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OSError, match="a FIFO that no process reads") as error:
        open_to_append(str(tmp_path / "pipe"))
    assert error.value.errno == errno.ENXIO
    reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    fd = open_to_append(str(tmp_path / "pipe")).fd
    assert not os.get_blocking(fd)
    os.close(fd)
    os.close(reader)


def test_a_descriptor_by_its_path_in_proc() -> None:
    reader, writer = os.pipe()
    fd = open_to_append(f"/proc/self/fd/{writer}").fd
    os.write(fd, b"x")
    assert os.read(reader, 9) == b"x"
    assert os.get_blocking(writer)
    for each in (reader, writer, fd):
        os.close(each)


def test_a_check_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "old").write_bytes(b"old")
    check_appendable(str(tmp_path / "old"))
    check_appendable(str(tmp_path / "new"))
    assert [path.name for path in tmp_path.iterdir()] == ["old"]
    with pytest.raises(FileNotFoundError):
        check_appendable(str(tmp_path / "none" / "new"))


@pytest.mark.parametrize(
    ("mode", "private"), [(0o700, True), (0o755, True), (0o775, False), (0o1777, False)]
)
def test_private_directories(tmp_path: Path, mode: int, private: bool) -> None:
    directory = tmp_path / "directory"
    directory.mkdir()
    directory.chmod(mode)
    assert is_private(directory.stat()) is private


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to give a directory away")
def test_a_directory_of_another_user_is_not_private(tmp_path: Path) -> None:
    directory = tmp_path / "directory"
    directory.mkdir()
    os.chown(directory, 65534, -1)
    assert not is_private(directory.stat())


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, whose files are given away")
def test_a_directory_with_an_access_control_list(tmp_path: Path) -> None:
    """The group's bits in the mode are a mask for all users and groups that the list names."""
    (tmp_path / "log").touch()
    none = 0xFFFFFFFF
    entries = [(1, 7, none), (2, 7, 65534), (4, 5, none), (16, 7, none), (32, 5, none)]
    acl = struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in entries)
    try:
        os.setxattr(tmp_path, "system.posix_acl_access", acl)
    except OSError as error:
        pytest.skip(f"this file system has no access control lists: {error.strerror}")
    assert not may_have(tmp_path / "log")
