"""The files that TLS settings name, read once and then used from memory.

A file may be replaced at any moment, even between the check of a certificate and its use. So each
file is read once, and OpenSSL gets the bytes that were checked. The arbiter can also send the bytes
to workers, which may have no right to read the files.
"""

from __future__ import annotations

import hashlib
import os
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

from servo.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

# The device, inode, size, mtime and ctime of a file; or an errno. The ctime shows a new owner or
# mode, which may have made the file readable.
Stamp = tuple[int, ...]


class CertificateFiles:
    """Files of one configuration, by path.

    contents  the known bytes of files, by path; other files are read from the disk

    The attribute `contents` has the bytes of each file that was used, and `stamps` the state of
    each file just before it was read.
    """

    def __init__(self, contents: dict[str, bytes] | None = None) -> None:
        self.contents: dict[str, bytes] = contents or {}
        self.stamps: dict[str, Stamp] = {}

    def read(self, path: str, source: str) -> bytes:
        """Return a file's bytes.

        path    the absolute path
        source  the setting that names the file, for messages

        Raises ConfigError if it can't be read.
        """
        if path not in self.contents:
            self.stamps[path] = stamp(path)
            try:
                with open(path, "rb") as file:
                    self.contents[path] = file.read()
            except OSError as error:
                raise ConfigError(f"{source}: can't read {path}: {error.strerror}") from error
        return self.contents[path]

    @contextmanager
    def names_for_openssl(self, *paths: str) -> Iterator[list[str]]:
        """Names of temporary files with the same bytes, for OpenSSL, which reads only files.

        paths  the paths of files that were read

        If the system has no nameless files in memory, the names are the paths themselves.
        """
        with ExitStack() as opened:
            yield [_name(opened, path, self.contents[path]) for path in paths]

    def digest(self) -> bytes:
        """A hash over the paths and bytes of all files that were read."""
        digest = hashlib.sha256()
        for path, data in sorted(self.contents.items()):
            digest.update(b"%d %d " % (len(path.encode()), len(data)))
            digest.update(path.encode() + data)
        return digest.digest()


def stamp(path: str) -> Stamp:
    """Return a file's state without reading it. Follows symbolic links."""
    try:
        found = os.stat(path)
    except OSError as error:
        return (error.errno or 0,)
    return (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)


def stamps(paths: Iterable[str]) -> dict[str, Stamp]:
    """The state of each of these files."""
    return {path: stamp(path) for path in paths}


def _name(opened: ExitStack, path: str, data: bytes) -> str:
    try:
        fd = os.memfd_create("servo-certificate", os.MFD_CLOEXEC)
    except (AttributeError, OSError):
        return path
    opened.callback(os.close, fd)
    name = f"/proc/self/fd/{fd}"
    if not os.path.exists(name):
        return path
    with open(fd, "wb", closefd=False) as file:
        file.write(data)
    return name
