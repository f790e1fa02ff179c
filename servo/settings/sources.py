"""Reads settings from all their sources: defaults < file < `SERVO_*` environment < flags.

`load_settings` reads the sources and returns immutable `Settings`. A reload calls it again.
"""

from __future__ import annotations

import os
import shlex
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from servo.errors import ConfigError, UsageError
from servo.http.limits import Limits
from servo.settings.config_hooks import Hooks
from servo.settings.cpus import auto_workers, count_cpus
from servo.settings.env_file import read_env_files
from servo.settings.files import FileContent, Given, read_config
from servo.settings.flags import parse_flags
from servo.settings.gunicorn_compat import (
    FOREIGN,
    SettingView,
    as_gunicorn_address,
    foreign_value,
)
from servo.settings.kubernetes import is_service_variable
from servo.settings.peer_flags import Translation, problems_report, translate
from servo.settings.schema import SETTINGS, advise_variable, canonical
from servo.settings.suggestions import did_you_mean
from servo.settings.workdir import without_dots

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence

    from servo.settings.files import Note

# The slot of a worker, in the environment of its application. PM2 has NODE_APP_INSTANCE for this.
SLOT_VARIABLE = "SERVO_SLOT"

_KEEPALIVE_S = 75.0  # above the usual 60 s of load balancers, so that these close first
_THREADS = 4
# SERVO_COMPILE belongs to the installation (build_backend.py). An image that sets it for `pip
# install` often keeps it for the server.
_NOT_OF_A_SETTING = ("SERVO_CMD_ARGS", "SERVO_COMPILE", SLOT_VARIABLE)
_NO_LIMIT = (1 << 31) - 1  # replaces 0 ("no limit"), because the limits in `Limits` always apply


class Settings:
    """The values of all settings, as attributes; they can't be changed.

    values           the settings' values by name; those left out have their defaults
    sources          where each value comes from, by name
    hooks            the server hooks of the configuration file
    config_modules   the modules that the file imported, for `drop_config_modules`
    notes            (level, text) of messages to log at the start
    directory        the real path of the working directory; None: that of `chdir`
    env_file_values  the variables that the files of `env_file` set
    cpus             counts the usable CPUs, for `workers = "auto"`
    """

    hooks: Hooks
    config_modules: tuple[str, ...]
    notes: tuple[Note, ...]

    def __init__(
        self,
        values: Mapping[str, Any],
        sources: Mapping[str, str],
        *,
        hooks: Hooks | None = None,
        config_modules: Sequence[str] = (),
        notes: Sequence[Note] = (),
        directory: str | None = None,
        env_file_values: Mapping[str, str] | None = None,
        cpus: Callable[[], int] = count_cpus,
    ) -> None:
        keep = super().__setattr__
        # They are plain attributes, not properties, because workers read some with each request.
        vars(self).update({name: values.get(name, s.default) for name, s in SETTINGS.items()})
        keep("_sources", dict(sources))
        keep("_cpus", cpus() if values.get("workers") == "auto" else 0)
        keep("hooks", hooks or Hooks({}))
        keep("config_modules", tuple(config_modules))
        keep("notes", tuple(notes))
        keep("_env_file_values", dict(env_file_values or {}))
        keep("_directory", directory or os.path.realpath(self.chdir or "."))

    def __getattr__(self, name: str) -> Any:
        # Python calls this only for names that aren't attributes. Hooks written for gunicorn may
        # use gunicorn's names.
        ours = canonical(name)
        if ours is not None and ours != name:
            return getattr(self, ours)
        if name in FOREIGN:
            return foreign_value(name)
        raise AttributeError(f"there is no setting {name!r}{did_you_mean(name, list(SETTINGS))}")

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError("settings can't be changed; a reload makes new ones")

    def __delattr__(self, name: str) -> None:
        raise AttributeError("settings can't be changed; a reload makes new ones")

    def __repr__(self) -> str:
        given = [name for name in SETTINGS if self.source(name) != "default"]
        shown = (
            f"{name}=…"
            if SETTINGS[name].secret or SETTINGS[name].names_only
            else f"{name}={getattr(self, name)!r}"
            for name in given
        )
        return f"Settings({', '.join(shown)})"

    @property
    def settings(self) -> dict[str, SettingView]:
        """gunicorn's `cfg.settings`: each setting as an object with `value` and `get()`."""
        views = {
            name: SettingView(name, getattr(self, name), setting.default, setting.section)
            for name, setting in SETTINGS.items()
            if not setting.secret
        }
        views.update({s.alias: views[s.name] for s in SETTINGS.values() if s.alias})
        views.update({n: SettingView(n, foreign_value(n), foreign_value(n), "") for n in FOREIGN})
        return views

    @property
    def address(self) -> list[tuple[str, int] | str]:
        """gunicorn's `cfg.address`: `bind` as (host, port), or the path of a Unix socket."""
        return [as_gunicorn_address(text) for text in self.bind]

    @property
    def is_ssl(self) -> bool:
        """gunicorn's `cfg.is_ssl`."""
        return bool(self.certfile or self.keyfile or self.self_signed)

    @property
    def worker_class_str(self) -> str:
        """gunicorn's `cfg.worker_class_str`, with our names of the worker classes."""
        chosen: str = self.worker_class
        return chosen if chosen == "auto" else self.worker_class_for(self.interface)

    @property
    def uid(self) -> Any:
        """gunicorn's `cfg.uid`: `user`."""
        return self.user

    @property
    def gid(self) -> Any:
        """gunicorn's `cfg.gid`: `group`."""
        return self.group

    def source(self, name: str) -> str:
        """Where a value comes from, such as "default", "servo.toml:3" or "flag --workers"."""
        sources: dict[str, str] = self._sources
        return sources.get(name, "default")

    def show(self, name: str) -> str:
        """A setting's value as text for people, without secrets."""
        return SETTINGS[name].show(getattr(self, name))

    @property
    def directory(self) -> str:
        """The working directory: the one that `chdir` led to when these settings were read.

        So all workers of a generation run the same release, even if a link in `chdir` changes
        meanwhile, and workers started after a roll-back run the old release. If that directory has
        been removed, this is the one to which `chdir` leads now.
        """
        resolved: str = self._directory
        return resolved if os.path.isdir(resolved) else os.path.realpath(self.chdir)

    @property
    def limits(self) -> Limits:
        """The limits that HTTP connections enforce."""
        return Limits(
            request_line=self.limit_request_line or _NO_LIMIT,
            header_count=self.limit_request_fields or _NO_LIMIT,
            header_field=self.limit_request_field_size or _NO_LIMIT,
            header_total=self.limit_request_head_size or _NO_LIMIT,
            body=self.limit_request_body,
            trailer_count=self.limit_request_trailers,
            chunk_extension=self.limit_chunk_extension,
            pipeline_depth=self.limit_pipeline,
            strict_targets=self.strict_targets,
        )

    @property
    def response_lines(self) -> bytes:
        """`response_headers` as the lines of a response's head."""
        return "".join(f"{line}\r\n" for line in self.response_headers).encode("latin-1")

    @property
    def env(self) -> dict[str, str]:
        """The environment variables for the app: those of `env_file`, and those of `raw_env`."""
        pairs = (pair.partition("=") for pair in self.raw_env)
        return {**self._env_file_values, **{name: value for name, _, value in pairs}}

    @property
    def worker_count(self) -> int:
        """The number of workers to run, as far as the settings alone determine it.

        If the worker class depends on the app's interface, and the interface isn't set, this
        assumes one worker per CPU. Callers that know the class use `worker_count_for`.
        """
        known = self.worker_class != "auto" or self.interface != "auto"
        return self.worker_count_for(self.worker_class_for(self.interface) if known else "thread")

    def worker_count_for(self, worker_class: str) -> int:
        """The number of workers to run; with autoscaling, the minimum.

        worker_class   the workers' class: "sync", "thread", "async" or a dotted path
        """
        workers: int | str = self.workers
        if isinstance(workers, int):
            return workers
        if workers == "auto":
            return auto_workers(self._cpus, worker_class)
        return int(workers.partition(":")[0])

    @property
    def max_workers(self) -> int:
        """The maximum of autoscaling (`workers = MIN:MAX`); 0 if the number is fixed."""
        workers: int | str = self.workers
        return int(str(workers).partition(":")[2] or 0)

    def worker_class_for(self, interface: str) -> str:
        """The worker class for an app: "sync", "thread", "async", or the dotted path of a class.

        interface   the app's interface: "wsgi" or "asgi"
        """
        chosen: str = self.worker_class
        if chosen == "auto":
            chosen = "async" if interface == "asgi" else "sync"
        return "thread" if chosen == "sync" and self.threads > 1 else chosen

    @property
    def thread_count(self) -> int:
        """The number of threads in which a `thread` or `async` worker runs a WSGI app."""
        return _THREADS if self.source("threads") == "default" else int(self.threads)

    @property
    def keepalive_s(self) -> float:
        """How long an idle connection is kept open, in seconds; 0: not at all."""
        return _KEEPALIVE_S if self.keepalive is None else float(self.keepalive)

    def needs_restart(self, new: Settings) -> list[str]:
        """The names of the settings that differ in `new` but that a reload can't apply."""
        return [
            name
            for name, setting in SETTINGS.items()
            if not setting.reloadable and getattr(self, name) != getattr(new, name)
        ]


def load_settings(
    flags: Mapping[str, object],
    environ: Mapping[str, str],
    directory: Path,
    report: Callable[[str], None] | None = None,
    *,
    search: bool = True,
    at_terminal: bool = False,
) -> Settings:
    """Read the settings from all sources.

    flags       the command line's flags, as `servo.settings.flags.parse_flags` returns them
    environ     the environment at the start
    directory   the directory that the server was started in; absolute
    report      is called with the text of each of `Settings.notes`
    search      whether to search for a configuration file if none is named
    at_terminal whether standard output is a terminal; if so, `reload` turns the access log on

    Raises ConfigError for a file that can't be read, an unknown name or an invalid value, and
    UsageError for an invalid value on the command line.
    """
    notes: list[Note] = []
    environment = _environment_layer(environ, notes)
    command_line = _translated(flags, environ)
    given_flags = _flag_layer(command_line, "flag", notes)
    overrides = {**environment, **given_flags}
    config = _early(overrides, "config")
    directories = _directories(directory, _early(overrides, "chdir"))
    content = FileContent()
    if config or search:
        content = read_config(config, directories, _early(overrides, "app"))
    if content.chosen:  # what was given as the app is the name of a table
        environment.pop("app", None)
        given_flags.pop("app", None)
    notes[:0] = content.notes
    layers = [content.values, environment, given_flags]
    defaults = _default_layer(environ)
    if at_terminal:
        defaults |= _development_layer(layers)
    settings = _merge(
        [defaults, *layers],
        directory,
        content,
        notes,
        command_line,
        environ,
    )
    if report is not None:
        for _, text in settings.notes:
            report(text)
    return settings


def take_secrets(environ: MutableMapping[str, str]) -> dict[str, str]:
    """Copy the environment for reading settings, and remove the variables of secrets from it.

    Applications log their environment, pass it to programs that they start, and show it on error
    pages, so it must not contain secrets. If the environment is os.environ, this also overwrites
    the kernel's copy (/proc/PID/environ).

    environ   the environment to copy and clean
    """
    copy = dict(environ)
    for name, setting in SETTINGS.items():
        variable = f"SERVO_{name.upper()}"
        if setting.secret and variable in environ:
            if environ is os.environ:
                _wipe(variable)
            del environ[variable]
    return copy


def _wipe(variable: str) -> None:
    import ctypes  # rarely needed

    getenv = ctypes.CDLL(None).getenv
    getenv.restype = ctypes.c_void_p
    where = getenv(os.fsencode(variable))
    if where:
        ctypes.memset(where, ord("x"), len(ctypes.string_at(where)))


def drop_config_modules(settings: Settings) -> None:
    """Remove modules that the configuration file imported from `sys.modules`.

    A worker calls this before it imports the app. Otherwise the app would get those modules as the
    arbiter has loaded them, perhaps in an older version. Installed packages stay: they don't change
    with a deployment, and some can't be loaded twice.

    settings   the settings of the generation
    """
    if not settings.config_modules:
        return
    import sysconfig  # slow, and only needed here

    installed = {
        sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")
    }
    for name in settings.config_modules:
        # Servo may run from a checkout. A second copy of its modules would have other classes: a
        # worker whose configuration imports servo.cluster would not recognise the order to stop.
        if name.partition(".")[0] == "servo":
            continue
        file = getattr(sys.modules.get(name), "__file__", None)
        parts = Path(file).parts if file else ()
        if not parts or {"site-packages", "dist-packages"}.intersection(parts):
            continue
        if not any(
            path and Path(path).parts == parts[: len(Path(path).parts)] for path in installed
        ):
            del sys.modules[name]


# --- the layers -------------------------------------------------------------------------------


def _default_layer(environ: Mapping[str, str]) -> dict[str, Given]:
    layer = {}
    for name, setting in SETTINGS.items():
        default = setting.default_from
        if default is not None and environ.get(default.variable, "").strip():
            text = default.text(environ[default.variable])
            layer[name] = Given(text, f"environment {default.variable}", is_text=True)
    return layer


def _development_layer(layers: Sequence[Mapping[str, Given]]) -> dict[str, Given]:
    """What `reload` changes at a terminal: there, a developer wants to see each request."""
    given = next((each["reload"] for each in reversed(layers) if "reload" in each), None)
    try:
        if given is None or not _read("reload", given):
            return {}
    except ConfigError:
        return {}  # it is reported later, with all other problems
    return {"accesslog": Given("-", f"{given.source}, at a terminal")}


def _environment_layer(environ: Mapping[str, str], notes: list[Note]) -> dict[str, Given]:
    layer = _argument_layer(environ, notes)
    services: list[str] = []
    for variable, text in environ.items():
        name = variable.removeprefix("SERVO_")
        # Skip the variables with two underscores (SERVO__…), which Servo's own processes use
        # between themselves, and SERVO_SLOT, which a server inherits if a worker's app starts it.
        if name == variable or name.startswith("_") or variable in _NOT_OF_A_SETTING:
            continue
        source = f"environment {variable}"
        setting = canonical(name.lower())
        if _is_from_kubernetes(variable, text, setting):
            services.append(variable)
        elif setting is not None and name == name.upper():
            layer[setting] = Given(text, source, is_text=True)
        elif name.lower() in FOREIGN:
            foreign = FOREIGN[name.lower()]
            notes += [("warning", foreign.note(source))] if foreign.matters(text) else []
        else:
            raise ConfigError(
                f"there is no setting for the environment variable {variable}"
                f"{advise_variable(variable)}"
            )
    if services:
        shown = ", ".join(sorted(services))
        notes.append(("debug", f"ignoring Kubernetes' variables for services: {shown}"))
    return layer


def _is_from_kubernetes(variable: str, text: str, setting: str | None) -> bool:
    """Whether Kubernetes has set a variable for a service.

    Such a variable may have a setting's name: a service `servo-reuse` creates SERVO_REUSE_PORT. If
    the text is a valid value of the setting, it counts as a setting.
    """
    if not is_service_variable(variable, text):
        return False
    if setting is None:
        return True
    try:
        SETTINGS[setting].read(text, variable, is_text=True)
    except ConfigError:
        return True
    return False


def _argument_layer(environ: Mapping[str, str], notes: list[Note]) -> dict[str, Given]:
    """The flags in SERVO_CMD_ARGS or, if that isn't set, in GUNICORN_CMD_ARGS."""
    variable = "SERVO_CMD_ARGS" if "SERVO_CMD_ARGS" in environ else "GUNICORN_CMD_ARGS"
    text = environ.get(variable, "")
    if not text.strip():
        return {}
    if variable == "GUNICORN_CMD_ARGS":
        notes.append(("info", "reading GUNICORN_CMD_ARGS: there is no SERVO_CMD_ARGS"))
    try:
        found = _translated(parse_flags(shlex.split(text)), environ)
        if found.refused:
            raise UsageError(problems_report((), found))
    except (UsageError, ValueError) as error:
        raise ConfigError(f"{error} (environment {variable})") from error
    return _flag_layer(found, f"environment {variable},", notes)


def _translated(flags: Mapping[str, object], environ: Mapping[str, str]) -> Translation:
    """Turn flags of other servers into settings. Raises UsageError."""
    try:
        return translate(flags, environ)
    except ValueError as error:
        raise UsageError(str(error)) from error


def _flag_layer(flags: Translation, origin: str, notes: list[Note]) -> dict[str, Given]:
    layer = {}
    for name, value in flags.values.items():
        if name not in SETTINGS:
            raise UsageError(f"there is no setting {name}{did_you_mean(name, list(SETTINGS))}")
        shown = flags.sources.get(name, SETTINGS[name].main_flag) if name != "app" else "APP"
        layer[name] = Given(
            value, "command line" if (name, origin) == ("app", "flag") else f"{origin} {shown}"
        )
    if flags.ignored:
        notes.append(("warning", flags.report(origin)))
    return layer


def _early(layer: Mapping[str, Given], name: str) -> str | None:
    given = layer.get(name)
    if given is None:
        return None
    value: str | None = SETTINGS[name].read(given.value, given.source, is_text=given.is_text)
    return value


def _directories(start: Path, chdir: str | None) -> list[Path]:
    return [start] if chdir is None else [start, start / chdir]


# --- joining them -----------------------------------------------------------------------------


def _merge(
    layers: list[Mapping[str, Given]],
    directory: Path,
    content: FileContent,
    notes: list[Note],
    command_line: Translation,
    environ: Mapping[str, str],
) -> Settings:
    values: dict[str, Any] = {}
    sources: dict[str, str] = {}
    problems: list[str] = []  # of the command line, to report them together
    for layer in layers:
        for name, given in layer.items():
            try:
                values[name] = _read(name, given)
            except ConfigError as error:
                if given.source.startswith("flag "):
                    problems.append(str(error))
                    command_line.values.pop(name)
                    continue
                if not given.optional:
                    raise
                notes.append(("warning", f"{error}; ignoring it as a variable of the file's own"))
                continue
            sources[name] = given.source
    if problems or command_line.refused:
        raise UsageError(problems_report(problems, command_line))
    base = directory / (values.get("chdir") or ".")
    if values.get("chdir") is None and not base.is_dir():
        raise ConfigError(f"the directory {base} no longer exists")
    for name, value in values.items():
        with _usage_errors(sources[name]):
            SETTINGS[name].check(value, sources[name], directory if name == "chdir" else base)
    _check_memory_limits(values, sources)
    _check_molds(values, sources)
    values["chdir"] = str(without_dots(base))
    return Settings(
        values,
        sources,
        hooks=Hooks(content.hooks),
        config_modules=content.modules,
        notes=notes,
        directory=str(base.resolve()),
        env_file_values=read_env_files(
            values.get("env_file") or (), base, environ, sources.get("env_file", "")
        ),
    )


def _check_memory_limits(values: Mapping[str, Any], sources: Mapping[str, str]) -> None:
    """Refuse a hard limit that leaves no room for the soft one."""
    names = ("max_worker_memory", "max_worker_memory_hard")
    soft, hard = (values.get(name) or 0 for name in names)
    if type(soft) is not type(hard) or not (soft and hard):
        return  # a percentage and a number of bytes can only be compared when the server runs
    amounts = [int(str(value).removesuffix("%")) for value in (soft, hard)]
    if amounts[1] <= amounts[0]:
        name = names[1]
        with _usage_errors(sources[name]):
            raise ConfigError(
                f"{name}: {hard} is not more than max_worker_memory, {soft} ({sources[name]}); "
                "a worker is replaced at max_worker_memory and killed at the higher limit"
            )


def _check_molds(values: Mapping[str, Any], sources: Mapping[str, str]) -> None:
    """Refuse settings of molds without molds."""
    for name in ("refork_after", "warm_up"):
        if not values.get(name) or values.get("preload_app"):
            continue
        value, source = values[name], sources[name]
        shown = ", ".join(value) if isinstance(value, list) else value
        with _usage_errors(source):
            raise ConfigError(
                f"{name}: {shown} has no effect without preload_app ({source}); "
                f"add --preload, or leave {name} out"
            )


def _read(name: str, given: Given) -> Any:
    with _usage_errors(given.source):
        return SETTINGS[name].read(given.value, given.source, is_text=given.is_text)


@contextmanager
def _usage_errors(source: str) -> Iterator[None]:
    """Turn a ConfigError about a value on the command line into a UsageError."""
    try:
        yield
    except ConfigError as error:
        if source.startswith("flag "):
            raise UsageError(str(error)) from error
        raise
