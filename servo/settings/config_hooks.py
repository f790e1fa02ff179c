"""Server hooks: functions in a Python configuration file, with gunicorn's names and arguments."""

from __future__ import annotations

import importlib
import inspect
from typing import TYPE_CHECKING, Any

from servo.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

# The hooks by name, each with its arguments and the time when it is called.
HOOKS: dict[str, tuple[tuple[str, ...], str]] = {
    "on_starting": (("server",), "before the arbiter binds and forks"),
    "on_reload": (("server",), "in the arbiter, when a reload begins"),
    "when_ready": (("server",), "in the arbiter, when it has bound its sockets, before it forks"),
    "pre_fork": (("server", "worker"), "in the arbiter, before a worker is forked"),
    "after_mold": (
        ("server", "worker"),
        "in a worker that a mold has forked (`preload_app`), before `post_fork`",
    ),
    "before_refork": (
        ("server", "worker"),
        "in a drained worker, before it forks the next mold (`refork_after`): it closes connections"
        " and ends threads",
    ),
    "post_fork": (("server", "worker"), "in the worker, right after the fork"),
    "post_worker_init": (("worker",), "in the worker, when the app is loaded"),
    "worker_int": (("worker",), "in the worker, when it must stop quickly"),
    "worker_abort": (("worker",), "in the worker, on SIGABRT: it has exceeded `timeout`"),
    "pre_exec": (("server",), "in the arbiter, before an upgrade executes the new program"),
    "ssl_context": (
        ("config", "default_ssl_context_factory"),
        "in the arbiter, at the start and at each reload; it returns the `ssl.SSLContext` to use",
    ),
    "pre_request": (("worker", "request"), "in the worker, before each request"),
    "post_request": (
        ("worker", "request", "environ", "response"),
        "in the worker, after each request; the last one or two arguments may be left out",
    ),
    "on_message": (
        ("server", "worker", "msg", "topic"),
        "in the arbiter, for each message that a worker sends to slot 0 (`servo.cluster`); its "
        "return value answers a request; it must not block; the last argument may be left out",
    ),
    "child_exit": (("server", "worker"), "in the arbiter, when a worker has ended"),
    "worker_exit": (("server", "worker"), "in the worker, just before it ends"),
    "nworkers_changed": (
        ("server", "new_value", "old_value"),
        "in the arbiter, when the number of workers has changed; the first old value is None",
    ),
    "on_event": (
        ("server", "event"),
        "in the arbiter, at each lifecycle event: `event.name` is spawned, booting, ready, "
        "draining, exited, reload_started, reload_finished, reload_rolled_back, rolled_back, "
        "refork_started, refork_finished, refork_rolled_back, scaled or stopping",
    ),
    "on_exit": (("server",), "in the arbiter, just before it ends"),
}


class Hooks:
    """The hooks of a configuration, as attributes; a hook that isn't given is None.

    given   hook name -> callable. `post_request` and `on_message` must take all arguments:
            `read_hook` wraps functions that take fewer
    """

    def __init__(self, given: Mapping[str, Callable[..., Any]]) -> None:
        for name in HOOKS:
            object.__setattr__(self, name, given.get(name))

    def __getattr__(self, name: str) -> Callable[..., Any] | None:
        raise AttributeError(f"there is no hook {name!r}")

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError("settings can't be changed; a reload makes new ones")

    def __repr__(self) -> str:
        given = [name for name in HOOKS if getattr(self, name) is not None]
        return f"Hooks({', '.join(given)})"


def read_hook(name: str, value: object, source: str) -> Callable[..., Any]:
    """Make a hook from a configuration file's value.

    name     the hook's name
    value    a callable, or the dotted path of one
    source   where the value comes from, for messages

    Raises ConfigError if the value is neither, or can't be called with the hook's arguments.
    """
    hook = _load(name, value, source) if isinstance(value, str) else value
    if not callable(hook):
        raise ConfigError(f"{name}: {value!r} is not a function ({source})")
    arguments = HOOKS[name][0]
    if name == "post_request":
        return _post_request(hook, source)
    if name == "on_message":
        return _on_message(hook, source)
    if not _takes(hook, len(arguments)):
        raise _arity_error(name, hook, source, f"({', '.join(arguments)})")
    return hook


def _load(name: str, path: str, source: str) -> object:
    module, _, attribute = path.strip().rpartition(".")
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(f"{name}: can't load {path!r} ({source}): {error}") from error


def _post_request(hook: Callable[..., Any], source: str) -> Callable[..., Any]:
    if _takes(hook, 4):
        return hook
    if _takes(hook, 3):
        return lambda worker, request, environ, _response: hook(worker, request, environ)
    if _takes(hook, 2):
        return lambda worker, request, _environ, _response: hook(worker, request)
    forms = "(worker, request[, environ[, response]])"
    raise _arity_error("post_request", hook, source, forms)


def _on_message(hook: Callable[..., Any], source: str) -> Callable[..., Any]:
    if _takes(hook, 4):
        return hook
    if _takes(hook, 3):
        return lambda server, worker, message, _topic: hook(server, worker, message)
    raise _arity_error("on_message", hook, source, "(server, worker, msg[, topic])")


def _takes(hook: Callable[..., Any], count: int) -> bool:
    try:
        signature = inspect.signature(hook)
    except (ValueError, TypeError):  # a builtin without a signature can't be checked
        return True
    try:
        signature.bind(*range(count))
    except TypeError:
        return False
    return True


def _arity_error(name: str, hook: Callable[..., Any], source: str, wanted: str) -> ConfigError:
    return ConfigError(
        f"{name}: the hook takes {inspect.signature(hook)} but is called with {wanted} ({source})"
    )
