"""The app, how it is loaded, and the commands that only look."""

from __future__ import annotations

from servo.settings.setting import Setting
from servo.settings.types import Choice, Directory, MountPoint, Switch, Text, TextList, assignment

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
        help="What to serve; on the command line an argument without a flag.",
        details="""\
One of `module:attribute`, `module` (its `app`, `application` or `create_app()`), `module:factory()`
(with literal arguments, if any) and `path/to/file.py:attribute`.""",
    ),
    Setting(
        name="interface",
        type=Choice(("auto", "wsgi", "asgi"), {"asgi3": "asgi"}),
        default="auto",
        section=_APP,
        help="The app's interface; auto looks at the object.",
    ),
    Setting(
        name="chdir",
        type=Directory(),
        default=None,  # the directory that the server is started in: filled in when settings load
        nullable=True,
        section=_APP,
        reloadable=False,
        help="Change to this directory first.",
        details="""\
Unset: the directory that the server is started in. A link on the way is followed anew by each
reload. Imports look here first, and relative paths of all other settings start here, as gunicorn's
do: sockets, logs, the pidfile, certificates. Only `config` is looked for where the server is
started.""",
    ),
    Setting(
        name="pythonpath",
        type=TextList(metavar="DIR,…", valid="directories, separated by commas", commas=True),
        default=[],
        section=_APP,
        help="Directories to look in for modules, besides PYTHONPATH.",
        details="Relative ones start at `chdir`.",
    ),
    Setting(
        name="raw_env",
        type=TextList(metavar="NAME=VALUE", valid="texts of the form NAME=value", item=assignment),
        default=[],
        flags=("-e", "--env"),
        section=_APP,
        help="An environment variable for the app; may be repeated.",
        details="Only names are shown by `--print-config` and servoctl; `ps` shows a flag's value.",
        names_only=True,
    ),
    Setting(
        name="root_path",
        type=MountPoint(),
        default="",
        section=_APP,
        help="Where the app is mounted: SCRIPT_NAME, or ASGI's root_path.",
        details="""\
As text (`/café`) or percent-encoded (`/caf%C3%A9`); both mean the same. Apps get it decoded, like
paths.""",
    ),
    Setting(
        name="lifespan",
        type=Choice(("auto", "on", "off"), {"true": "on", "false": "off"}),
        default="auto",
        flags=("--lifespan", "--asgi-lifespan"),
        alias="asgi_lifespan",
        section=_APP,
        help="ASGI's lifespan protocol; auto accepts an app without it.",
    ),
    Setting(
        name="loop",
        type=Choice(("auto", "uvloop", "asyncio")),
        default="auto",
        flags=("--loop", "--asgi-loop"),
        alias="asgi_loop",
        section=_APP,
        help="The event loop of async workers; auto is uvloop where it is installed.",
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
Unset: the first of `servo.toml`, a `pyproject.toml` that has `[tool.servo]`, `servo.conf.py` and
`gunicorn.conf.py`. A reload reads the file anew.""",
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
        help="Print every setting's value and where it came from, and exit.",
    ),
    Setting(
        name="reload",
        type=Switch(),
        default=False,
        section="Development",
        reloadable=False,
        help="Restart the workers when a source file changes (needs watchfiles).",
        details="A file that can't be imported shows its traceback; the server waits for the fix.",
    ),
    Setting(
        name="reload_dirs",
        type=TextList(metavar="DIR", valid="existing directories", each=Directory()),
        default=[],
        flags=("--reload-dir",),
        section="Development",
        reloadable=False,
        help="A directory to watch instead of the app's own; may be repeated.",
    ),
    Setting(
        name="reload_include",
        type=TextList(metavar="GLOB", valid="a list of file name patterns"),
        default=list(RELOAD_INCLUDE),
        section="Development",
        reloadable=False,
        help="Files to watch besides *.py: names, or relative paths; may be repeated.",
        details="""\
A pattern without a slash (`*.html`, `.env`) is one of names. With a slash (`templates/**/*.html`)
it is one of paths, from a watched directory, from `chdir`, or from a directory below; `*` stops at
a slash, and `**` is any number of directories. A name without `*`, `?` or `[` is watched whatever
`reload_exclude` says. A directory is watched like those of `reload_dirs`.""",
    ),
    Setting(
        name="reload_exclude",
        type=TextList(metavar="GLOB", valid="a list of file name patterns"),
        default=list(RELOAD_EXCLUDE),
        section="Development",
        reloadable=False,
        help="Files and directories not to watch; may be repeated.",
        details="""\
Added to the default, in the form of `reload_include`. A directory is left out with all that is in
it. A default goes where `reload_include` has the same pattern, and doesn't hold for what a pattern
there names: `.github/*.yml`. `*.py` turns that one off.""",
    ),
    Setting(
        name="reload_extra_files",
        type=TextList(metavar="FILE", valid="a list of files or patterns"),
        default=[],
        flags=("--reload-extra-file",),
        section="Development",
        reloadable=False,
        help="A file, or a pattern of files, to watch as well; may be repeated.",
    ),
]
