"""Files as bodies of WSGI responses: `wsgi.file_wrapper` (PEP 3333), and what is sent of them."""

from __future__ import annotations

import io
import os
import stat
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator


class FileRegion:
    """A part of a file that the driver sends (by sendfile) after the head, and then closes.

    `fd` is a descriptor of our own, so that the application may close its file at any time.
    """

    __slots__ = ("count", "fd", "head", "offset")

    def __init__(self, head: bytes, fd: int, offset: int, count: int) -> None:
        self.head = head
        self.fd = fd
        self.offset = offset
        self.count = count

    def close(self) -> None:
        """Close the descriptor."""
        os.close(self.fd)


class FileWrapper:
    """`wsgi.file_wrapper`: an iterator over a file, sent by sendfile where that is possible.

    It seeks as its file does, so that a framework that answers a range need not read its way there.
    """

    def __init__(self, filelike: Any, block_size: int = 65536) -> None:
        self.filelike = filelike
        self.block_size = block_size
        if hasattr(filelike, "close"):
            self.close = filelike.close

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        # Bytes, if the application is right. The responder says so if they are not.
        data = self.filelike.read(self.block_size)
        if not data:
            raise StopIteration
        return data

    def seekable(self) -> bool:
        """Whether the file can seek."""
        if hasattr(self.filelike, "seekable"):
            return bool(self.filelike.seekable())
        return hasattr(self.filelike, "seek")

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> Any:
        """As the file's."""
        return self.filelike.seek(offset, whence)

    def tell(self) -> Any:
        """As the file's."""
        return self.filelike.tell()


def plain_file(filelike: Any) -> tuple[int, int, int] | None:
    """Descriptor, position and size of a file whose `read` gives its descriptor's very bytes.

    None for anything else: what decompresses (gzip), decodes or counts on its `read` being called
    has a descriptor, too. So this goes by the types of the objects, and not by what they offer.
    """
    if (
        type(filelike).__name__ == "_TemporaryFileWrapper"
        and type(filelike).__module__ == "tempfile"
    ):
        filelike = filelike.file
    else:
        # Objects that stand for a file (Django's, werkzeug's) hand out its own method.
        filelike = getattr(getattr(filelike, "read", None), "__self__", None)
    kind = type(filelike)
    buffered = kind is io.BufferedReader or kind is io.BufferedRandom
    if not (kind is io.FileIO or (buffered and type(filelike.raw) is io.FileIO)):
        return None
    try:
        if kind is io.BufferedRandom:
            filelike.flush()
        fd = filelike.fileno()
        offset = filelike.tell()
        facts = os.fstat(fd)
    except (OSError, ValueError):  # closed, or it can't seek
        return None
    # Files of /proc have no size, and a content all the same.
    if not stat.S_ISREG(facts.st_mode) or not facts.st_size or offset > facts.st_size:
        return None
    return fd, offset, facts.st_size


def bounded(wrapper: FileWrapper, headers: Any) -> Iterator[Any]:
    """A file up to its end or to Content-Length, whichever comes first (PEP 3333)."""
    left = None
    for name, value in headers:
        if name.lower() == "content-length" and value.isdecimal():
            left = int(value)
    for block in wrapper:
        if left is None:
            yield block
            continue
        yield block[:left]
        left -= min(len(block), left)
        if not left:
            return
