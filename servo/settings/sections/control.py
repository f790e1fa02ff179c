"""Settings of the control socket, through which `servoctl` talks to a server."""

from __future__ import annotations

import pwd

from servo.settings.setting import Setting
from servo.settings.types import Mode, Output, Switch, TextList

_CONTROL = "Control"

_ACCESS = ("full", "read")


def _checked_entry(text: str) -> str:
    """Check an entry of `control_allow` and return it without surrounding blanks."""
    allowed_user(text)
    return text.strip()


def allowed_user(text: str) -> tuple[int, str]:
    """Parse an entry of `control_allow`.

    text   `NAME`, `NAME:full` or `NAME:read`; NAME is a user's name or number

    Returns the user's id and their access: "full" or "read". Raises ValueError.
    """
    name, _, access = text.strip().partition(":")
    access = access or "full"
    if access not in _ACCESS:
        raise ValueError("neither full nor read")
    if name.isdecimal():
        return int(name), access
    try:
        return pwd.getpwnam(name).pw_uid, access
    except KeyError:
        raise ValueError("no such user") from None


SETTINGS = [
    Setting(
        name="control_socket",
        type=Output(),
        default=None,
        nullable=True,
        section=_CONTROL,
        reloadable=False,
        help="The path of the control socket. Unset: a path in the runtime directory.",
        details=(
            "The runtime directory is the first of `$RUNTIME_DIRECTORY`, `$XDG_RUNTIME_DIR/servo`, "
            "`/run/user/<uid>/servo`, `/run/servo` and `/tmp/servo-<uid>` that can be created or "
            "used; its mode is 0700. systemd sets `$RUNTIME_DIRECTORY` for a service with "
            "`RuntimeDirectory=servo` or `RuntimeDirectory=servo-NAME`; other names are not used, "
            "because servoctl does not look there. In the runtime directory, the socket's name is "
            "`<name>-<pid>.sock`, from `proc_name` (or the app) and the arbiter's process id. The "
            "runtime directory also lists sockets at other paths, so that servoctl finds them."
        ),
    ),
    Setting(
        name="control_socket_mode",
        type=Mode(),
        default=0o600,
        section=_CONTROL,
        reloadable=False,
        help="The permission bits of the control socket.",
        details="Unset, and with `control_allow` given: 0666, so that the list decides.",
    ),
    Setting(
        name="control_socket_disable",
        type=Switch(),
        default=False,
        flags=("--no-control-socket",),
        section=_CONTROL,
        reloadable=False,
        help="Run without a control socket.",
    ),
    Setting(
        name="cluster_control",
        type=Switch(),
        default=False,
        section=_CONTROL,
        help="Let the app replace its worker, reload and scale the server by `servo.cluster`.",
        details="""\
`cluster.retire()`, `cluster.reload()` and `cluster.scale(n)` raise an error without this setting.
See [how to let the app control its server](../how-to/cluster-state.md#control).""",
    ),
    Setting(
        name="control_allow",
        type=TextList(
            metavar="USER[:ACCESS]",
            valid="users of this system, each optionally followed by :read or :full",
            commas=True,
            item=_checked_entry,
        ),
        default=[],
        section=_CONTROL,
        reloadable=False,
        help="Further users who may use the control socket, such as deploy or monitor:read.",
        details=(
            "Root and the server's own user are always allowed. `USER:read` may read the server's "
            "state and change nothing; `USER` and `USER:full` may do everything. The kernel "
            "identifies the user at the other end (`SO_PEERCRED`)."
        ),
    ),
]
