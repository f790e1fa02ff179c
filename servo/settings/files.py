"""Finds and reads the configuration file, and notes the line of each value.

A TOML file may contain settings only. A Python file is executed and may have its own variables. So
in a Python file only names of settings, of hooks and of gunicorn's settings count; a name that is
similar to one of them gets a warning.
"""

from __future__ import annotations

import ast
import importlib
import importlib.machinery
import importlib.util
import re
import stat
import sys
import traceback
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from servo.errors import ConfigError
from servo.settings.config_hooks import HOOKS, read_hook
from servo.settings.gunicorn_compat import FOREIGN, SHARED
from servo.settings.hypercorn_file import read_as_hypercorns
from servo.settings.peers import peer_of
from servo.settings.schema import SETTINGS, advise, canonical, suggest
from servo.settings.suggestions import did_you_mean, nearest
from servo.settings.toml import TOMLError, parse_toml
from servo.settings.types import Table

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    Note = tuple[str, str]

PYTHON_MODULE = "__config__"
# A name in a Python file gets a warning if it is at least this similar to a known one. For other
# suggestions, less similarity is enough, but this name may be one of the file's own variables.
_NEAR_MISS = 0.85


@dataclass
class Given:
    """A value as its source has it, before it is read and checked.

    value      the text or object
    source     where it comes from, for messages
    is_text    whether it comes from the environment
    optional   whether an invalid value is only a warning. This is so in a gunicorn configuration
               file if gunicorn has no setting of this name: it may be the file's own variable
    """

    value: object
    source: str
    is_text: bool = False
    optional: bool = False


@dataclass
class FileContent:
    """The content of a configuration file.

    values    the settings' values, by name
    hooks     the server hooks, by name
    chosen    the name of the app, if the file has several
    modules   the names of the modules that a Python file imported
    notes     (level, text) of messages for the log
    """

    values: dict[str, Given] = field(default_factory=dict)
    hooks: dict[str, Callable[..., Any]] = field(default_factory=dict)
    chosen: str = ""
    modules: tuple[str, ...] = ()
    notes: list[Note] = field(default_factory=list)


def read_config(given: str | None, directories: list[Path], app: str | None = None) -> FileContent:
    """Read the given configuration file, or else the first that one of the directories has.

    given         the value of the setting `config`; None: not set
    directories   the directories to search, in this order; a relative path starts at the first
    app           the value of the setting `app`; None: not set. If the file has several apps, this
                  is the name of one of them

    Raises ConfigError for a missing file, a syntax error, an exception that a Python file raises,
    an unknown name in TOML, or a hook that can't be called.
    """
    if given is not None:
        return _read_given(given, directories[0], app)
    for directory in directories:
        content = _read_found(directory, app)
        if content is not None:
            return content
    return FileContent()


def _read_given(given: str, directory: Path, app: str | None) -> FileContent:
    if given.startswith("python:"):
        return _read_module(given.removeprefix("python:"), directory)
    path = directory / Path(given.removeprefix("file:")).expanduser()
    if not _is_file(path):
        raise ConfigError(f"there is no configuration file {given}")
    shown = _shown(path, directory)
    if path.name == "pyproject.toml":
        return _from_toml(_pyproject_table(path, shown) or {}, path, shown, app)
    if path.suffix == ".toml":
        return _from_toml(_parse_toml(path, shown), path, shown, app)
    return _read_python(path, shown, directory)


def is_file(path: Path) -> bool:
    """Whether a path names a regular file.

    Since Python 3.14, `Path.is_file` returns False for every error. This function raises OSError if
    the system can't answer, because a directory can't be searched or the name is too long.
    """
    try:
        return stat.S_ISREG(path.stat().st_mode)
    except (FileNotFoundError, NotADirectoryError, ValueError):  # ValueError: the path has a NUL
        return False


def _is_file(path: Path) -> bool:
    try:
        return is_file(path)
    except OSError as error:
        raise ConfigError(f"can't look for {path}: {error.strerror}") from error


def _read_found(directory: Path, app: str | None) -> FileContent | None:
    path = directory / "servo.toml"
    if _is_file(path):
        return _from_toml(_parse_toml(path, path.name), path, path.name, app)
    path = directory / "pyproject.toml"
    if _is_file(path):
        table = _pyproject_table(path, path.name)
        if table is not None:
            return _from_toml(table, path, path.name, app)
    path = directory / "servo.conf.py"
    if _is_file(path):
        return _read_python(path, path.name, directory)
    path = directory / "gunicorn.conf.py"
    if _is_file(path):
        content = _read_python(path, path.name, directory)
        content.notes.insert(0, ("info", "reading ./gunicorn.conf.py: there is no servo.toml"))
        return content
    return None


def _shown(path: Path, directory: Path) -> str:
    try:
        return str(path.relative_to(directory))
    except ValueError:
        return str(path)


# --- TOML -------------------------------------------------------------------------------------


def _parse_toml(path: Path, shown: str) -> dict[str, Any]:
    try:
        return parse_toml(path.read_text(encoding="utf-8"))
    except (TOMLError, UnicodeDecodeError, OSError) as error:
        raise ConfigError(f"{shown} can't be read: {error}") from error


def _pyproject_table(path: Path, shown: str) -> dict[str, Any] | None:
    # Don't report errors of a file that has nothing to do with Servo.
    if b"servo" not in path.read_bytes():
        return None
    table = _parse_toml(path, shown).get("tool", {}).get("servo")
    if table is not None and not isinstance(table, dict):
        raise ConfigError(f"{shown}: tool.servo is not a table")
    return table


def apps_of(path: Path) -> list[str]:
    """The names of the apps in a TOML file that has several, in tables `[apps.NAME]`.

    path   the file

    Raises ConfigError if it can't be read.
    """
    return list(_apps(_parse_toml(path, str(path))))


def _apps(table: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    apps = table.get("apps")
    if isinstance(apps, dict) and apps and all(isinstance(each, dict) for each in apps.values()):
        return apps
    return {}


def _from_toml(table: Mapping[str, Any], path: Path, shown: str, app: str | None) -> FileContent:
    lines = path.read_text(encoding="utf-8").splitlines()
    apps = _apps(table)
    if not apps:
        return _from_table(table, path, shown, lines)
    # The settings outside the tables are those of all apps.
    shared = {name: value for name, value in table.items() if name != "apps"}
    content = _from_table(shared, path, shown, lines)
    if app is None:
        raise ConfigError(
            f"{shown} has several apps ({', '.join(apps)}): say which, as in "
            f"servo -c {shown} {next(iter(apps))}"
        )
    if app in apps:
        header = _toml_line(lines, app, r"\[.*\bapps[\"']?\s*\.\s*")
        # Keep the numbers of the lines: a name may stand in several tables.
        own = _from_table(apps[app], path, shown, [""] * header + lines[header:])
        content.values |= own.values
        content.notes += own.notes
        content.values.setdefault("proc_name", Given(app, f"{shown}:{header}"))
        content.chosen = app
        if "app" not in content.values:
            raise ConfigError(f"apps.{app} has no app ({shown}:{header})")
    elif ":" not in app and "/" not in app:
        advice = did_you_mean(app, apps) or f"; it has {', '.join(apps)}"
        raise ConfigError(f"{shown} has no app {app}{advice}")
    return content


def _from_table(table: Mapping[str, Any], path: Path, shown: str, lines: list[str]) -> FileContent:
    content = FileContent()
    problems: list[str] = []

    def source(name: str) -> str:
        return f"{shown}:{_toml_line(lines, name)}"

    if "hypercorn" in path.name:
        theirs = read_as_hypercorns(table)
        for setting, (value, name) in theirs.values.items():
            content.values[setting] = Given(value, source(name))
        if theirs.ignored:
            listed = ", ".join(f"{name} ({advice})" for name, advice in theirs.ignored)
            text = f"ignoring what has no counterpart here: {listed} ({shown})"
            content.notes.append(("warning", text))
        problems += [f"{n} ({source(n)}) can't be used: {advice}" for n, advice in theirs.problems]
        table = theirs.others
    for name, value in table.items():
        setting_name = canonical(name)
        if setting_name is not None and SETTINGS[setting_name].in_files:
            content.values[setting_name] = Given(value, source(name))
        elif name in FOREIGN:
            content.notes += _foreign_note(name, value, source(name))
        elif setting_name is not None:
            problems.append(f"{name} is not allowed in a file ({source(name)}); use a flag")
        elif name in HOOKS:
            problems.append(
                f"{name} is a hook ({source(name)}); hooks need a Python file: servo.conf.py"
            )
        else:
            advice = _advice(name, value, path)
            problems.append(f"there is no setting {name} ({source(name)}){advice}")
    if problems:
        raise ConfigError("\n".join(problems))
    return content


def _advice(name: str, value: object, path: Path) -> str:
    found = suggest(name)
    is_table = found in SETTINGS and isinstance(SETTINGS[found].type, Table)
    if isinstance(value, dict) and not is_table and peer_of(name) is None:
        if path.name == "pyproject.toml":
            return "; in this file, put settings directly into [tool.servo]"
        return "; in this file, put settings at the top, outside any table"
    return advise(name)


def _toml_line(lines: list[str], name: str, before: str = r"(\[+[^\]]*)?") -> int:
    # tomllib reports no positions, so search for a key or a table's header of that name.
    pattern = re.compile(rf"""\s*{before}["']?{re.escape(name)}["']?\s*[=.\]]""")
    return next((n for n, line in enumerate(lines, 1) if pattern.match(line)), 1)


def _foreign_note(name: str, value: object, source: str) -> list[Note]:
    foreign = FOREIGN[name]
    return [("warning", foreign.note(source))] if foreign.matters(value) else []


# --- Python -----------------------------------------------------------------------------------


def _read_python(path: Path, shown: str, directory: Path) -> FileContent:
    module = _new_module(path)
    before = set(sys.modules)
    _import_from(directory)
    sys.modules[PYTHON_MODULE] = module  # dataclasses and pickle look up their class's module
    try:
        source = path.read_bytes()
        code = compile(source, str(path), "exec", dont_inherit=True)
        exec(code, module.__dict__)  # noqa: S102 (a configuration file is code of the user's)
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        raise _config_raised(error, str(path), shown) from error
    content = _from_namespace(vars(module), shown, source, gunicorn="gunicorn" in path.name)
    content.modules = tuple(sorted(set(sys.modules) - before - {PYTHON_MODULE}))
    return content


def _new_module(path: Path) -> ModuleType:
    """The module for the code of a configuration file: its namespace.

    Like an imported module it has a spec and a loader: `inspect`, `warnings` and `pkgutil` use
    them, and Python 3.15 warns if a module's globals lack them. The loader is given explicitly,
    because the file may have any suffix, or none. But the code is not executed by the loader, which
    would write a `.pyc` beside the file, and would use an outdated one if the file changes twice
    within a second.
    """
    loader = importlib.machinery.SourceFileLoader(PYTHON_MODULE, str(path))
    spec = importlib.util.spec_from_file_location(PYTHON_MODULE, path, loader=loader)
    assert spec is not None  # a loader was given
    return importlib.util.module_from_spec(spec)


def _read_module(name: str, directory: Path) -> FileContent:
    shown = f"python:{name}"
    _import_from(directory)
    sys.modules.pop(name, None)  # so that a reload reads the module again
    before = set(sys.modules)
    origin = None
    try:
        spec = importlib.util.find_spec(name)
        origin = spec and spec.origin
        module = importlib.import_module(name)
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        raise _config_raised(error, origin or name, shown) from error
    source = Path(origin).read_bytes() if origin and origin[-3:] == ".py" else b""
    content = _from_namespace(vars(module), shown, source, gunicorn="gunicorn" in name)
    content.modules = tuple(sorted(set(sys.modules) - before))
    return content


def _import_from(directory: Path) -> None:
    importlib.invalidate_caches()
    if str(directory) not in sys.path:
        sys.path.insert(0, str(directory))


def _config_raised(error: BaseException, filename: str, shown: str) -> ConfigError:
    if isinstance(error, SyntaxError) and error.filename == filename:
        return ConfigError(f"{shown}:{error.lineno}: {type(error).__name__}: {error.msg}")
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if frame.filename == filename]
    where = f"{shown}:{own[-1].lineno}" if own else shown
    line = f" in `{own[-1].line}`" if own and own[-1].line else ""
    if isinstance(error, SyntaxError):
        text = f"{type(error).__name__}: {error}"  # the error is in a module that the file imports
    else:
        text = "".join(traceback.format_exception_only(type(error), error)).strip()
    return ConfigError(f"{where}: {text}{line}")


def _from_namespace(
    namespace: Mapping[str, object], shown: str, text: bytes, *, gunicorn: bool
) -> FileContent:
    content = FileContent()
    tree = ast.parse(text)
    lines = _assignment_lines(tree)
    used_names = _names_read(tree)
    for name, value in namespace.items():
        if name.startswith("_") or isinstance(value, ModuleType):
            continue
        source = f"{shown}:{lines[name]}" if name in lines else shown
        setting = canonical(name)
        if setting is not None:
            # None means "not set": a file may pass on the result of os.environ.get.
            if value is not None and SETTINGS[setting].in_files and not _is_app_object(name, value):
                optional = gunicorn and name not in SHARED
                content.values[setting] = Given(value, source, optional=optional)
        elif name in HOOKS:
            if value is not None:
                content.hooks[name] = read_hook(name, value, source)
        elif name in FOREIGN:
            content.notes += _foreign_note(name, value, source)
        elif name not in used_names:
            content.notes += _near_miss(name, value, source, namespace)
    return content


def _is_app_object(name: str, value: object) -> bool:
    # A file may contain `from myapp import app`, for use in a hook. This doesn't set `app`.
    return name == "app" and not isinstance(value, str)


def _near_miss(
    name: str, value: object, source: str, namespace: Mapping[str, object]
) -> list[Note]:
    if isinstance(value, type):
        return []
    if peer_of(name) is not None and not callable(value):
        # A single word, such as hypercorn's `debug`, is likely one of the file's own variables.
        warning = f"{name} ({source}) is not a setting{advise(name)}"
        return [("warning", warning)] if "_" in name else []
    found = nearest(name, HOOKS, _NEAR_MISS) if callable(value) else suggest(name, _NEAR_MISS)
    # A file may have a constant with the setting's name in capitals, beside the setting itself.
    if found is None or (found in namespace and found == name.lower()):
        return []
    return [("warning", f"{name} ({source}) is not a setting; did you mean {found}?")]


def _names_read(tree: ast.Module) -> set[str]:
    """The names that the file's own code reads: they are variables, not misspelt settings."""
    nodes = (node for node in ast.walk(tree) if isinstance(node, ast.Name))
    return {node.id for node in nodes if isinstance(node.ctx, ast.Load)}


def _assignment_lines(tree: ast.Module) -> dict[str, int]:
    """The last line that binds each global name, found in the file's syntax tree."""
    lines: dict[str, int] = {}
    pending: list[ast.AST] = [tree]
    while pending:
        node = pending.pop()
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            lines[node.name] = max(node.lineno, lines.get(node.name, 0))
            continue
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            lines[node.id] = max(node.lineno, lines.get(node.id, 0))
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            for alias in node.names:
                bound = (alias.asname or alias.name).split(".")[0]
                lines[bound] = max(node.lineno, lines.get(bound, 0))
        pending.extend(ast.iter_child_nodes(node))
    return lines
