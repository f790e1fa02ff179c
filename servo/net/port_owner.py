"""Finds the process that listens on a port, to name it when a bind fails.

/proc/net/tcp lists the listening sockets with their inodes, and /proc/PID/fd shows which process
has a descriptor of that inode. Works on Linux only, and does not find processes of other users.
"""

from __future__ import annotations

import os
import socket
import struct

from servo.printable import printable_line

_LISTEN = "0A"  # TCP_LISTEN of net/tcp_states.h, as /proc/net/tcp prints it


def describe_port_owner(port: int) -> str:
    """Describe the process that listens on a TCP port: "process 1234 (nginx)"; "" if unknown."""
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
    """Describe the process that listens on the Unix socket that `client` is connected to.

    The kernel reports the process (SO_PEERCRED, unix(7)). Returns "" for a process in another PID
    namespace.
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
        # The process belongs to another user, or has ended.
        return False


def _command(pid: int) -> str:
    """The command's name in brackets. It is escaped, because a process can choose any name."""
    try:
        with open(f"/proc/{pid}/comm", encoding="utf-8", errors="backslashreplace") as file:
            return f" ({printable_line(file.read().strip())})"
    except OSError:
        return ""
