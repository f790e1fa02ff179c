"""Parses the addresses to listen on, as an operator writes them in `bind`.

127.0.0.1:8000  localhost:8000  0.0.0.0  :8000  *:8000     TCP; the port defaults to 8000
[::1]:8000  [::]  ::1                                      TCP over IPv6
unix:/run/app.sock  unix:///run/app.sock  unix:app.sock    a Unix socket in the file system
unix:@app  @app                                            an abstract Unix socket (Linux)
fd://3                                                     a socket that Servo was started with
"""

from __future__ import annotations

import ipaddress
import os
import re
from dataclasses import dataclass

from servo.errors import ConfigError

DEFAULT_PORT = 8000

# `sun_path` has 108 bytes on Linux (unix(7)). One of them is a NUL: at the end of a path, or at the
# beginning of an abstract name.
_MAX_UNIX_BYTES = 107


@dataclass(frozen=True, slots=True)
class TCPAddress:
    """A TCP address.

    host  a name or a literal address, IPv6 without brackets
    port  0 lets the kernel choose one
    """

    host: str
    port: int

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"


@dataclass(frozen=True, slots=True)
class UnixAddress:
    """The path of a Unix socket."""

    path: str

    def __str__(self) -> str:
        # Without the extra slashes, "unix://x" would be read as the relative path "x".
        return f"unix://{self.path}" if self.path.startswith("//") else f"unix:{self.path}"


@dataclass(frozen=True, slots=True)
class AbstractAddress:
    """A name in Linux's abstract namespace. It has no file, and disappears with its last socket."""

    name: str

    def __str__(self) -> str:
        return f"unix:@{self.name}"


@dataclass(frozen=True, slots=True)
class FdAddress:
    """A file descriptor that this process has inherited."""

    fd: int

    def __str__(self) -> str:
        return f"fd://{self.fd}"


Address = TCPAddress | UnixAddress | AbstractAddress | FdAddress


def parse_address(text: str) -> Address:
    """Parse an address. `str()` of the result parses to the same address.

    Raises ConfigError with the reason.
    """
    text = text.strip()
    if "\0" in text:
        raise ConfigError(f"bind {text!r}: an address can't contain a NUL")
    if text.startswith("fd://"):
        number = text.removeprefix("fd://")
        if not re.fullmatch(r"[0-9]{1,9}", number):
            raise ConfigError(f"bind {text!r}: fd:// needs the number of a file descriptor")
        return FdAddress(int(number))
    if text.startswith("unix:"):
        return _unix(text, text.removeprefix("unix:").removeprefix("//"))
    if text.startswith("@"):
        return _unix(text, text)
    if "/" in text.removeprefix("tcp://"):
        raise ConfigError(f"bind {text!r}: write unix:/run/app.sock for a path, host:port for TCP")
    return _tcp(text, text.removeprefix("tcp://"))


def _unix(text: str, path: str) -> Address:
    abstract = path.startswith("@")
    name = path.removeprefix("@")
    if not name:
        raise ConfigError(f"bind {text!r}: unix: needs a path, or @ and a name")
    length = len(os.fsencode(name))
    if length > _MAX_UNIX_BYTES - abstract:
        raise ConfigError(
            f"bind {text!r}: {length} bytes are too long for a Unix socket's address "
            f"(at most {_MAX_UNIX_BYTES - abstract})"
        )
    return AbstractAddress(name) if abstract else UnixAddress(path)


def _tcp(text: str, rest: str) -> TCPAddress:
    if rest.startswith("["):
        host, bracket, port = rest[1:].partition("]")
        if not bracket or not _is_ipv6(host) or (port and not port.startswith(":")):
            raise ConfigError(f"bind {text!r}: write an IPv6 address as [::1]:8000")
        return TCPAddress(host, _port(text, port[1:]) if port else DEFAULT_PORT)
    host, colon, port = rest.rpartition(":")
    if ":" in host:
        return _bare_ipv6(text, rest, host, port)
    if not colon:
        host, port = rest, str(DEFAULT_PORT)
        if not host or host.isdecimal():
            raise ConfigError(f"bind {text!r}: write host:port, such as 127.0.0.1:8000 or :8000")
    # No host means every IPv4 interface, as in gunicorn. [::] means IPv6.
    host = "0.0.0.0" if host in ("", "*") else host  # noqa: S104
    if not re.fullmatch(r"[^\s\[\]@/%]+", host):
        raise ConfigError(f"bind {text!r}: {host!r} is not a host name")
    return TCPAddress(host.lower(), _port(text, port))


def _bare_ipv6(text: str, rest: str, host: str, port: str) -> TCPAddress:
    whole, split = _is_ipv6(rest), _is_ipv6(host) and port.isdecimal()
    if whole and split:
        raise ConfigError(
            f"bind {text!r} is ambiguous: write [{host}]:{port} or [{rest}]:{DEFAULT_PORT}"
        )
    if whole:
        return TCPAddress(rest, DEFAULT_PORT)
    if split:
        return TCPAddress(host, _port(text, port))
    raise ConfigError(f"bind {text!r}: neither host:port nor an IPv6 address such as [::1]:8000")


def _port(text: str, port: str) -> int:
    if not re.fullmatch(r"[0-9]{1,5}", port) or int(port) > 65535:
        raise ConfigError(f"bind {text!r}: the port must be a number from 0 to 65535, not {port!r}")
    return int(port)


def _is_ipv6(host: str) -> bool:
    try:
        ipaddress.IPv6Address(host)
    except ValueError:
        return False
    return True
