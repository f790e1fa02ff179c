"""Files as bodies of WSGI responses: `wsgi.file_wrapper` (PEP 3333), and what is sent of them."""

from __future__ import annotations

import os
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
    """`wsgi.file_wrapper`: an iterator over a file, sent by sendfile where that is possible."""

    def __init__(self, filelike: Any, block_size: int = 65536) -> None:
        self.filelike = filelike
        self.block_size = block_size
        if hasattr(filelike, "close"):
            self.close = filelike.close

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        data: bytes = self.filelike.read(self.block_size)
        if not data:
            raise StopIteration
        return data


def bounded(wrapper: FileWrapper, headers: Any) -> Iterator[bytes]:
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
