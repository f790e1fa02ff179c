"""Opening files by paths that other users may have a hand in.

Root's arbiter opens logs by their paths, again and again, and gives them to the user that its
workers become. If that user can write the log's directory, he can put a symbolic link in the log's
place: root would then follow it, and hand him any file of the system (CVE-2016-1247 was this, in
nginx's packages). So a path is walked here step by step, and each link is judged by who can have
put it there (`_may_follow`). A file changes hands only if the user who is to get it can't have
chosen it (`Opened.may_be_given_to`).
"""

from __future__ import annotations

import contextlib
import errno
import os
import pwd
import stat
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator

# As Linux has it (path_resolution(7)).
_MOST_LINKS = 40
# O_PATH: a directory that may be searched need not be readable.
_DIRECTORY = getattr(os, "O_PATH", os.O_RDONLY) | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
# O_NONBLOCK: opening a FIFO that nobody reads fails with ENXIO, in place of waiting for a reader.
_APPEND = os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC | os.O_NOCTTY | os.O_NONBLOCK
_LINK_TEXT = "it leads over a symbolic link in a directory that other users can write"
_HARD_LINK_TEXT = "it has another name, and lies in a directory that other users can write"
_FIFO_TEXT = "it is a FIFO that no process reads"


class Opened(NamedTuple):
    """A file that was opened to append to it.

    fd         its descriptor; non-blocking if it is a FIFO or a terminal
    created    it is new
    kept       nobody but root and this process's user can have put its directory where it lies
    directory  the status of that directory
    """

    fd: int
    created: bool
    kept: bool
    directory: os.stat_result

    def may_be_given_to(self, uid: int, gid: int) -> bool:
        """Whether this user (-1: nobody), with this group, can't have chosen the file.

        Only then may the file change hands. That holds for a new file, and where nobody else can
        write. It also holds in a directory of root's that a group can write, such as /var/log on
        Ubuntu, for a file of root's with one name, if the user is not in that group.
        """
        if self.created or (self.kept and is_private(self.directory)):
            return True
        if (
            not self.kept
            or self.directory.st_mode & 0o002
            or self.directory.st_uid not in _own_ids()
        ):
            return False
        status = os.fstat(self.fd)
        if status.st_uid not in _own_ids() or status.st_nlink > 1:
            return False
        return self.directory.st_gid not in (gid, *_groups_of(uid))


class _Place(NamedTuple):
    """A directory (open), a name in it that is no symbolic link, and what may happen there.

    status     the directory's
    kept       nobody but root and we can have put any part of the way where it is
    is_magic   the name is one of /proc/PID/fd's, which only the kernel can follow
    """

    directory: int
    name: str
    status: os.stat_result
    kept: bool
    is_magic: bool = False


def open_to_append(path: str) -> Opened:
    """Open a file for appending; made with mode 0644 less the umask if it is not there.

    Raises OSError, with ELOOP or EMLINK where another user could have chosen the file, and ENXIO
    for a FIFO without a reader.
    """
    with _naming(path):
        place = _walk(path)
        try:
            return _open(place)
        finally:
            os.close(place.directory)


def check_appendable(path: str) -> None:
    """Raise the OSError that `open_to_append` would raise; no file is left behind or changed."""
    with _naming(path):
        place = _walk(path)
        try:
            missing = not _exists(place)
            os.close(_open(place).fd)
            if missing:
                os.unlink(place.name, dir_fd=place.directory)
        finally:
            os.close(place.directory)


def open_parent(path: str) -> tuple[int, str]:
    """The directory of a path, opened as a place to work in (`dir_fd`), and the path's last name.

    That name may be a link, and is not looked at. Raises OSError, with ELOOP where another user
    could have chosen the directory.
    """
    with _naming(path):
        place = _walk(path, follows_last=False)
        return place.directory, place.name


def is_private(status: os.stat_result) -> bool:
    """Whether only root and this process's user can change what is in a directory."""
    return status.st_uid in _own_ids() and not status.st_mode & 0o022


def _own_ids() -> tuple[int, int]:
    """The users that this process has to trust: root and its own."""
    return 0, os.geteuid()


def _groups_of(uid: int) -> list[int]:
    try:
        account = pwd.getpwuid(uid)
    except KeyError:
        return []
    return os.getgrouplist(account.pw_name, account.pw_gid)


def _may_follow(directory: os.stat_result, link: os.stat_result) -> bool:
    """Whether a symbolic link in a directory may be followed.

    In one that only root and we can write: always, since the link is theirs or ours. In one of
    root's or ours that a group can write, too (/var/log on Ubuntu): a link of root's or ours, which
    others can only rename. In one that everybody can write, such as /tmp: never.

    Root follows no link in another user's directory: that user could choose any file of the system.
    Others follow one of that directory's owner, as in an application's directory that a deploying
    user keeps: they can lose only what is theirs, and own no file that they could give away.
    """
    if is_private(directory):
        return True
    if directory.st_mode & 0o002:
        return False
    if directory.st_uid in _own_ids():
        return link.st_uid in _own_ids()
    return os.geteuid() != 0 and link.st_uid == directory.st_uid


def _keeps_entry(directory: os.stat_result, entry: os.stat_result) -> bool:
    """Whether nobody but root and we can have put this entry into a directory.

    In a sticky one (/tmp) others can't rename or remove what is ours.
    """
    if is_private(directory):
        return True
    owned = directory.st_uid in _own_ids() and entry.st_uid in _own_ids()
    return owned and bool(directory.st_mode & stat.S_ISVTX)


@contextlib.contextmanager
def _naming(path: str) -> Iterator[None]:
    """Errors name the whole path, not the step at which they came up."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror, path) from error


def _walk(path: str, *, follows_last: bool = True) -> _Place:
    """Follow a path to its last name, link by link."""
    names = os.path.abspath(path).split("/")[1:]
    procfs = _device("/proc")
    links = 0
    kept = True
    directory = os.open("/", _DIRECTORY)
    try:
        while True:
            # A link to "/" leaves no name: the directory itself is meant.
            name = names.pop(0) if names else "."
            around = os.fstat(directory)
            place = _Place(directory, name, around, kept)
            if not names and not follows_last:
                return place
            try:
                status = os.stat(name, dir_fd=directory, follow_symlinks=False)
            except FileNotFoundError:
                if names:
                    raise
                return place
            if stat.S_ISLNK(status.st_mode):
                links += 1
                if links > _MOST_LINKS or not _may_follow(around, status):
                    raise OSError(errno.ELOOP, _LINK_TEXT)
                if status.st_dev == procfs and not names:
                    return place._replace(is_magic=True)
                target = os.readlink(name, dir_fd=directory)
                names = [part for part in target.split("/") if part] + names
                if target.startswith("/"):
                    directory = _step(directory, "/")
            elif names:
                directory = _step(directory, name)
            else:
                return place
            kept = kept and _keeps_entry(around, status)
    except BaseException:
        os.close(directory)
        raise


def _step(directory: int, name: str) -> int:
    """The directory of that name, in place of the one that it is in."""
    inner = os.open(name, _DIRECTORY, dir_fd=directory)
    os.close(directory)
    return inner


def _open(place: _Place) -> Opened:
    follow = 0 if place.is_magic else os.O_NOFOLLOW
    created = False
    while True:
        try:
            fd = os.open(place.name, _APPEND | follow, dir_fd=place.directory)
        except FileNotFoundError:
            flags = _APPEND | os.O_CREAT | os.O_EXCL
            try:
                fd = os.open(place.name, flags, 0o644, dir_fd=place.directory)
            except FileExistsError:
                continue  # somebody was faster
            created = True
        except OSError as error:
            if error.errno == errno.ENXIO and _is_fifo(place):
                raise OSError(errno.ENXIO, _FIFO_TEXT) from error
            raise
        break
    if not created and not is_private(place.status):
        status = os.fstat(fd)
        if stat.S_ISREG(status.st_mode) and status.st_nlink > 1:
            os.close(fd)
            raise OSError(errno.EMLINK, _HARD_LINK_TEXT)
    # With an access control list more users than the group's may write the directory.
    kept = place.kept and not _has_acl(place.directory)
    return Opened(fd, created, kept, place.status)


def _has_acl(directory: int) -> bool:
    try:
        return "system.posix_acl_access" in os.listxattr(f"/proc/self/fd/{directory}")
    except OSError:
        return False  # its file system knows none


def _exists(place: _Place) -> bool:
    try:
        os.stat(place.name, dir_fd=place.directory, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return True


def _is_fifo(place: _Place) -> bool:
    try:
        return stat.S_ISFIFO(os.stat(place.name, dir_fd=place.directory).st_mode)
    except OSError:
        return False


def _device(path: str) -> int:
    try:
        return os.stat(path).st_dev
    except OSError:
        return -1
