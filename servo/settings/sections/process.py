"""Logs and the process itself."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from servo.settings.setting import Setting
from servo.settings.types import Choice, File, Mode, Output, Switch, Table, Text, group, user

if TYPE_CHECKING:
    from pathlib import Path

_LOGS = "Logging"
_PROCESS = "Process"

_FORM = re.compile(r"(json|toml|yaml|ini):(?=.)")


def split_form(given: str) -> tuple[str, str]:
    """What `logconfig` is given: (the form that stands before the path, or "", the path)."""
    form = _FORM.match(given)
    return (form[1], given[form.end() :]) if form else ("", given)


class _LogConfigFile(File):
    """A file whose form may stand before its path, as hypercorn has it."""

    def check(self, value: str, base: Path) -> None:
        super().check(split_form(value)[1], base)


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
        type=_LogConfigFile(),
        default=None,
        nullable=True,
        flags=("--log-config",),
        section=_LOGS,
        help="A logging configuration: INI, JSON, YAML or TOML.",
        details="""\
INI has the form of `logging.config.fileConfig`, the others that of `logging.config.dictConfig`. The
suffix says which it is (`.ini`, `.cfg`, `.json`, `.yaml`, `.yml`, `.toml`), or `json:` or `toml:`
before the path; else the content does. YAML needs PyYAML (`pip install PyYAML`).

`gunicorn`, `gunicorn.error` and `gunicorn.access`, and the same of `uvicorn`, are read as `servo`,
`servo.error` and `servo.access`. Loggers that the file doesn't name keep Servo's handlers, and
`disable_existing_loggers`, which is false unless it says otherwise, never means Servo's.""",
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
