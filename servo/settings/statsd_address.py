"""The address of a statsd server, in gunicorn's form: HOST:PORT, or unix://PATH."""

from __future__ import annotations

import re

from servo.settings.types import ValueType

_DEFAULT_PORT = 8125
_HOST_PORT = re.compile(r"(?:\[([0-9A-Fa-f:.%]+)\]|([^\s\[\]:/]+))(?::([0-9]{1,5}))?", re.ASCII)


class StatsdAddress(ValueType):
    """The address of a statsd server, as text."""

    metavar = "ADDRESS"
    valid = "HOST:PORT, or unix://PATH"

    def from_text(self, text: str) -> str:
        split_statsd_address(text.strip())
        return text.strip()


def split_statsd_address(text: str) -> str | tuple[str, int]:
    """Split an address of a statsd server: the path of a Unix socket, or (host, port).

    Raises ValueError.
    """
    # As in gunicorn, "unix:8125" is port 8125 of a host named "unix".
    if text.startswith("unix:") and not text.removeprefix("unix:").isdecimal():
        path = text.removeprefix("unix:").removeprefix("//")
        if not path or "\0" in path:
            raise ValueError("no path")
        return path
    match = _HOST_PORT.fullmatch(text)
    if match is None:
        raise ValueError("neither a host nor a path")
    port = int(match[3] or _DEFAULT_PORT)
    if not 0 < port < 65536:
        raise ValueError("no such port")
    return match[1] or match[2], port
