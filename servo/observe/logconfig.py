"""The user's own logging configuration: logconfig (ini), logconfig_json and logconfig_dict.

They are applied as they are by the standard library, after Servo's own setup, with one change: the
logger names `gunicorn`, `gunicorn.error` and `gunicorn.access` are read as `servo`, `servo.error`
and `servo.access`, so a file written for gunicorn works unchanged. Loggers that it does not name
keep Servo's handlers. When it configures `servo.access`, access-log records go through logging.
"""

from __future__ import annotations

import json
import logging
import os
import stat
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol, cast

from servo.errors import ConfigError
from servo.safe_files import check_appendable, open_to_append

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from io import TextIOWrapper

_OURS = ("servo.error", "servo.access")

# What gunicorn's users may refer to in a dict or JSON configuration without defining it.
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

# What logging.config raises for a configuration that it can't apply; and configparser.Error.
_CONFIG_ERRORS = (
    ValueError,
    TypeError,
    AttributeError,
    KeyError,
    ImportError,
    OSError,
    RuntimeError,
)


class UserConfig(Protocol):
    """The settings that are read here."""

    @property
    def logconfig(self) -> str | None: ...
    @property
    def logconfig_json(self) -> str | None: ...
    @property
    def logconfig_dict(self) -> Mapping[str, Any] | None: ...


def apply_user_config(settings: UserConfig) -> bool:
    """Apply the first of logconfig_dict, logconfig_json and logconfig that is set.

    Its log files are opened as Servo's own are, now and whenever they are opened anew: root
    follows no link that another user can have put there. Returns whether there was one. Raises
    ConfigError when the file can't be read or the configuration can't be applied.
    """
    with _opening(open_safely):
        found = _apply(settings)
    for _, handler in _file_handlers() if found else ():
        # A class that opens in a way of its own is left alone.
        if type(handler)._open is logging.FileHandler._open:
            handler._open = partial(open_safely, handler)  # type: ignore[method-assign]
    return found


def open_safely(handler: logging.FileHandler) -> TextIOWrapper:
    """What `logging.FileHandler._open` does, with `safe_files`. Raises OSError."""
    fd = open_to_append(handler.baseFilename).fd
    if "w" in handler.mode and stat.S_ISREG(os.fstat(fd).st_mode):
        os.ftruncate(fd, 0)
    mode = "ab" if "b" in handler.mode else "a"
    stream = open(fd, mode, encoding=handler.encoding, errors=handler.errors)  # noqa: SIM115
    return cast("TextIOWrapper", stream)


def _apply(settings: UserConfig) -> bool:
    if settings.logconfig_dict:
        source = "logconfig_dict"
    elif settings.logconfig_json:
        source = f"logconfig_json {settings.logconfig_json}"
    elif settings.logconfig:
        source = f"logconfig {settings.logconfig}"
    else:
        return False
    import configparser  # not needed otherwise

    try:
        if settings.logconfig_dict:
            _apply_dict(settings.logconfig_dict)
        elif settings.logconfig_json:
            with open(settings.logconfig_json, encoding="utf-8") as file:
                _apply_dict(json.load(file))
        elif settings.logconfig:
            _apply_ini(settings.logconfig)
    except (*_CONFIG_ERRORS, configparser.Error) as error:
        cause = error.__cause__ or error.__context__
        raise ConfigError(f"{source}: {error}{f' ({cause})' if cause else ''}") from error
    for name in _OURS:
        # disable_existing_loggers means the app's loggers; a mute server helps nobody.
        logging.getLogger(name).disabled = False
    return True


def check_user_config(settings: UserConfig) -> None:
    """Raise the ConfigError that `apply_user_config` would raise; no file is made or changed.

    The configuration is applied, but for its files: one must not be rotated by whoever checks.
    """
    before = {handler for _, handler in _file_handlers()}
    with _opening(_open_nothing):
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
def _opening(opens: Callable[[logging.FileHandler], TextIOWrapper]) -> Iterator[None]:
    """Have the handlers of files that are made meanwhile, of whatever class, opened so."""
    before = logging.FileHandler._open
    logging.FileHandler._open = opens  # type: ignore[assignment,method-assign]
    try:
        yield
    finally:
        logging.FileHandler._open = before  # type: ignore[method-assign]


def _apply_dict(given: Mapping[str, Any]) -> None:
    config = {"version": 1, "disable_existing_loggers": False, **given}
    if not config.get("incremental"):
        config["handlers"] = {**_DEFAULT_HANDLERS, **config.get("handlers", {})}
        config["formatters"] = {**_DEFAULT_FORMATTERS, **config.get("formatters", {})}
        config.setdefault("root", {"level": "INFO", "handlers": ["console"]})
    loggers = config.get("loggers", {})
    renamed = {_our_name(name): value for name, value in loggers.items()}
    # Where a file names both, ours is meant for us.
    config["loggers"] = {**renamed, **{n: v for n, v in loggers.items() if n in renamed}}
    import logging.config  # not needed otherwise

    logging.config.dictConfig(config)


def _apply_ini(path: str) -> None:
    import configparser
    import logging.config

    parser = configparser.ConfigParser(
        {"__file__": path, "here": os.path.dirname(os.path.abspath(path))}
    )
    with open(path, encoding="utf-8") as file:
        parser.read_file(file)
    for section in parser.sections():
        if section.startswith("logger_") and parser.has_option(section, "qualname"):
            name = parser.get(section, "qualname", raw=True)
            parser.set(section, "qualname", _our_name(name))
    logging.config.fileConfig(parser, disable_existing_loggers=False)


def _our_name(name: str) -> str:
    head, dot, rest = name.partition(".")
    return f"servo{dot}{rest}" if head == "gunicorn" else name
