"""Loads the application that a command line or a setting names.

The forms are:

    module:attribute          attribute may be dotted
    module                    its `app`, `application` or `create_app()`
    module:factory(…)         called, with literal arguments
    path/to/file.py[:…]       the same, by file

Every failure is an `AppImportError`. Its message says what to do. Its `details` are the traceback,
reduced to the frames of the app.
"""

from __future__ import annotations

import ast
import functools
import importlib
import importlib.util
import os
import sys
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from servo.apps.interface import detect_interface, looks_like_factory
from servo.errors import AppImportError
from servo.settings.files import is_file
from servo.settings.suggestions import nearest

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import ModuleType

    from servo._types import ASGI2App, Receive, Scope, Send
    from servo.settings.sources import Settings

FORMS = "module:attribute, module, module:factory() or path/to/file.py:attribute"
DEFAULTS = ("app", "application", "create_app()")
_SERVO = str(Path(__file__).resolve().parents[1]) + os.sep


@dataclass(frozen=True, slots=True)
class LoadedApp:
    """An application, ready to be called.

    app        the callable
    interface  "wsgi" or "asgi"
    is_asgi2   whether `app` wraps a double callable of ASGI 2
    """

    app: Any
    interface: str
    is_asgi2: bool = False


@dataclass(frozen=True, slots=True)
class _Call:
    """The part after the colon: a dotted attribute and, for a factory, its arguments."""

    path: tuple[str, ...]
    arguments: tuple[tuple[Any, ...], dict[str, Any]] | None = None

    def __str__(self) -> str:
        return ".".join(self.path) + ("" if self.arguments is None else "()")


def load_app(spec: str, interface: str = "auto") -> LoadedApp:
    """Import an app. Raises `AppImportError`.

    spec       the name of the app, in one of the forms above
    interface  "wsgi" or "asgi", or "auto" to recognise it
    """
    target, calls = _parse(spec)
    module = _import_file(target) if _is_path(target) else _import_module(target)
    app, call = _find(module, target, calls)
    return _judge(app, f"{target}:{call}", interface)


def load_function(spec: str) -> Callable[..., Any]:
    """Import a function. Raises `AppImportError`.

    spec  "module:function"; the function may be a dotted name
    """
    target, calls = _parse(spec)
    found, _ = _find(_import_module(target), target, calls)
    if not callable(found):
        raise AppImportError(f"{spec} can't be called: it is {_kind(found)}")
    function: Callable[..., Any] = found
    return function


def named_app(app: Any, name: str, interface: str = "auto") -> LoadedApp:
    """Make a `LoadedApp` from an object. Raises `AppImportError` if it is not an app.

    app        the object
    name       its name for messages
    interface  "wsgi" or "asgi", or "auto" to recognise it
    """
    return _judge(app, name, interface)


def prepare_import_path(settings: Settings) -> None:
    """Put the app's directory and then those of `pythonpath` at the front of sys.path.

    settings  has `chdir` and `pythonpath`

    Resolves links. Deployments often switch a link to the next release, but all modules of the app
    must come from the same release, even those that are imported later.
    """
    named, base = Path(settings.chdir), Path(settings.directory)
    for entry in ("", *reversed(settings.pythonpath)):
        directory = named / entry
        if directory.is_relative_to(named):
            directory = base / directory.relative_to(named)
        path = os.path.realpath(directory)
        for other in (path, str(named / entry)):
            if other in sys.path:
                sys.path.remove(other)
        sys.path.insert(0, path)


def add_directory_of(spec: str) -> None:
    """Let the functions of an app be imported, without the app.

    spec   the name of the app. If it names a file, the file's directory is put into sys.path, as
           `load_app` does
    """
    target, _ = _parse(spec)
    if _is_path(target):
        root = str(_package_root(Path(target).expanduser().resolve()))
        if root not in sys.path:
            sys.path.insert(0, root)


# --- the text ---------------------------------------------------------------------------------


def _is_path(target: str) -> bool:
    return target.endswith(".py") or os.sep in target


def _parse(spec: str) -> tuple[str, list[_Call]]:
    """The module or path, and the attributes to try in it, in this order."""
    target, colon, expression = spec.strip().partition(":")
    if not target or (colon and not expression.strip()):
        raise AppImportError(f"{spec!r} names no app; the forms are {FORMS}")
    if not _is_path(target) and not all(part.isidentifier() for part in target.split(".")):
        raise AppImportError(f"{target!r} is not the name of a module; the forms are {FORMS}")
    expressions = (expression,) if colon else DEFAULTS
    return target, [_parse_call(text.strip(), spec) for text in expressions]


def _parse_call(text: str, spec: str) -> _Call:
    try:
        node: ast.expr = ast.parse(text, mode="eval").body
    except (SyntaxError, ValueError) as error:
        raise AppImportError(f"{text!r} in {spec!r} is neither an attribute nor a call") from error
    if not isinstance(node, ast.Call):
        return _Call(_dotted(node, spec))
    try:
        positional = tuple(ast.literal_eval(argument) for argument in node.args)
        keywords = {keyword.arg: ast.literal_eval(keyword.value) for keyword in node.keywords}
    except ValueError as error:
        raise AppImportError(
            f"the arguments in {spec!r} must be literals, such as 'x' or 3"
        ) from error
    if None in keywords:
        raise AppImportError(f"the arguments in {spec!r} must be written out, without **")
    return _Call(_dotted(node.func, spec), (positional, {k: v for k, v in keywords.items() if k}))


def _dotted(node: ast.expr, spec: str) -> tuple[str, ...]:
    if isinstance(node, ast.Name):
        return (node.id,)
    if isinstance(node, ast.Attribute):
        return (*_dotted(node.value, spec), node.attr)
    raise AppImportError(
        f"the part after the colon of {spec!r} must be an attribute or a call of one"
    )


# --- importing --------------------------------------------------------------------------------


def _import_module(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except KeyboardInterrupt:
        raise
    except ModuleNotFoundError as error:
        if not _app_frames(error) and error.name and f"{name}.".startswith(f"{error.name}."):
            raise _module_not_found(name, error.name) from error
        raise _import_failed(name, error) from error
    except BaseException as error:
        raise _import_failed(name, error) from error


def _import_file(target: str) -> ModuleType:
    """Import a file under its full module name, from its topmost package."""
    path = Path(target).expanduser().resolve()
    try:
        exists = is_file(path)
    except OSError as error:  # a directory in the path can't be searched
        raise AppImportError(f"{path} can't be looked for: {error.strerror}") from error
    if not exists:
        raise _file_not_found(target, path)
    root = _package_root(path)
    if str(root) not in sys.path:
        sys.path.insert(0, str(root))
    name = ".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__")
    if "." in name:
        return _import_module(name)
    loaded = sys.modules.get(name)
    if loaded is not None and getattr(loaded, "__file__", None) == str(path):
        return loaded
    # If another module of this name is loaded (the file is called queue.py or test.py), give the
    # app another name.
    return _execute_file(name if loaded is None else f"servo_app_{name}", path)


def _package_root(path: Path) -> Path:
    """The directory that must be in sys.path to import a file under its full module name."""
    root = path.parent
    while (root / "__init__.py").is_file():
        root = root.parent
    return root


def _execute_file(name: str, path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise AppImportError(f"{path} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException as error:
        del sys.modules[name]
        if isinstance(error, KeyboardInterrupt):
            raise
        raise _import_failed(str(path), error) from error
    return module


def _import_failed(name: str, error: BaseException) -> AppImportError:
    if isinstance(error, SystemExit):
        what = f"it called sys.exit({error.code!r})"
    else:
        # The first line that is not indented: the lines before it show the source of a SyntaxError,
        # and those after it continue a long message.
        lines = "".join(traceback.format_exception_only(type(error), error)).splitlines()
        what = next((line for line in lines if line and not line[0].isspace()), lines[-1])
    return AppImportError(f"importing {name} failed: {what}", _details(error))


def _module_not_found(name: str, missing: str) -> AppImportError:
    parent, _, leaf = missing.rpartition(".")
    if parent:
        package = sys.modules.get(parent)
        directories = [Path(entry) for entry in getattr(package, "__path__", [])]
        if not directories:
            return AppImportError(f"there is no module {name!r}: {parent!r} is not a package")
    else:
        directories = _app_directories()
    looked = ", ".join(map(str, directories))
    found = nearest(leaf, _importable(directories))
    suggestion = f"; did you mean {'.'.join(filter(None, (parent, found)))}?" if found else ""
    whole = "" if missing == name else f" (of {name!r})"
    also = "" if parent else " and the rest of sys.path"
    return AppImportError(
        f"there is no module {missing!r}{whole} in {looked}{also}{suggestion}"
        + ("" if found else "; --chdir or --pythonpath says where to look")
    )


def _app_directories() -> list[Path]:
    """The directories of sys.path that may hold an app: neither Python's nor site-packages."""
    paths = [Path(entry).resolve() for entry in sys.path]
    python = {Path(prefix).resolve() for prefix in (sys.prefix, sys.base_prefix)}
    return [
        path
        for path in dict.fromkeys(paths)
        if path.is_dir() and "site-packages" not in path.parts and python.isdisjoint(path.parents)
    ]


def _importable(directories: list[Path]) -> list[str]:
    return [
        entry.stem
        for directory in directories
        if directory.is_dir()
        for entry in directory.iterdir()
        if entry.suffix == ".py" or (entry / "__init__.py").is_file()
    ]


def _file_not_found(target: str, path: Path) -> AppImportError:
    files = [f"{name}.py" for name in _importable([path.parent])]
    found = nearest(path.name, files)
    suggestion = f"; did you mean {Path(target).with_name(found)}?" if found else ""
    return AppImportError(f"there is no file {target} (looked for {path}){suggestion}")


# --- looking into the module ------------------------------------------------------------------


def _find(module: ModuleType, target: str, calls: list[_Call]) -> tuple[Any, _Call]:
    for call in calls:
        if len(calls) == 1 or hasattr(module, call.path[0]):
            try:
                found = _attribute(module, target, call.path)
            except KeyboardInterrupt:
                raise
            except BaseException as error:
                # The look-up may have run code of the app: a module's __getattr__, or a property.
                if isinstance(error, AppImportError):
                    raise
                raise _import_failed(f"{target}:{call}", error) from error
            if call.arguments is not None:
                found = _call_factory(found, f"{target}:{call}", *call.arguments)
            return found, call
    apps = [name for name, value in vars(module).items() if _is_instance_of_app(value)]
    suggestion = f"; did you mean {target}:{apps[0]}?" if apps else f"; say {target}:NAME"
    raise AppImportError(f"{target} has no app, application or create_app{suggestion}")


def _is_instance_of_app(value: object) -> bool:
    is_object = callable(value) and hasattr(type(value), "__module__")
    plain = isinstance(value, type) or type(value).__module__ in ("builtins", "typing", "functools")
    return is_object and not plain and detect_interface(value) is not None


def _attribute(module: ModuleType, target: str, path: tuple[str, ...]) -> Any:
    found: Any = module
    for depth, name in enumerate(path):
        if not hasattr(found, name):
            owner = ":".join(filter(None, (target, ".".join(path[:depth]))))
            known = [other for other in dir(found) if not other.startswith("__")]
            similar = nearest(name, known)
            suggestion = f"; did you mean {similar}?" if similar else ""
            raise AppImportError(f"{owner} has no attribute {name!r}{suggestion}")
        found = getattr(found, name)
    return found


def _call_factory(
    factory: Any, name: str, positional: tuple[Any, ...], keywords: dict[str, Any]
) -> Any:
    if not callable(factory):
        raise AppImportError(f"{name} can't be called: it is {_kind(factory)}")
    try:
        app = factory(*positional, **keywords)
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        if isinstance(error, TypeError) and not _app_frames(error):
            raise AppImportError(f"{name} doesn't take these arguments: {error}") from error
        raise _import_failed(name, error) from error
    if hasattr(app, "__await__") and hasattr(app, "close"):
        app.close()  # or Python would warn that it was never awaited
        raise AppImportError(f"{name} is a coroutine function; a factory must be a plain one")
    if app is None:
        raise AppImportError(f"{name} returned None instead of an app")
    return app


# --- the interface ----------------------------------------------------------------------------


def _judge(app: Any, name: str, interface: str) -> LoadedApp:
    detected = detect_interface(app)
    if interface == "wsgi" and callable(app):
        return LoadedApp(app, "wsgi")
    if detected == "asgi2":
        return LoadedApp(functools.partial(_call_asgi2, app), "asgi", is_asgi2=True)
    if interface == "asgi" and callable(app):
        return LoadedApp(app, "asgi")
    if looks_like_factory(app):
        raise AppImportError(f"{name} looks like a factory; write {name}() to call it")
    if isinstance(app, type):
        raise AppImportError(f"{name} is a class; name an instance, or write {name}() to make one")
    if detected is None:
        raise AppImportError(f"{name} is {_kind(app)}, neither a WSGI nor an ASGI app")
    return LoadedApp(app, detected)


async def _call_asgi2(app: ASGI2App, scope: Scope, receive: Receive, send: Send) -> None:
    await app(scope)(receive, send)


def _kind(value: object) -> str:
    return f"an object of type {type(value).__name__}"


# --- tracebacks -------------------------------------------------------------------------------


def _is_ours(filename: str) -> bool:
    return filename.startswith((_SERVO, "<frozen importlib")) or os.path.dirname(
        filename
    ) == os.path.dirname(importlib.__file__)


def _app_frames(error: BaseException) -> list[traceback.FrameSummary]:
    frames = traceback.extract_tb(error.__traceback__)
    return [frame for frame in frames if not _is_ours(frame.filename)]


def _details(error: BaseException) -> str:
    """The traceback, without the frames of Servo and of the import system."""
    whole = traceback.TracebackException.from_exception(error)
    pending = [whole]
    while pending:
        part = pending.pop()
        kept = [frame for frame in part.stack if not _is_ours(frame.filename)]
        part.stack = traceback.StackSummary.from_list(kept)
        pending += [chained for chained in (part.__cause__, part.__context__) if chained]
        pending += getattr(part, "exceptions", None) or []
    return "".join(whole.format()).rstrip("\n")


__all__ = [
    "FORMS",
    "LoadedApp",
    "load_app",
    "load_function",
    "named_app",
    "prepare_import_path",
]
