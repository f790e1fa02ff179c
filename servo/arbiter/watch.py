"""`--reload`: a child process that watches source files and tells of each change.

A child, since watchfiles starts threads, and a process with threads must not fork workers.
"""

from __future__ import annotations

import fnmatch
import glob
import importlib.util
import json
import logging
import os
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING

from servo.arbiter import process, spawn

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from servo.settings.sources import Settings

log = logging.getLogger("servo.error")

POLL_S = 0.5
# Never worth watching, however the patterns are set: big, and changed by running the app.
_SKIPPED = frozenset({"__pycache__", "node_modules", "site-packages", ".git", ".venv", "venv"})


class Watcher:
    """The watching child, seen from the arbiter."""

    def __init__(self, settings: Settings, close: Callable[[], None]) -> None:
        files = Files(settings, Path.cwd())
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
            process.send_signal(self.pid, signal.SIGKILL)
        os.close(self._fd)

    def close_in_child(self) -> None:
        """Close the pipe only."""
        os.close(self._fd)


class Files:
    """Which files count: those below the directories whose names match, and the extra ones."""

    def __init__(self, settings: Settings, here: Path) -> None:
        self.directories = [Path(here, name) for name in settings.reload_dirs] or [here]
        self._extra = [str(Path(here, name)) for name in settings.reload_extra_files]
        self._include: list[str] = settings.reload_include
        self._exclude: list[str] = settings.reload_exclude

    @property
    def extra(self) -> list[Path]:
        """The extra files that there are now."""
        return [Path(found) for pattern in self._extra for found in glob.glob(pattern)]

    def counts(self, path: Path) -> bool:
        """Whether a change of this file is one of the app's."""
        if any(fnmatch.fnmatch(str(path), pattern) for pattern in self._extra):
            return True
        for directory in self.directories:
            if path.is_relative_to(directory):
                break
        else:
            return False
        relative = path.relative_to(directory)
        if _SKIPPED.intersection(relative.parts):
            return False
        if any(fnmatch.fnmatch(part, p) for p in self._exclude for part in relative.parts):
            return False
        return any(
            fnmatch.fnmatch(path.name, p) or fnmatch.fnmatch(str(relative), p)
            for p in self._include
        )


def _watch(files: Files, fd: int, arbiter: int) -> int:
    spawn.die_with(arbiter)
    process.set_title("servo: watcher")
    changes = _by_watchfiles if importlib.util.find_spec("watchfiles") else _by_polling
    for paths in changes(files):
        counted = sorted(str(path) for path in paths if files.counts(path))
        if counted:
            shown = [os.path.relpath(path) for path in counted]
            try:
                os.write(fd, json.dumps(shown[:5]).encode() + b"\n")
            except BrokenPipeError:
                break
    return 0


def _by_watchfiles(files: Files) -> Iterator[Iterable[Path]]:
    import watchfiles

    # Directories of the extra files, as editors replace a file rather than write to it.
    roots = {*files.directories, *(path.parent for path in files.extra)}
    for changes in watchfiles.watch(*roots, watch_filter=None, raise_interrupt=False):
        yield [Path(path) for _, path in changes]


def _by_polling(files: Files) -> Iterator[Iterable[Path]]:
    log.info("Without watchfiles the source files are looked at every %g s", POLL_S)
    before = dict(_stamps(files))
    while True:
        time.sleep(POLL_S)
        now = dict(_stamps(files))
        changed = {path for path, _ in before.items() ^ now.items()}
        before = now
        if changed:
            yield changed


def _stamps(files: Files) -> Iterator[tuple[Path, int]]:
    """Every file that counts, with the time of its last change."""
    for root in files.directories:
        for directory, names, found in os.walk(root):
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
