"""The directory that the server works in, by the name that people know it by.

Releases are often deployed as directories with a link `current` to one of them: the link is
switched, and a reload is to serve what it names now. The kernel knows a process's directory as the
directory itself, whatever link led there, so what `getcwd` says stays the old release for as long
as the process lives. A shell keeps the way it came in $PWD.
"""

from __future__ import annotations

import os
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping


def started_in(environ: Mapping[str, str]) -> Path:
    """The current directory: $PWD where that is a way to it, else what the kernel says.

    The variable may be anything: another directory's, since a program was started in `cwd` by its
    parent, or a relative path. POSIX (`pwd -L`) allows neither `.` nor `..` in it.

    Raises FileNotFoundError where the current directory has been removed.
    """
    kernels = Path.cwd()
    shells = environ.get("PWD", "")
    if not os.path.isabs(shells) or {".", ".."}.intersection(shells.split("/")):
        return kernels
    return Path(shells) if _is_same(shells, kernels) else kernels


def without_dots(path: Path) -> Path:
    """An absolute path without `..`, its links kept, unless a `..` goes back over one of them."""
    plain = Path(os.path.normpath(path))
    return plain if _is_same(plain, path) else path.resolve()


def _is_same(one: str | Path, other: Path) -> bool:
    try:
        return os.path.samefile(one, other)
    except (OSError, ValueError):  # no such directory, or no path: it has a NUL
        return False


@contextmanager
def working_in(directory: str) -> Iterator[None]:
    """Be in a directory for a moment, and then where one was, though that may be removed by now.

    Raises OSError.
    """
    before = os.open(".", getattr(os, "O_PATH", os.O_RDONLY) | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.chdir(directory)
        yield
    finally:
        os.fchdir(before)
        os.close(before)
