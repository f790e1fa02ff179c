"""`--reload`: a child process that watches source files and tells of each change.

A child, since watchfiles starts threads, and a process with threads must not fork workers.
"""

from __future__ import annotations

import contextlib
import fnmatch
import glob
import importlib.util
import json
import logging
import os
import signal
import time
from pathlib import Path, PurePath
from typing import TYPE_CHECKING

from servo.arbiter import process_info
from servo.arbiter.processes import spawn
from servo.settings.sections.application import RELOAD_EXCLUDE, RELOAD_INCLUDE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from servo.settings.sources import Settings

log = logging.getLogger("servo.error")

POLL_S = 0.5
_WILD = frozenset("*?[")
# Never worth watching, however the patterns are set: big, and changed by running the app.
_SKIPPED = frozenset({"__pycache__", "node_modules", "site-packages", ".git", ".venv", "venv"})


class Watcher:
    """The watching child, seen from the arbiter."""

    def __init__(self, settings: Settings, close: Callable[[], None]) -> None:
        files = Files(settings, Path(settings.chdir))
        arbiter = os.getpid()
        reader, writer = os.pipe2(os.O_CLOEXEC)
        os.set_blocking(reader, False)
        self._fd = reader
        self._buffer = b""

        def close_all() -> None:
            close()
            os.close(reader)

        try:
            self.pid = spawn.fork(lambda: _watch(files, writer, arbiter), close_all)
        finally:
            os.close(writer)

    def fileno(self) -> int:
        """For a selector."""
        return self._fd

    def read(self) -> list[tuple[str, ...]] | None:
        """The paths of each change since the last call; None when the child is gone."""
        try:
            data = os.read(self._fd, 65536)
        except BlockingIOError:
            return []
        if not data:
            return None
        *lines, self._buffer = (self._buffer + data).split(b"\n")
        return [tuple(json.loads(line)) for line in lines]

    def close(self) -> None:
        """End the child, unless it was reaped (`pid` is 0 then), and close the pipe."""
        if self.pid:
            process_info.send_signal(self.pid, signal.SIGKILL)
        os.close(self._fd)

    def close_in_child(self) -> None:
        """Close the pipe only."""
        os.close(self._fd)


class Files:
    """Which files count: those below the directories whose names match, and the extra ones.

    The patterns are those of the standard library's `fnmatch`, component by component, and `**` is
    any number of directories. One without a slash is a name; one with is a path, relative to a
    watched directory or to `here`, or to a directory below. As in uvicorn, patterns are added to
    the defaults, whatever is in a directory that an exclude matches is excluded, and an include of
    just one name, `.env`, goes before any exclude.

    here   the directory that the server works in, by the name that a reload will follow
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
        # What the patterns name outside of the directories.
        self._outside = {
            pattern: pattern.start
            for pattern in self._include
            if pattern.start is not None and not self._is_below(pattern.start)
        }
        for text in given:
            # A directory is watched; which of its files count, the other patterns say.
            for found in map(Path, glob.glob(str(here / text))):
                if found.is_dir() and not self._is_below(found):
                    self.directories.append(Path(os.path.normpath(found)))

    @property
    def places(self) -> list[Path]:
        """The directories to look into, with all below them."""
        return list(dict.fromkeys([*self.directories, *self._outside.values()]))

    @property
    def roots(self) -> list[Path]:
        """Those, and the directories of the extra files, that there are now."""
        # Directories, as editors replace a file rather than write to it.
        roots = dict.fromkeys([*self.places, *(path.parent for path in self.extra)])
        return [root for root in roots if root.is_dir()]

    @property
    def extra(self) -> list[Path]:
        """The extra files that there are now."""
        return [Path(found) for pattern in self._extra for found in glob.glob(pattern)]

    def targets(self) -> dict[Path, tuple[int, int]]:
        """Which directory each of those names leads to: it may be a link, or be made anew."""
        found = {}
        for root in self.roots:
            with contextlib.suppress(FileNotFoundError):  # removed meanwhile
                status = root.stat()
                found[root] = status.st_dev, status.st_ino
        return found

    def counts(self, path: Path) -> bool:
        """Whether a change of this file is one of the app's."""
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
            # One that names hidden files, `.github/*.yml`, would match nothing otherwise.
            if not any(pattern.names(text) for pattern in chosen)
            for part in parts
        )

    def _names(self, directory: Path, path: Path) -> list[tuple[tuple[str, ...], int]]:
        """What a pattern may call the file, and how much of that is the directory's own name."""
        names = [(path.parts, len(directory.parts)), (path.relative_to(directory).parts, 0)]
        if path.is_relative_to(self.here):
            above = len(directory.parts) - len(self.here.parts)
            names.append((path.relative_to(self.here).parts, max(above, 0)))
        return names

    def _is_below(self, path: Path) -> bool:
        return any(path.is_relative_to(directory) for directory in self.directories)


class _Glob:
    """A pattern.

    text        as it was given
    is_literal  there is nothing in it that stands for something else
    start       the directory that it leads to from `here` before its first `*`; None for a mere
                name of any directory's files
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
        """Whether it is a pattern of this file; `parts` begin with a slash, or are relative."""
        if self._absolute != (parts[:1] == ("/",)):
            return False
        return _matches(self._parts, parts)

    def excludes(self, parts: tuple[str, ...], below: int) -> bool:
        """Whether it is one of the file or of a directory that it is in, after the first `below`
        parts."""
        return any(self.matches(parts[:end]) for end in range(below + 1, len(parts) + 1))

    def names(self, pattern: str) -> bool:
        """Whether a part of it is itself what another pattern is for."""
        return any(fnmatch.fnmatchcase(part, pattern) for part in self._parts if part != "**")


def _matches(pattern: tuple[str, ...], parts: tuple[str, ...]) -> bool:
    if not pattern:
        return not parts
    first, rest = pattern[0], pattern[1:]
    if first == "**":
        return any(_matches(rest, parts[start:]) for start in range(len(parts) + 1))
    return bool(parts) and fnmatch.fnmatchcase(parts[0], first) and _matches(rest, parts[1:])


def _watch(files: Files, fd: int, arbiter: int) -> int:
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
    """Each change: the files that count of it, or the names that now lead elsewhere."""
    import watchfiles

    targets = files.targets()
    while True:
        roots = files.roots
        if not roots:
            time.sleep(POLL_S)  # a release that is away for a moment
        else:
            # inotify watches what a link led to at first, so the link is looked at now and then.
            for changes in watchfiles.watch(
                *roots,
                watch_filter=None,
                raise_interrupt=False,
                rust_timeout=int(POLL_S * 1000),
                yield_on_timeout=True,
            ):
                counted = {Path(path) for _, path in changes if files.counts(Path(path))}
                if counted:
                    yield counted
                if files.targets() != targets:
                    break
            else:
                return  # interrupted
        now = files.targets()
        switched = {path for path, _ in targets.items() ^ now.items()}
        targets = now
        if switched:
            yield switched


def _by_polling(files: Files) -> Iterator[set[Path]]:
    log.info("Without watchfiles the source files are looked at every %g s", POLL_S)
    before = {*_stamps(files), *files.targets().items()}
    while True:
        time.sleep(POLL_S)
        now = {*_stamps(files), *files.targets().items()}
        changed = {path for path, _ in before ^ now}
        before = now
        if changed:
            yield changed


def _stamps(files: Files) -> Iterator[tuple[Path, int]]:
    """Every file that counts, with the time of its last change."""
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
        return  # removed meanwhile, which is a change of its own
