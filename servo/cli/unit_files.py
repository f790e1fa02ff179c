"""Writes the systemd units of a server: systemd.service(5), systemd.socket(5), systemd.exec(5).

Under systemd a server has no terminal, no shell and few rights, so a unit needs more than the
command line. The hardened unit removes all rights that Servo does not need; `systemd-analyze
security` shows the remaining ones.
"""

from __future__ import annotations

from dataclasses import dataclass

# The capabilities that a start as root needs to run workers as another user.
ROOT_CAPABILITIES = (
    *("CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FOWNER", "CAP_KILL"),
    *("CAP_NET_BIND_SERVICE", "CAP_SETGID", "CAP_SETUID"),
)
# How many descriptors systemd keeps for us: its default is 0, and no server has 64 listeners.
_STORED_DESCRIPTORS = 64
_TEMPORARY = ("/tmp", "/var/tmp")  # noqa: S108
BIND_CAPABILITY = "CAP_NET_BIND_SERVICE"


@dataclass(frozen=True, slots=True, kw_only=True)
class Unit:
    """The data for the units of one server.

    name            the name of the units and of the runtime directory
    command         the server's command line, as a list; the first item is an absolute path
    directory       the working directory, an absolute path
    for_user        whether the units are for a user's own manager (`systemctl --user`)
    run_as          the user of the service; "": root, or the user of the manager
    hardened        whether to remove all rights that Servo does not need
    streams         the addresses of a socket unit; (): no socket unit
    socket_mode     the permission bits of Unix sockets; None: systemd's default
    notify_reload   whether systemd has Type=notify-reload (253 and later)
    low_port        whether the server itself binds a port below 1024
    in_home         whether the app or its interpreter is in a home directory
    writable        the directories for files of the server, from the settings
    """

    name: str
    command: tuple[str, ...]
    directory: str
    for_user: bool = False
    run_as: str = ""
    hardened: bool = False
    streams: tuple[str, ...] = ()
    socket_mode: int | None = None
    notify_reload: bool = False
    low_port: bool = False
    in_home: bool = False
    writable: tuple[str, ...] = ()

    @property
    def runtime_directory(self) -> str:
        """The server's directory in /run, by name. servoctl searches `servo` and `servo-<name>`."""
        return self.name if self.name.split("-")[0] == "servo" else f"servo-{self.name}"

    def files(self) -> dict[str, str]:
        """The texts of the units, by their file names."""
        found = {f"{self.name}.service": _service(self)}
        if self.streams:
            found[f"{self.name}.socket"] = _socket(self)
        return found


def _service(unit: Unit) -> str:
    parts = [_head(unit), "[Service]", *_process(unit), *_supervision(unit), *_rights(unit)]
    target = "default.target" if unit.for_user else "multi-user.target"
    parts += ["", "[Install]", f"WantedBy={target}"]
    return "\n".join(parts) + "\n"


def _head(unit: Unit) -> str:
    lines = ["[Unit]", f"Description=Python app {_plain(unit.name)}, served by Servo"]
    if unit.streams:
        lines.append(f"Requires={unit.name}.socket")
    # A user's manager does not know the units of the system, so don't refer to them.
    if not unit.for_user:
        lines.append("After=network.target")
    return "\n".join([*lines, ""])


def _process(unit: Unit) -> list[str]:
    lines = []
    if unit.notify_reload:
        lines += [
            "# Servo reports when it serves, reloads and stops, so `systemctl reload` waits for",
            "# the end of the reload.",
            "Type=notify-reload",
        ]
    else:
        lines += [
            "# Servo reports when it serves and when it stops. From systemd 253 on, notify-reload",
            "# is better: then `systemctl reload` waits for the end of the reload.",
            "Type=notify",
            "ExecReload=/bin/kill -HUP $MAINPID",
        ]
    if unit.run_as:
        lines.append(f"User={unit.run_as}")
    lines.append(f"WorkingDirectory={_plain(unit.directory)}")
    lines.append(f"ExecStart={' '.join(map(quoted, unit.command))}")
    if unit.low_port:
        lines += ["# For a port below 1024.", f"AmbientCapabilities={BIND_CAPABILITY}"]
    return lines


def _supervision(unit: Unit) -> list[str]:
    # A private /tmp would hide an app that is in /tmp.
    private_tmp = "no" if _is_below(unit.directory, _TEMPORARY) else "yes"
    return [
        "# The control socket is in this directory of /run, where servoctl finds it.",
        f"RuntimeDirectory={unit.runtime_directory}",
        "# Seconds without a sign of life from the arbiter, after which systemd restarts it.",
        "WatchdogSec=30",
        "Restart=on-failure",
        "# Don't retry after an error in the configuration or the command line.",
        "RestartPreventExitStatus=1 2",
        "# systemd keeps the sockets if the arbiter crashes, so clients wait for the restart.",
        f"FileDescriptorStoreMax={_STORED_DESCRIPTORS}",
        "# If the kernel kills a worker for lack of memory, the arbiter replaces it.",
        "OOMPolicy=continue",
        f"PrivateTmp={private_tmp}",
    ]


def _rights(unit: Unit) -> list[str]:
    lines = ["NoNewPrivileges=yes"]
    if not unit.hardened:
        return lines
    capabilities: tuple[str, ...] = ()
    if not unit.for_user:
        capabilities = (BIND_CAPABILITY,) if unit.low_port else ()
        if not unit.run_as:
            capabilities = ROOT_CAPABILITIES
    lines += ["", "# Remove the rights that neither Servo nor most apps need."]
    if unit.for_user:
        # A user's manager needs a user namespace for the other restrictions.
        lines.append("PrivateUsers=yes")
    lines.append(f"CapabilityBoundingSet={' '.join(capabilities)}")
    lines += [
        f"ProtectHome={'read-only' if unit.in_home else 'yes'}",
        "# All directories except ReadWritePaths= are read-only: add those that the app writes to.",
        "ProtectSystem=strict",
    ]
    # The service may write to these directories anyway, by PrivateTmp= and RuntimeDirectory=.
    allowed = (*_TEMPORARY, "/dev", f"/run/{unit.runtime_directory}")
    writable = [each for each in unit.writable if not _is_below(each, allowed)]
    if writable:
        # With the dash, systemd ignores a missing directory, and Servo reports it.
        lines.append(f"ReadWritePaths={' '.join(quoted('-' + each) for each in writable)}")
    lines += [f"{name}=yes" for name in _PROTECTIONS]
    if not unit.for_user:
        lines.append("ProtectProc=invisible")
    return [
        *lines,
        "# AF_NETLINK is for the length of the accept queue.",
        "RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6 AF_NETLINK",
        "SystemCallArchitectures=native",
        "SystemCallFilter=@system-service",
        "SystemCallErrorNumber=EPERM",
    ]


def _is_below(directory: str, places: tuple[str, ...]) -> bool:
    return any(f"{directory}/".startswith(f"{place}/") for place in places)


_PROTECTIONS = (
    *("LockPersonality", "PrivateDevices", "ProtectClock", "ProtectControlGroups"),
    *("ProtectHostname", "ProtectKernelLogs", "ProtectKernelModules", "ProtectKernelTunables"),
    *("RestrictNamespaces", "RestrictRealtime", "RestrictSUIDSGID"),
)


def _socket(unit: Unit) -> str:
    lines = [
        "# systemd opens these sockets, and keeps them open while the service restarts, so that",
        "# connections wait instead of being refused. Servo uses them instead of its `bind`.",
        "[Unit]",
        f"Description=the sockets of {_plain(unit.name)}",
        "",
        "[Socket]",
        *(f"ListenStream={_plain(each)}" for each in unit.streams),
    ]
    if unit.socket_mode is not None:
        lines.append(f"SocketMode={unit.socket_mode:04o}")
    return "\n".join([*lines, "", "[Install]", "WantedBy=sockets.target"]) + "\n"


def quoted(word: str) -> str:
    """Quote a word of a command line for systemd (systemd.service(5), "Command lines").

    word   any text without NUL
    """
    # systemd replaces % and $ even between quotes.
    text = word.replace("\\", "\\\\").replace("%", "%%").replace("$", "$$")
    if text and not any(each in text for each in " \t\n\r'\";"):
        return text
    text = text.replace('"', '\\"').replace("\n", "\\n").replace("\r", "\\r")
    return f'"{text}"'


def _plain(text: str) -> str:
    """A text in the form of a value on one line."""
    return text.replace("%", "%%").replace("\n", " ")
