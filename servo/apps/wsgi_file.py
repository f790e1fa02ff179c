"""Files as bodies of WSGI responses: `wsgi.file_wrapper` (PEP 3333), and sendfile."""

from __future__ import annotations

import io
import os
import stat
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator


class FileRegion:
    """A response with a part of a file as its body. The driver sends the head, then the part.

    head    bytes to send first
    fd      our own duplicate of the descriptor: the application may close its file at any time
    offset  where the part begins, in bytes
    count   bytes of the part
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
    """`wsgi.file_wrapper`: an iterator over a file. If possible, sendfile sends the file.

    filelike    an object with a method `read`
    block_size  bytes to read at a time

    It can seek if the file can. So for a range request, a framework need not read up to the start
    of the range.
    """

    def __init__(self, filelike: Any, block_size: int = 65536) -> None:
        self.filelike = filelike
        self.block_size = block_size
        if hasattr(filelike, "close"):
            self.close = filelike.close

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        # The responder will refuse data that is not bytes.
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
        """Seek in the file; the arguments are as in `io.IOBase.seek`."""
        return self.filelike.seek(offset, whence)

    def tell(self) -> Any:
        """The position in the file."""
        return self.filelike.tell()


def plain_file(filelike: Any) -> tuple[int, int, int] | None:
    """The descriptor, position and size of a plain file; None if its content needs `read`.

    filelike  the object that the application has wrapped

    It is not enough that the object has a descriptor: objects whose `read` decompresses, decodes or
    counts also have one. So this checks the types of the objects, not their attributes.
    """
    if (
        type(filelike).__name__ == "_TemporaryFileWrapper"
        and type(filelike).__module__ == "tempfile"
    ):
        filelike = filelike.file
    else:
        # Wrappers around a file (Django's, werkzeug's) have the file's own `read` method.
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
    except (OSError, ValueError):  # the file is closed, or can't seek
        return None
    # Files in /proc have content, but their size is 0.
    if not stat.S_ISREG(facts.st_mode) or not facts.st_size or offset > facts.st_size:
        return None
    return fd, offset, facts.st_size


def bounded(wrapper: FileWrapper, headers: Any) -> Iterator[Any]:
    """The blocks of a file, up to its end or to Content-Length, whichever comes first (PEP 3333).

    wrapper  the wrapped file
    headers  the response's headers, pairs of str
    """
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
