"""The user's own logging configuration: logconfig (a file), logconfig_json and logconfig_dict.

The standard library applies it after Servo's own setup. Configurations written for gunicorn or
uvicorn work unchanged: the logger names `gunicorn` and `uvicorn` are read as `servo`,
`gunicorn.error` as `servo.error`, and so on. Loggers that the configuration does not name keep
Servo's handlers. If it configures `servo.access`, access-log records go through logging.
"""

from __future__ import annotations

import logging
import os
import re
import stat
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol, cast

from servo.errors import ConfigError
from servo.safe_files import check_appendable, open_to_append

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from configparser import ConfigParser
    from io import TextIOWrapper

    from servo.logs.user_config_file import LogConfigFile

_OURS = ("servo.error", "servo.access")

# gunicorn defines these handlers, so its users refer to them without defining them.
_DEFAULT_HANDLERS = {
    "console": {
        "class": "logging.StreamHandler",
        "formatter": "generic",
        "stream": "ext://sys.stdout",
    },
    "error_console": {
        "class": "logging.StreamHandler",
        "formatter": "generic",
        "stream": "ext://sys.stderr",
    },
}
_DEFAULT_FORMATTERS = {
    "generic": {
        "format": "%(asctime)s [%(process)d] [%(levelname)s] %(message)s",
        "datefmt": "[%Y-%m-%d %H:%M:%S %z]",
        "class": "logging.Formatter",
    }
}

# uvicorn's formatter classes expect uvicorn's records, and may not be installed. They are replaced
# by those of the standard library, and their special fields by ordinary ones.
_UVICORN_FORMATTERS = "uvicorn.logging."
_UVICORN_FIELDS = {
    "%(levelprefix)s": "%(levelname)s:",
    '%(client_addr)s - "%(request_line)s" %(status_code)s': "%(message)s",
}


class UserConfig(Protocol):
    """The settings that this module reads."""

    @property
    def logconfig(self) -> str | None: ...
    @property
    def logconfig_json(self) -> str | None: ...
    @property
    def logconfig_dict(self) -> Mapping[str, Any] | None: ...


def apply_user_config(settings: UserConfig) -> bool:
    """Apply the first of logconfig_dict, logconfig_json and logconfig that is set.

    Returns whether one is set. Raises ConfigError if the file can't be read or the configuration
    can't be applied.

    The log files of the configuration are opened and reopened like Servo's own: root does not
    follow a link that another user may have made (see servo.safe_files).
    """
    with _opening_files_with(open_safely):
        found = _apply(settings)
    for _, handler in _file_handlers() if found else ():
        # Leave a subclass that has its own `_open` as it is.
        if type(handler)._open is logging.FileHandler._open:
            handler._open = partial(open_safely, handler)  # type: ignore[method-assign]
    return found


def open_safely(handler: logging.FileHandler) -> TextIOWrapper:
    """Replaces `logging.FileHandler._open`; uses `servo.safe_files`. Raises OSError."""
    fd = open_to_append(handler.baseFilename).fd
    if "w" in handler.mode and stat.S_ISREG(os.fstat(fd).st_mode):
        os.ftruncate(fd, 0)
    mode = "ab" if "b" in handler.mode else "a"
    stream = open(fd, mode, encoding=handler.encoding, errors=handler.errors)  # noqa: SIM115
    return cast("TextIOWrapper", stream)


def _apply(settings: UserConfig) -> bool:
    file = None
    if settings.logconfig_dict:
        where = "logconfig_dict"
    elif settings.logconfig_json:
        where, file = "logconfig_json", _read("logconfig_json", settings.logconfig_json, "json")
    elif settings.logconfig:
        where, file = "logconfig", _read("logconfig", settings.logconfig)
    else:
        return False
    try:
        if file is None:
            named = _apply_dict(settings.logconfig_dict or {})
        elif file.parser is not None:
            named = _apply_ini(file.parser)
        else:
            named = _apply_dict(file.table)
    except Exception as error:  # the user's own handler class may raise any exception
        raise _apply_error(error, where, file) from error
    _keep_log_enabled(named)
    return True


def _read(setting: str, path: str, form: str = "") -> LogConfigFile:
    from servo.logs.user_config_file import read_log_config  # not needed otherwise

    try:
        return read_log_config(path, form)
    except ConfigError as error:
        raise ConfigError(f"{setting} {error}") from error


def _apply_error(error: Exception, setting: str, file: LogConfigFile | None) -> ConfigError:
    """The ConfigError for a configuration that can't be applied.

    It names the part and its place in the file. The reasons come from the chain of causes, because
    the standard library's own message is only "Unable to configure handler 'x'".
    """
    reasons: list[str] = []
    name = None
    cause: BaseException | None = error
    while cause is not None and len(reasons) < 5:
        text = f"{cause} is missing" if isinstance(cause, KeyError) else str(cause)
        text = " ".join((text or type(cause).__name__).split())
        if text not in reasons:
            reasons.append(text if len(text) <= 200 else text[:199] + "…")
        part = re.search(r"(?:handler|formatter|filter|logger) '([^']+)'", text)
        name = part[1] if part and name is None else name
        cause = cause.__cause__ or cause.__context__
    where = f"{setting} {file.where(name)}" if file is not None else setting
    first, *others = reasons
    return ConfigError(f"{where}: {first}" + (f" ({': '.join(others)})" if others else ""))


def _keep_log_enabled(named: set[str]) -> None:
    """Keep a configuration from silencing the server's own log by accident.

    named  the names of the configuration's loggers, as written there
    """
    for name in (*_OURS, "servo"):
        # disable_existing_loggers is meant for the application's loggers.
        logging.getLogger(name).disabled = False
    if "uvicorn" in named and not named & {"uvicorn.error", "gunicorn.error", "servo.error"}:
        # uvicorn's users often configure only the logger `uvicorn`, and expect that `uvicorn.error`
        # passes its records on to it.
        logger = logging.getLogger("servo.error")
        logger.handlers = []
        logger.propagate = True


def check_user_config(settings: UserConfig) -> None:
    """Raise the ConfigError that `apply_user_config` would raise. Creates and changes no file.

    This applies the configuration, but its file handlers open /dev/null: a check must not create,
    truncate or rotate a log.
    """
    before = {handler for _, handler in _file_handlers()}
    with _opening_files_with(_open_nothing):
        _apply(settings)
    for logger, handler in _file_handlers():
        if handler not in before:
            logger.removeHandler(handler)
            handler.close()


def _file_handlers() -> list[tuple[logging.Logger, logging.FileHandler]]:
    loggers = (logging.root, *logging.Logger.manager.loggerDict.values())
    return [
        (logger, handler)
        for logger in loggers
        if isinstance(logger, logging.Logger)
        for handler in logger.handlers
        if isinstance(handler, logging.FileHandler)
    ]


def _open_nothing(handler: logging.FileHandler) -> TextIOWrapper:
    check_appendable(handler.baseFilename)
    return open(os.devnull, "w", encoding="utf-8")


@contextmanager
def _opening_files_with(opener: Callable[[logging.FileHandler], TextIOWrapper]) -> Iterator[None]:
    """Make new file handlers of any class open their files with `opener`."""
    before = logging.FileHandler._open
    logging.FileHandler._open = opener  # type: ignore[assignment,method-assign]
    try:
        yield
    finally:
        logging.FileHandler._open = before  # type: ignore[method-assign]


def _apply_dict(given: Mapping[str, Any]) -> set[str]:
    """Apply a configuration for dictConfig. Returns the names of its loggers."""
    # Leave out None, the value of a YAML key without a value: dictConfig does not accept it.
    given = {name: value for name, value in given.items() if value is not None}
    config: dict[str, Any] = {"version": 1, "disable_existing_loggers": False, **given}
    if not config.get("incremental"):
        config["handlers"] = {**_DEFAULT_HANDLERS, **_part(config, "handlers")}
        formatters = {**_DEFAULT_FORMATTERS, **_part(config, "formatters")}
        config["formatters"] = {name: _plain_formatter(f) for name, f in formatters.items()}
        config.setdefault("root", {"level": "INFO", "handlers": ["console"]})
    loggers = _part(config, "loggers")
    renamed = {_our_name(name): value for name, value in loggers.items()}
    # If the file configures both `gunicorn.error` and `servo.error`, use the one for `servo.error`.
    renamed.update({name: value for name, value in loggers.items() if name in renamed})
    if not config.get("incremental"):
        renamed = {name: _with_propagation(name, value) for name, value in renamed.items()}
    config["loggers"] = renamed
    import logging.config  # not needed otherwise

    logging.config.dictConfig(config)
    return set(loggers)


def _part(config: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """A table of the configuration; empty if it is missing. Raises ValueError for another type."""
    part = config.get(name, {})
    if not isinstance(part, dict):
        raise ValueError(f"{name} must be a table, not {type(part).__name__}")
    return part


def _with_propagation(name: str, value: Any) -> Any:
    """If one of our loggers has no handler, let it pass its records to its parent.

    This is logging's default, but `setup_logging` has turned it off, so the records would reach no
    handler.
    """
    if (
        name in _OURS
        and isinstance(value, dict)
        and not value.get("handlers")
        and "propagate" not in value
    ):
        return {**value, "propagate": True}
    return value


def _plain_formatter(value: Any) -> Any:
    """Turn the configuration of a uvicorn formatter into one for the standard library's."""
    kind = isinstance(value, dict) and (value.get("()") or value.get("class"))
    if not isinstance(kind, str) or not kind.startswith(_UVICORN_FORMATTERS):
        return value
    text = value.get("fmt") or value.get("format") or "%(levelprefix)s %(message)s"
    for theirs, ours in _UVICORN_FIELDS.items():
        text = text.replace(theirs, ours)
    kept = {name: value[name] for name in ("datefmt", "style") if name in value}
    return {"format": text, **kept}


def _apply_ini(parser: ConfigParser) -> set[str]:
    import logging.config

    named = set()
    for section in parser.sections():
        if section.startswith("logger_") and parser.has_option(section, "qualname"):
            name = parser.get(section, "qualname", raw=True)
            named.add(name)
            parser.set(section, "qualname", _our_name(name))
    logging.config.fileConfig(parser, disable_existing_loggers=False)
    return named


def _our_name(name: str) -> str:
    head, dot, rest = name.partition(".")
    return f"servo{dot}{rest}" if head in ("gunicorn", "uvicorn") else name
