"""Reads the files of the page, which are part of the package."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

DIRECTORY = Path(__file__).with_name("static")

_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".svg": "image/svg+xml",
}


@dataclass(frozen=True)
class File:
    """A file of the page.

    type   its media type
    data   its bytes
    etag   an entity tag for its bytes (RFC 9110 section 8.8.3)
    """

    type: str
    data: bytes
    etag: str


def read_files(directory: Path = DIRECTORY) -> dict[str, File]:
    """The files by the end of their path: "index.html" for a page, "static/app.js" for the others.

    directory   the directory with the files
    """
    files = {}
    for path in directory.iterdir():
        if path.suffix not in _TYPES:
            continue  # such as a licence
        data = path.read_bytes()
        etag = f'"{hashlib.sha256(data).hexdigest()[:32]}"'
        name = path.name if path.suffix == ".html" else f"static/{path.name}"
        files[name] = File(_TYPES[path.suffix], data, etag)
    return files
