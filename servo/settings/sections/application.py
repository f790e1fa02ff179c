"""Settings of the app, of how it is loaded and watched, and of the commands that only check."""

from __future__ import annotations

from servo.settings.setting import Setting
from servo.settings.types import (
    Choice,
    Directory,
    File,
    MountPoint,
    Switch,
    Text,
    TextList,
    assignment,
)

_APP = "Application"
_CONFIG = "Configuration"

RELOAD_INCLUDE = ("*.py",)
RELOAD_EXCLUDE = (".*", "*.py[cod]", "*.sw?", "*~")

SETTINGS = [
    Setting(
        name="app",
        type=Text(),
        default=None,
        nullable=True,
        alias="wsgi_app",
        section=_APP,
        help="The app to serve; on the command line, give it without a flag.",
        details="""\
`module:attribute`, `module` (its `app`, `application` or `create_app()` is used),
`module:factory()` (arguments must be literals) or `path/to/file.py:attribute`.""",
    ),
    Setting(
        name="interface",
        type=Choice(("auto", "wsgi", "asgi"), {"asgi2": "asgi", "asgi3": "asgi"}),
        default="auto",
        section=_APP,
        help="The app's interface; auto detects it from the app object.",
    ),
    Setting(
        name="chdir",
        type=Directory(),
        default=None,  # replaced by the start directory when the settings are loaded
        nullable=True,
        section=_APP,
        reloadable=False,
        help="Change to this directory before doing anything else.",
        details="""\
Unset: the directory that the server is started in. Each reload resolves symbolic links in the path
again. Imports search this directory first. As in gunicorn, relative paths in all other settings
(sockets, logs, the pidfile, certificates) start here. The exception is `config`: its path starts
where the server is started.""",
    ),
    Setting(
        name="pythonpath",
        type=TextList(metavar="DIR,…", valid="directories, separated by commas", commas=True),
        default=[],
        section=_APP,
        help="Directories to search for modules, besides PYTHONPATH.",
        details="Relative paths start at `chdir`.",
    ),
    Setting(
        name="raw_env",
        type=TextList(metavar="NAME=VALUE", valid="texts of the form NAME=value", item=assignment),
        default=[],
        flags=("-e", "--env"),
        section=_APP,
        help="An environment variable for the app; may be repeated.",
        details="""\
`--print-config` and servoctl show only the names. `ps` shows flags with their values, so put
secrets into a file or the environment.""",
        names_only=True,
    ),
    Setting(
        name="env_file",
        type=TextList(metavar="FILE", valid="existing files", each=File()),
        default=[],
        section=_APP,
        help="A file with environment variables for the app; may be repeated.",
        details="""\
The file has lines such as `NAME=value` (the form of python-dotenv, which this needs: `pip install
'servo-server[dotenv]'`). Variables that the server's environment has, and those of `raw_env`, take
precedence; a later file takes precedence over an earlier one. A reload reads the files again; a
variable that has been removed from them keeps its value until a restart. The files don't change
settings, even if they have `SERVO_WORKERS`, `PORT` or `FORWARDED_ALLOW_IPS`.""",
    ),
    Setting(
        name="root_path",
        type=MountPoint(),
        default="",
        section=_APP,
        help="The path that the app is mounted at: SCRIPT_NAME, or ASGI's root_path.",
        details="""\
Write it as text (`/café`) or percent-encoded (`/caf%C3%A9`); both mean the same. The app gets the
decoded path, as for requests.""",
    ),
    Setting(
        name="lifespan",
        type=Choice(("auto", "on", "off"), {"true": "on", "false": "off"}),
        default="auto",
        flags=("--lifespan", "--asgi-lifespan"),
        alias="asgi_lifespan",
        section=_APP,
        help="ASGI's lifespan protocol; auto accepts apps that don't support it.",
    ),
    Setting(
        name="loop",
        type=Choice(("auto", "uvloop", "asyncio")),
        default="auto",
        flags=("--loop", "--asgi-loop"),
        alias="asgi_loop",
        section=_APP,
        help="The event loop of async workers; auto uses uvloop if it is installed.",
    ),
    Setting(
        name="config",
        type=Text(),
        default=None,
        nullable=True,
        flags=("-c", "--config"),
        section=_CONFIG,
        in_files=False,
        reloadable=False,
        help="The configuration file: FILE.toml, FILE.py, or python:MODULE.",
        details="""\
Unset: the first that exists of `servo.toml`, `pyproject.toml` with a `[tool.servo]` table,
`servo.conf.py` and `gunicorn.conf.py`. A reload reads the file again.""",
    ),
    Setting(
        name="check_config",
        type=Switch(),
        default=False,
        section=_CONFIG,
        in_files=False,
        reloadable=False,
        help="Check the configuration, load the app, and exit.",
    ),
    Setting(
        name="print_config",
        type=Switch(),
        default=False,
        section=_CONFIG,
        in_files=False,
        reloadable=False,
        help="Print each setting's value and its source, and exit.",
    ),
    Setting(
        name="reload",
        type=Switch(),
        default=False,
        section="Development",
        reloadable=False,
        help="Restart the workers when a source file changes (needs watchfiles).",
        details="If an import fails, the server shows the traceback and waits for a change.",
    ),
    Setting(
        name="reload_dirs",
        type=TextList(metavar="DIR", valid="existing directories", each=Directory()),
        default=[],
        flags=("--reload-dir",),
        section="Development",
        reloadable=False,
        help="A directory to watch instead of the app's directory; may be repeated.",
    ),
    Setting(
        name="reload_include",
        type=TextList(metavar="GLOB", valid="a list of file name patterns"),
        default=list(RELOAD_INCLUDE),
        section="Development",
        reloadable=False,
        help="Files to watch besides *.py, as name or path patterns; may be repeated.",
        details="""\
A pattern without a slash (`*.html`, `.env`) matches file names. A pattern with a slash
(`templates/**/*.html`) matches paths relative to a watched directory, to `chdir`, or to a directory
below these; `*` doesn't match a slash, and `**` matches any number of directories. A pattern
without `*`, `?` or `[` takes precedence over `reload_exclude`. A directory given here is watched
like those
of `reload_dirs`.""",
    ),
    Setting(
        name="reload_exclude",
        type=TextList(metavar="GLOB", valid="a list of file name patterns"),
        default=list(RELOAD_EXCLUDE),
        section="Development",
        reloadable=False,
        help="Files and directories not to watch; may be repeated.",
        details="""\
Patterns of the same form as in `reload_include`, in addition to the defaults. Excluding a directory
excludes everything in it. To turn a default off, repeat it in `reload_include`. There, a pattern
such as `.github/*.yml` also includes files that a default would exclude. With `*.py` in
`reload_exclude`, `*.py` files are not watched.""",
    ),
    Setting(
        name="reload_extra_files",
        type=TextList(metavar="FILE", valid="a list of files or patterns"),
        default=[],
        flags=("--reload-extra-file",),
        section="Development",
        reloadable=False,
        help="A further file, or pattern of files, to watch; may be repeated.",
    ),
]
