"""The server's working directory, as the path that the user chose, with its symbolic links.

Releases are often deployed as directories, with a link `current` to one of them. A deployment
switches the link, and a reload must serve the release to which it points now. But the kernel's path
of a working directory (`getcwd`) contains no links, so it names the old release for as long as the
process lives. $PWD, which shells set, has the path with its links.
"""

from __future__ import annotations

import os
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping


def started_in(environ: Mapping[str, str]) -> Path:
    """The current directory: $PWD if it names this directory, else the kernel's path.

    $PWD must be checked: a parent that isn't a shell may start a program in another directory
    without setting $PWD, and $PWD may be relative. POSIX (`pwd -L`) allows neither `.` nor `..` in
    it.

    environ   the environment at the start

    Raises FileNotFoundError if the current directory has been removed.
    """
    physical = Path.cwd()
    logical = environ.get("PWD", "")
    if not os.path.isabs(logical) or {".", ".."}.intersection(logical.split("/")):
        return physical
    return Path(logical) if _is_same(logical, physical) else physical


def without_dots(path: Path) -> Path:
    """Remove `..` from an absolute path.

    Links are kept unless a `..` follows one of them. In that case all links are resolved, because
    removing the link and the `..` from the path could name another directory.

    path   an absolute path
    """
    plain = Path(os.path.normpath(path))
    return plain if _is_same(plain, path) else path.resolve()


def _is_same(one: str | Path, other: Path) -> bool:
    try:
        return os.path.samefile(one, other)
    except (OSError, ValueError):  # ValueError: the path has a NUL
        return False


@contextmanager
def working_in(directory: str) -> Iterator[None]:
    """Change the working directory for the duration of a `with` block.

    Afterwards the process is back in its old directory, even if that has been removed meanwhile.

    directory   the directory to change to

    Raises OSError.
    """
    before = os.open(".", getattr(os, "O_PATH", os.O_RDONLY) | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.chdir(directory)
        yield
    finally:
        os.fchdir(before)
        os.close(before)
