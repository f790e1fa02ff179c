"""Opening files by paths that other users may have a hand in.

Root's arbiter opens logs by their paths, again and again, and gives them to the user that its
workers become. If that user can write the log's directory, he can put a symbolic link in the log's
place: root would then follow it, and hand him any file of the system (CVE-2016-1247 was this, in
nginx's packages). So a path is walked here step by step. A link is followed only in a directory
that nobody but root and we can write; anywhere else it is refused.
"""

from __future__ import annotations

import contextlib
import errno
import os
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

    fd       its descriptor; non-blocking if it is a FIFO or a terminal
    is_ours  whether its owner may be changed: we have just made it, or nobody else could have put
             it where it lies
    """

    fd: int
    is_ours: bool


class _Place(NamedTuple):
    """A directory (open), a name in it that is no symbolic link, and what may happen there.

    is_private  only root and we can write the directory
    is_magic    the name is one of /proc/PID/fd's, which only the kernel can follow
    """

    directory: int
    name: str
    is_private: bool
    is_magic: bool


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


def is_private(status: os.stat_result) -> bool:
    """Whether only root and this process's user can change what is in a directory."""
    return status.st_uid in (0, os.geteuid()) and not status.st_mode & 0o022


@contextlib.contextmanager
def _naming(path: str) -> Iterator[None]:
    """Errors name the whole path, not the step at which they came up."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror, path) from error


def _walk(path: str) -> _Place:
    """Follow a path to its last name, link by link."""
    names = os.path.abspath(path).split("/")[1:]
    procfs = _device("/proc")
    links = 0
    directory = os.open("/", _DIRECTORY)
    try:
        while True:
            name = names.pop(0)
            private = is_private(os.fstat(directory))
            try:
                status = os.stat(name, dir_fd=directory, follow_symlinks=False)
            except FileNotFoundError:
                if names:
                    raise
                return _Place(directory, name, private, False)
            if stat.S_ISLNK(status.st_mode):
                links += 1
                if not private or links > _MOST_LINKS:
                    raise OSError(errno.ELOOP, _LINK_TEXT)
                target = os.readlink(name, dir_fd=directory)
                if status.st_dev == procfs and not names:
                    return _Place(directory, name, private, True)
                names = [part for part in target.split("/") if part] + names
                if target.startswith("/"):
                    directory = _step(directory, "/")
            elif names:
                directory = _step(directory, name)
            else:
                return _Place(directory, name, private, False)
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
    if not place.is_private and not created:
        status = os.fstat(fd)
        if stat.S_ISREG(status.st_mode) and status.st_nlink > 1:
            os.close(fd)
            raise OSError(errno.EMLINK, _HARD_LINK_TEXT)
    return Opened(fd, created or place.is_private)


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
