"""Settings of the dashboard, the web page for operators."""

from __future__ import annotations

from servo.settings.setting import Setting
from servo.settings.types import Input, Switch, Text

_DASHBOARD = "Dashboard"

SETTINGS = [
    Setting(
        name="dashboard_bind",
        type=Text(),
        default=None,
        nullable=True,
        section=_DASHBOARD,
        reloadable=False,
        help="Where to serve the dashboard: HOST:PORT or unix:/path. Unset: nowhere.",
        details="""\
A separate process serves a page with the server's figures, workers and events. On a TCP address it
asks for a token. On a Unix socket it asks for none: the socket's mode is 0600, so only the
arbiter's user and root can connect. An address other than loopback needs `dashboard_token_file`.
If the server has certificates (`certfile`, `self_signed`), the dashboard uses them on TCP, too.""",
    ),
    Setting(
        name="dashboard_control",
        type=Switch(),
        default=False,
        section=_DASHBOARD,
        reloadable=False,
        help="Let the dashboard reload the server, scale it, restart workers and show stacks.",
    ),
    Setting(
        name="dashboard_token_file",
        type=Input(),
        default=None,
        nullable=True,
        section=_DASHBOARD,
        reloadable=False,
        help="A file with the dashboard's token in its first line.",
        details="""\
The token has at least 16 characters; `openssl rand -hex 32` makes a good one. Only the arbiter's
user may have access to the file. If the setting is unset, each start of the server makes a new
token, and logs the address with this token once.""",
    ),
]
