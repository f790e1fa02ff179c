"""Opens files safely in directories that other users can change.

An arbiter that runs as root opens log files by their paths, and gives them to the workers' user. If
that user can write to the log's directory, they can replace the log with a symbolic link to any
file of the system. An ordinary open would follow the link, and root would then give that file away
(CVE-2016-1247 was this bug in nginx's packages).

So this module walks a path one name at a time, through descriptors of directories (`openat`). At
each symbolic link, `_may_follow` looks at the owner and the directory of the link, to decide
whether another user may have made it. And a file is given to a new owner only if that user can't
have chosen the file (`Opened.may_be_given_to`).
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

# Linux's own limit (path_resolution(7)).
_MAX_LINKS = 40
# O_PATH works for a directory that may be searched but not read.
_DIRECTORY = getattr(os, "O_PATH", os.O_RDONLY) | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
# With O_NONBLOCK, opening a FIFO without a reader fails with ENXIO instead of waiting for one.
_APPEND = os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC | os.O_NOCTTY | os.O_NONBLOCK
_LINK_TEXT = "it leads over a symbolic link in a directory that other users can write to"
_HARD_LINK_TEXT = "it is a hard link in a directory that other users can write to"
_FIFO_TEXT = "it is a FIFO that no process reads"


class Opened(NamedTuple):
    """A file that was opened for appending.

    fd         its descriptor; non-blocking if it is a FIFO or a terminal
    created    whether the file is new
    trusted    whether only root and this process's user can have chosen its directory
    directory  the status of that directory
    """

    fd: int
    created: bool
    trusted: bool
    directory: os.stat_result

    def may_be_given_to(self, uid: int, gid: int) -> bool:
        """Whether a user may become the owner of the file: only if they can't have chosen it.

        uid  the new owner; -1 to keep the owner
        gid  the new group; -1 to keep the group

        The user can't have chosen the file if it is new, or if only root and we can write to its
        directory. In a directory of root that a group can write to (/var/log on Ubuntu), the user
        can't have chosen it if it belongs to root and has no second name, and the user is not in
        that group.
        """
        if self.created or (self.trusted and is_private(self.directory)):
            return True
        if (
            not self.trusted
            or self.directory.st_mode & 0o002
            or self.directory.st_uid not in _own_ids()
        ):
            return False
        status = os.fstat(self.fd)
        if status.st_uid not in _own_ids() or status.st_nlink > 1:
            return False
        return self.directory.st_gid not in (gid, *_groups_of(uid))


class _Place(NamedTuple):
    """The end of a walk: an open directory, and a name in it that is not a symbolic link.

    directory  the directory's descriptor
    name       the name in the directory
    status     the directory's status
    trusted    whether only root and we can have chosen any part of the path
    is_magic   whether the name is a link in /proc/PID/fd, which only the kernel can follow
    """

    directory: int
    name: str
    status: os.stat_result
    trusted: bool
    is_magic: bool = False


def open_to_append(path: str) -> Opened:
    """Open a file for appending. A missing file is created, with mode 0644 less the umask.

    Raises OSError: ELOOP or EMLINK if another user may have chosen the file, ENXIO for a FIFO
    without a reader.
    """
    with _naming(path):
        place = _walk(path)
        try:
            return _open(place)
        finally:
            os.close(place.directory)


def check_appendable(path: str) -> None:
    """Raise the OSError that `open_to_append` would raise. Changes and creates no file."""
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
    """Open the directory of a path. Returns its descriptor (a `dir_fd`) and the path's last name.

    Does not follow the last name if it is a link. Raises OSError: ELOOP if another user may have
    chosen the directory.
    """
    with _naming(path):
        place = _walk(path, follows_last=False)
        return place.directory, place.name


def is_private(status: os.stat_result) -> bool:
    """Whether only root and this process's user can write to a directory.

    status  the directory's status
    """
    return status.st_uid in _own_ids() and not status.st_mode & 0o022


def _own_ids() -> tuple[int, int]:
    """The users that this process trusts: root and its own."""
    return 0, os.geteuid()


def _groups_of(uid: int) -> list[int]:
    try:
        account = pwd.getpwuid(uid)
    except KeyError:
        return []
    return os.getgrouplist(account.pw_name, account.pw_gid)


def _may_follow(directory: os.stat_result, link: os.stat_result) -> bool:
    """Whether to follow a symbolic link.

    directory  the status of the link's directory
    link       the status of the link itself

    The answer depends on who can write to the directory:

    only root and we        always follow: the link belongs to root or us
    also a group            follow a link that belongs to root or us (/var/log on Ubuntu): the group
                            can only rename it
    everybody               never follow (/tmp)

    In a directory of another user, root never follows a link: that user could choose any file of
    the system. A process without root follows a link of the directory's owner, because an
    application's directory may belong to the user who deploys it. It risks only its own files, and
    can't change a file's owner.
    """
    if is_private(directory):
        return True
    if directory.st_mode & 0o002:
        return False
    if directory.st_uid in _own_ids():
        return link.st_uid in _own_ids()
    return os.geteuid() != 0 and link.st_uid == directory.st_uid


def _is_trusted_entry(directory: os.stat_result, entry: os.stat_result) -> bool:
    """Whether only root and we can have put this entry into the directory.

    In a sticky directory (/tmp) others can't rename or remove our entries.
    """
    if is_private(directory):
        return True
    owned = directory.st_uid in _own_ids() and entry.st_uid in _own_ids()
    return owned and bool(directory.st_mode & stat.S_ISVTX)


@contextlib.contextmanager
def _naming(path: str) -> Iterator[None]:
    """Make errors name the whole path, not only the name at which they occurred."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror, path) from error


def _walk(path: str, *, follows_last: bool = True) -> _Place:
    """Follow a path to its last name, one name and one link at a time."""
    names = os.path.abspath(path).split("/")[1:]
    procfs = _device("/proc")
    links = 0
    trusted = True
    directory = os.open("/", _DIRECTORY)
    try:
        while True:
            # A link to "/" leaves no name. Then use the directory itself.
            name = names.pop(0) if names else "."
            around = os.fstat(directory)
            place = _Place(directory, name, around, trusted)
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
                if links > _MAX_LINKS or not _may_follow(around, status):
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
            trusted = trusted and _is_trusted_entry(around, status)
    except BaseException:
        os.close(directory)
        raise


def _step(directory: int, name: str) -> int:
    """Open a directory inside another one, and close the outer one."""
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
                continue  # another process has just created it
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
    # An access control list may let users outside the group write to the directory.
    trusted = place.trusted and not _has_acl(place.directory)
    return Opened(fd, created, trusted, place.status)


def _has_acl(directory: int) -> bool:
    try:
        return "system.posix_acl_access" in os.listxattr(f"/proc/self/fd/{directory}")
    except OSError:
        return False  # the file system has no access control lists


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
