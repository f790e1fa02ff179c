"""The control socket, which `servoctl` talks to."""

from __future__ import annotations

import pwd

from servo.settings.setting import Setting
from servo.settings.types import Mode, Output, Switch, TextList

_CONTROL = "Control"

_ACCESS = ("full", "read")


def _allowance(text: str) -> str:
    """`NAME`, `NAME:full` or `NAME:read`, with a name or number that this system knows."""
    allowed_user(text)
    return text.strip()


def allowed_user(text: str) -> tuple[int, str]:
    """The uid and the access that an entry of `control_allow` gives. Raises ValueError."""
    name, _, access = text.strip().partition(":")
    access = access or "full"
    if access not in _ACCESS:
        raise ValueError("neither full nor read")
    if name.isdecimal():
        return int(name), access
    try:
        return pwd.getpwnam(name).pw_uid, access
    except KeyError:
        raise ValueError("unknown") from None


SETTINGS = [
    Setting(
        name="control_socket",
        type=Output(),
        default=None,
        nullable=True,
        section=_CONTROL,
        reloadable=False,
        help="The path of the control socket. Unset: one in the runtime directory.",
        details=(
            "The runtime directory is `$XDG_RUNTIME_DIR/servo`, `/run/user/<uid>/servo`, "
            "`/run/servo` or `/tmp/servo-<uid>`, the first that can be had, with mode 0700; the "
            "socket is named `<name>-<pid>.sock` after `proc_name` (or the app) and the arbiter. "
            "A socket at another path is listed there, too."
        ),
    ),
    Setting(
        name="control_socket_mode",
        type=Mode(),
        default=0o600,
        section=_CONTROL,
        reloadable=False,
        help="Its permission bits.",
        details="With `control_allow` and nothing said, 0666: the list then decides who may.",
    ),
    Setting(
        name="control_socket_disable",
        type=Switch(),
        default=False,
        flags=("--no-control-socket",),
        section=_CONTROL,
        reloadable=False,
        help="Have none.",
    ),
    Setting(
        name="control_allow",
        type=TextList(
            metavar="USER[:ACCESS]",
            valid="users that this system knows, each with :read or :full",
            commas=True,
            item=_allowance,
        ),
        default=[],
        section=_CONTROL,
        reloadable=False,
        help="Other users who may use it; deploy, or monitor:read.",
        details=(
            "The server's own user and root always may. `USER:read` may look, and change nothing; "
            "`USER` and `USER:full` may do everything. "
            "Who it is, the kernel tells (`SO_PEERCRED`)."
        ),
    ),
]
