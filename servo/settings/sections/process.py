"""Logs and the process itself."""

from __future__ import annotations

from servo.settings.setting import Setting
from servo.settings.types import Choice, File, Mode, Output, Switch, Table, Text, group, user

_LOGS = "Logging"
_PROCESS = "Process"

SETTINGS = [
    Setting(
        name="errorlog",
        type=Output(),
        default="-",
        flags=("--error-logfile", "--log-file"),
        section=_LOGS,
        help="Where the server's log goes; -: stderr.",
    ),
    Setting(
        name="loglevel",
        type=Choice(
            ("debug", "info", "warning", "error", "critical"),
            {"warn": "warning", "fatal": "critical", "trace": "debug"},
            "LEVEL",
        ),
        default="info",
        flags=("--log-level",),
        section=_LOGS,
        help="How much it says: debug, info, warning, error or critical.",
    ),
    Setting(
        name="log_format",
        type=Choice(("text", "json")),
        default="text",
        section=_LOGS,
        help="Lines for people, or a JSON object a line.",
    ),
    Setting(
        name="accesslog",
        type=Output(),
        default=None,
        nullable=True,
        flags=("--access-logfile",),
        section=_LOGS,
        help="Where a line for each request goes; -: stdout. Unset: nowhere.",
    ),
    Setting(
        name="access_log_format",
        type=Text(),
        default='%(h)s %(l)s %(u)s %(t)s "%(r)s" %(s)s %(b)s "%(f)s" "%(a)s"',
        flags=("--access-logformat",),
        section=_LOGS,
        help="That line, in gunicorn's atoms; json: a JSON object.",
    ),
    Setting(
        name="capture_output",
        type=Switch(),
        default=False,
        section=_LOGS,
        reloadable=False,
        help="Send stdout and stderr to the error log's file.",
    ),
    Setting(
        name="logconfig",
        type=File(),
        default=None,
        nullable=True,
        flags=("--log-config",),
        section=_LOGS,
        help="A logging configuration, in the form of logging.config.fileConfig.",
    ),
    Setting(
        name="logconfig_json",
        type=File(),
        default=None,
        nullable=True,
        flags=("--log-config-json",),
        section=_LOGS,
        help="A logging configuration in JSON; goes before logconfig.",
    ),
    Setting(
        name="logconfig_dict",
        type=Table(),
        default={},
        section=_LOGS,
        help="A logging configuration (logging.config.dictConfig); goes before both.",
    ),
    Setting(
        name="proc_name",
        type=Text(),
        default=None,
        nullable=True,
        flags=("-n", "--name"),
        section=_PROCESS,
        reloadable=False,
        help="What process titles show instead of the app.",
    ),
    Setting(
        name="daemon",
        type=Switch(),
        default=False,
        flags=("-D", "--daemon"),
        section=_PROCESS,
        reloadable=False,
        help="Detach from the terminal and run in the background.",
        details="""\
The command waits until a worker is ready, and ends with 0; or until the server has ended, and ends
with its exit code, having said why. Ctrl-C ends only the waiting. Without `errorlog` the log goes
nowhere from then on.""",
    ),
    Setting(
        name="pidfile",
        type=Output(),
        default=None,
        nullable=True,
        flags=("-p", "--pid"),
        section=_PROCESS,
        reloadable=False,
        help="A file for the arbiter's process id.",
    ),
    Setting(
        name="user",
        type=user(),
        default=None,
        nullable=True,
        flags=("-u", "--user"),
        section=_PROCESS,
        help="The user that workers run as.",
    ),
    Setting(
        name="group",
        type=group(),
        default=None,
        nullable=True,
        flags=("-g", "--group"),
        section=_PROCESS,
        help="The group that workers run as.",
    ),
    Setting(
        name="initgroups",
        type=Switch(),
        default=False,
        section=_PROCESS,
        help="Give workers all groups of their user.",
    ),
    Setting(
        name="umask",
        type=Mode(),
        default=0,
        flags=("-m", "--umask"),
        section=_PROCESS,
        help="Permission bits that new files and Unix sockets are made without.",
        details="Unset, files follow the mask that the server is started with, sockets take 0.",
    ),
]
