"""`--reload`: a child process that watches source files and reports each change.

It is a separate process because its library (watchfiles) starts threads, and a process with threads
must not fork workers. For each change it writes one line of JSON, a list of paths, to a pipe. The
arbiter reads the pipe in its loop.
"""

from __future__ import annotations

import contextlib
import fnmatch
import glob
import importlib.util
import json
import logging
import os
import time
from functools import partial
from pathlib import Path, PurePath
from typing import TYPE_CHECKING

from servo.arbiter import process_info
from servo.arbiter.core import events
from servo.arbiter.processes import spawn
from servo.arbiter.processes.pipe_child import PipeChild
from servo.settings.sections.application import RELOAD_EXCLUDE, RELOAD_INCLUDE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from servo.arbiter.processes.child_table import ChildTable
    from servo.settings.sources import Settings

log = logging.getLogger("servo.error")

POLL_S = 0.5
_WILD = frozenset("*?[")
# Directories that are never watched, whatever the patterns say: they are big, and running the app
# changes them.
_SKIPPED = frozenset({"__pycache__", "node_modules", "site-packages", ".git", ".venv", "venv"})


class Watcher(PipeChild):
    """The arbiter's side of the process that watches source files.

    settings    has the files to watch (`reload_dirs`, `reload_include`, …)
    table       forks the process
    on_change   takes a FileChanged event for each change

    Raises OSError if the process can't be forked.
    """

    def __init__(
        self, settings: Settings, table: ChildTable, on_change: Callable[[events.FileChanged], None]
    ) -> None:
        self._on_change = on_change
        self._buffer = b""
        files = Files(settings, Path(settings.chdir))
        super().__init__(table, partial(_watch, files, os.getpid()))

    def on_ready(self, _mask: int) -> None:
        """Read the reported changes."""
        try:
            data = os.read(self._fd, 65536)
        except BlockingIOError:
            return
        if not data:
            self._table.unwatch(self)  # `on_exit` follows
            return
        *lines, self._buffer = (self._buffer + data).split(b"\n")
        for line in lines:
            self._on_change(events.FileChanged(tuple(json.loads(line))))

    def on_exit(self, _code: int) -> None:
        """Log that the process has ended unexpectedly. It is not started again."""
        self._forget()
        log.warning("The watcher of source files has ended; changes are not noticed any more")


class Files:
    """Decides which files are watched: the matching ones in the directories, and the extra files.

    Patterns follow the standard library's `fnmatch`, one path component at a time, and `**` matches
    any number of directories. A pattern without a slash matches a file name in any directory. A
    pattern with a slash is a path. It may be relative to a watched directory, to a directory below
    that, or to `here`. As in uvicorn:

    * given patterns are added to the default ones;
    * an exclude that matches a directory excludes all files in it;
    * an include without wildcards, such as `.env`, overrides every exclude.

    settings   has `reload_dirs`, `reload_include`, `reload_exclude` and `reload_extra_files`
    here       the path of the server's working directory. Its symbolic links are resolved again at
               each reload
    """

    def __init__(self, settings: Settings, here: Path) -> None:
        self.here = here
        self.directories = [Path(here, name) for name in settings.reload_dirs] or [here]
        self._extra = [str(Path(here, name)) for name in settings.reload_extra_files]
        given, excluded = settings.reload_include, settings.reload_exclude
        self._include = [_Glob(text, here) for text in dict.fromkeys([*RELOAD_INCLUDE, *given])]
        self._exclude = [_Glob(text, here) for text in excluded if text not in RELOAD_EXCLUDE]
        self._default_exclude = [text for text in RELOAD_EXCLUDE if text not in given]
        literal = {pattern.text for pattern in self._include if pattern.is_literal}
        self._certain = literal.difference(excluded)
        # Patterns for places outside the directories.
        self._outside = {
            pattern: pattern.start
            for pattern in self._include
            if pattern.start is not None and not self._is_below(pattern.start)
        }
        for text in given:
            # A pattern that names a directory only adds the directory to the watched ones. The
            # other patterns decide which of its files count.
            for found in map(Path, glob.glob(str(here / text))):
                if found.is_dir() and not self._is_below(found):
                    self.directories.append(Path(os.path.normpath(found)))

    @property
    def places(self) -> list[Path]:
        """The directories to watch, with all their subdirectories."""
        return list(dict.fromkeys([*self.directories, *self._outside.values()]))

    @property
    def roots(self) -> list[Path]:
        """The existing directories among `places`, and the directories of the extra files."""
        # Watch the directory, not the file: many editors replace a file instead of writing to it.
        roots = dict.fromkeys([*self.places, *(path.parent for path in self.extra)])
        return [root for root in roots if root.is_dir()]

    @property
    def extra(self) -> list[Path]:
        """The existing extra files."""
        return [Path(found) for pattern in self._extra for found in glob.glob(pattern)]

    def targets(self) -> dict[Path, tuple[int, int]]:
        """The device and inode of each root. They change when a link gets a new target."""
        found = {}
        for root in self.roots:
            with contextlib.suppress(FileNotFoundError):  # the root was just removed
                status = root.stat()
                found[root] = status.st_dev, status.st_ino
        return found

    def counts(self, path: Path) -> bool:
        """Whether a change of this file should reload the server."""
        if any(fnmatch.fnmatch(str(path), pattern) for pattern in self._extra):
            return True
        if any(
            path.is_relative_to(directory) and self._counts_in(directory, path, self._include)
            for directory in self.directories
        ):
            return True
        return any(
            path.is_relative_to(start) and self._counts_in(start, path, [pattern])
            for pattern, start in self._outside.items()
        )

    def _counts_in(self, directory: Path, path: Path, include: list[_Glob]) -> bool:
        parts = path.relative_to(directory).parts
        if _SKIPPED.intersection(parts):
            return False
        names = self._names(directory, path)
        chosen = [pattern for pattern in include if any(pattern.matches(name) for name, _ in names)]
        if not chosen:
            return False
        if any(pattern.text in self._certain for pattern in chosen):
            return True
        if any(pattern.excludes(name, below) for pattern in self._exclude for name, below in names):
            return False
        return not any(
            fnmatch.fnmatchcase(part, text)
            for text in self._default_exclude
            # A pattern for hidden files, such as `.github/*.yml`, must not be overruled by the
            # default exclude of hidden files.
            if not any(pattern.names(text) for pattern in chosen)
            for part in parts
        )

    def _names(self, directory: Path, path: Path) -> list[tuple[tuple[str, ...], int]]:
        """The paths by which a pattern can match the file, each as a tuple of components.

        With each path comes the number of its first components that name the watched directory.
        """
        names = [(path.parts, len(directory.parts)), (path.relative_to(directory).parts, 0)]
        if path.is_relative_to(self.here):
            above = len(directory.parts) - len(self.here.parts)
            names.append((path.relative_to(self.here).parts, max(above, 0)))
        return names

    def _is_below(self, path: Path) -> bool:
        return any(path.is_relative_to(directory) for directory in self.directories)


class _Glob:
    """One pattern.

    text         the pattern as it was given
    is_literal   whether it has no wildcard
    start        the directory before the first wildcard, relative to `here`; None for a plain file
                 name, which matches in every directory
    """

    def __init__(self, text: str, here: Path) -> None:
        self.text = text
        self.is_literal = not _WILD.intersection(text)
        parts = PurePath(text).parts
        whole = PurePath(os.path.normpath(here / text)).parts
        self._absolute = PurePath(text).is_absolute() or ".." in parts or not parts
        self._parts = whole if self._absolute else ("**", *parts)
        wild = (n for n, part in enumerate(whole) if _WILD.intersection(part))
        start = Path(*whole[: next(wild, -1)])
        self.start = start if self.is_literal or self._absolute or start != here else None

    def matches(self, parts: tuple[str, ...]) -> bool:
        """Whether the pattern matches this path.

        parts  the path's components; those of an absolute path begin with a slash
        """
        if self._absolute != (parts[:1] == ("/",)):
            return False
        return _matches(self._parts, parts)

    def excludes(self, parts: tuple[str, ...], below: int) -> bool:
        """Whether the pattern matches the file or one of its parent directories.

        parts  the components of the file's path
        below  the number of first components that can't match: they name the watched directory
        """
        return any(self.matches(parts[:end]) for end in range(below + 1, len(parts) + 1))

    def names(self, pattern: str) -> bool:
        """Whether another pattern matches one of this pattern's own components."""
        return any(fnmatch.fnmatchcase(part, pattern) for part in self._parts if part != "**")


def _matches(pattern: tuple[str, ...], parts: tuple[str, ...]) -> bool:
    if not pattern:
        return not parts
    first, rest = pattern[0], pattern[1:]
    if first == "**":
        return any(_matches(rest, parts[start:]) for start in range(len(parts) + 1))
    return bool(parts) and fnmatch.fnmatchcase(parts[0], first) and _matches(rest, parts[1:])


def _watch(files: Files, arbiter: int, fd: int) -> int:
    spawn.die_with(arbiter)
    process_info.set_title("servo: watcher")
    changes = _by_watchfiles if importlib.util.find_spec("watchfiles") else _by_polling
    for paths in changes(files):
        shown = [os.path.relpath(path, files.here) for path in sorted(paths)]
        try:
            os.write(fd, json.dumps(shown[:5]).encode() + b"\n")
        except BrokenPipeError:
            break
    return 0


def _by_watchfiles(files: Files) -> Iterator[set[Path]]:
    """Yield the files of each change, and each root that is a link and gets a new target."""
    # A file may change before the watch begins: the import takes a while.
    before: set[tuple[Path, int]] | None = {*_stamps(files)}

    import watchfiles

    targets = files.targets()
    while True:
        roots = files.roots
        if not roots:
            time.sleep(POLL_S)  # a deployment is just replacing the link to the release
        else:
            # inotify keeps watching the old target of a link. So compare the targets after each
            # timeout.
            for changes in watchfiles.watch(
                *roots,
                watch_filter=None,
                raise_interrupt=False,
                rust_timeout=int(POLL_S * 1000),
                yield_on_timeout=True,
            ):
                counted = {Path(path) for _, path in changes if files.counts(Path(path))}
                if before is not None:
                    counted |= {path for path, _ in before ^ {*_stamps(files)}}
                    before = None
                if counted:
                    yield counted
                if files.targets() != targets:
                    break
            else:
                return  # by Ctrl-C
        now = files.targets()
        switched = {path for path, _ in targets.items() ^ now.items()}
        targets = now
        if switched:
            yield switched


def _by_polling(files: Files) -> Iterator[set[Path]]:
    log.info("Source files are checked every %g s, because watchfiles is not installed", POLL_S)
    before = {*_stamps(files), *files.targets().items()}
    while True:
        time.sleep(POLL_S)
        now = {*_stamps(files), *files.targets().items()}
        changed = {path for path, _ in before ^ now}
        before = now
        if changed:
            yield changed


def _stamps(files: Files) -> Iterator[tuple[Path, int]]:
    """Yield every watched file, with the time of its last change."""
    for place in files.places:
        for directory, names, found in os.walk(place):
            names[:] = [name for name in names if name not in _SKIPPED]
            for name in found:
                path = Path(directory, name)
                if files.counts(path):
                    yield from _stamp(path)
    for path in files.extra:
        yield from _stamp(path)


def _stamp(path: Path) -> Iterator[tuple[Path, int]]:
    try:
        yield path, path.stat().st_mtime_ns
    except OSError:
        return  # it was just removed, and its absence is a change
