"""Which process listens already: for the message of a bind that failed. Linux only, best effort."""

from __future__ import annotations

import os
import socket
import struct

from servo.printable import printable_line

_LISTEN = "0A"  # TCP_LISTEN of net/tcp_states.h, as /proc/net/tcp prints it


def describe_port_owner(port: int) -> str:
    """Such as "process 1234 (nginx)"; "" when /proc does not tell (another user's, no Linux)."""
    try:
        inodes = _listening_inodes("/proc/net/tcp", port) | _listening_inodes(
            "/proc/net/tcp6", port
        )
        pids = [name for name in os.listdir("/proc") if name.isdecimal()]
    except OSError:
        return ""
    for pid in sorted(pids, key=int):
        if inodes and _holds(pid, inodes):
            return _described(int(pid))
    return ""


def describe_unix_owner(client: socket.socket) -> str:
    """Which process listens on the Unix socket that `client` is connected to; "" if unknown.

    The kernel's word (SO_PEERCRED, unix(7)); unknown is a process of another PID namespace.
    """
    size = struct.calcsize("3i")
    pid, _, _ = struct.unpack("3i", client.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size))
    return _described(pid) if pid > 0 else ""


def _described(pid: int) -> str:
    return "this process itself" if pid == os.getpid() else f"process {pid}{_command(pid)}"


def _listening_inodes(table: str, port: int) -> set[str]:
    found: set[str] = set()
    if not os.path.exists(table):
        return found
    with open(table, encoding="ascii") as lines:
        next(lines)
        for line in lines:
            fields = line.split()
            if fields[3] == _LISTEN and int(fields[1].rpartition(":")[2], 16) == port:
                found.add(f"socket:[{fields[9]}]")
    return found


def _holds(pid: str, inodes: set[str]) -> bool:
    try:
        directory = f"/proc/{pid}/fd"
        return any(os.readlink(f"{directory}/{fd}") in inodes for fd in os.listdir(directory))
    except OSError:
        # Not ours to look into, or gone meanwhile.
        return False


def _command(pid: int) -> str:
    """Its name, which any process chooses for itself."""
    try:
        with open(f"/proc/{pid}/comm", encoding="utf-8", errors="backslashreplace") as file:
            return f" ({printable_line(file.read().strip())})"
    except OSError:
        return ""
