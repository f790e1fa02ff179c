"""Settings of logs and of the server's processes."""

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
    """Split a value of `logconfig` into a form and a path.

    given   `PATH`, or `FORM:PATH` where FORM is json, toml, yaml or ini

    Returns the form ("" if there is none) and the path.
    """
    form = _FORM.match(given)
    return (form[1], given[form.end() :]) if form else ("", given)


class _LogConfigFile(File):
    """A file that must exist. As in hypercorn, a format may precede its path (`json:log.conf`)."""

    def check(self, value: str, base: Path) -> None:
        super().check(split_form(value)[1], base)


SETTINGS = [
    Setting(
        name="errorlog",
        type=Output(),
        default="-",
        flags=("--error-logfile", "--log-file"),
        section=_LOGS,
        help="The file that the server's log is written to; -: stderr.",
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
        help="The lowest level to log: debug, info, warning, error or critical.",
    ),
    Setting(
        name="log_format",
        type=Choice(("text", "json")),
        default="text",
        section=_LOGS,
        help="The form of the server's log: text for people, or one JSON object per line.",
    ),
    Setting(
        name="accesslog",
        type=Output(),
        default=None,
        nullable=True,
        flags=("--access-logfile",),
        section=_LOGS,
        help="The file that a line for each request is written to; -: stdout. Unset: none.",
        details="With `reload`, the default is `-` if stdout is a terminal.",
    ),
    Setting(
        name="access_log_format",
        type=Text(),
        default='%(h)s %(l)s %(u)s %(t)s "%(r)s" %(s)s %(b)s "%(f)s" "%(a)s"',
        flags=("--access-logformat",),
        section=_LOGS,
        help="The form of the access log's lines, as in gunicorn; json: a JSON object.",
    ),
    Setting(
        name="capture_output",
        type=Switch(),
        default=False,
        section=_LOGS,
        reloadable=False,
        help="Write stdout and stderr to the file of errorlog.",
    ),
    Setting(
        name="logconfig",
        type=_LogConfigFile(),
        default=None,
        nullable=True,
        flags=("--log-config",),
        section=_LOGS,
        help="A file with a logging configuration: INI, JSON, YAML or TOML.",
        details="""\
An INI file has the form of `logging.config.fileConfig`, the others have that of
`logging.config.dictConfig`. A prefix of the path (`ini:`, `json:`, `yaml:`, `toml:`) or the suffix
(`.ini`, `.cfg`, `.json`, `.yaml`, `.yml`, `.toml`) gives the format; without either, the content
decides. YAML needs PyYAML (`pip install PyYAML`).

The loggers `gunicorn`, `gunicorn.error` and `gunicorn.access`, and those of `uvicorn` with the same
suffixes, mean `servo`, `servo.error` and `servo.access`. Servo's loggers that the file doesn't name
keep their handlers. `disable_existing_loggers` is false by default and never disables Servo's
loggers.""",
    ),
    Setting(
        name="logconfig_json",
        type=File(),
        default=None,
        nullable=True,
        flags=("--log-config-json",),
        section=_LOGS,
        help="A file with a logging configuration in JSON; overrides logconfig.",
    ),
    Setting(
        name="logconfig_dict",
        type=Table(),
        default={},
        section=_LOGS,
        help="A logging configuration for logging.config.dictConfig; overrides both files.",
    ),
    Setting(
        name="proc_name",
        type=Text(),
        default=None,
        nullable=True,
        flags=("-n", "--name"),
        section=_PROCESS,
        reloadable=False,
        help="The name that process titles show instead of the app.",
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
The command waits until a worker is ready, then exits with 0. If the server ends before that, the
command shows the reason and exits with the server's exit code. Ctrl-C ends the command, not the
server. Without `errorlog`, nothing is logged after the command has ended.""",
    ),
    Setting(
        name="pidfile",
        type=Output(),
        default=None,
        nullable=True,
        flags=("-p", "--pid"),
        section=_PROCESS,
        reloadable=False,
        help="The file that the arbiter's process id is written to.",
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
        help="Give workers all groups that their user is a member of.",
    ),
    Setting(
        name="umask",
        type=Mode(),
        default=0,
        flags=("-m", "--umask"),
        section=_PROCESS,
        help="The umask: permission bits that new files and Unix sockets don't get.",
        details="Unset: for files the umask that the server is started with; for sockets 0.",
    ),
]
