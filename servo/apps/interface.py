"""WSGI or ASGI? Told from the object, without calling it."""

from __future__ import annotations

import functools
import inspect
from typing import Any

# Applications whose interface no signature tells (a compiled `__call__`, a metaclass), by the
# qualified names of their classes and bases.
_KNOWN = {
    "fastapi.applications.FastAPI": "asgi",
    "starlette.applications.Starlette": "asgi",
    "django.core.handlers.asgi.ASGIHandler": "asgi",
    "quart.app.Quart": "asgi",
    "litestar.app.Litestar": "asgi",
    "falcon.asgi.app.App": "asgi",
    "flask.app.Flask": "wsgi",
    "django.core.handlers.wsgi.WSGIHandler": "wsgi",
    "bottle.Bottle": "wsgi",
    "falcon.app.App": "wsgi",
    "pyramid.router.Router": "wsgi",
}


def detect_interface(app: Any) -> str | None:
    """ "asgi", "asgi2" (a double callable of ASGI 2), "wsgi", or None: not an application.

    An ASGI 3 app is a coroutine function of three arguments, whatever it hides behind: a bound
    method, a functools.partial, an instance's `__call__`. A plain callable is judged by how many
    arguments it takes: two are WSGI (PEP 3333), three are ASGI 3, and one is ASGI 2 if it is called
    `scope` (any other may be a factory's).
    """
    if not callable(app):
        return None
    if inspect.isclass(app):
        return _detect_class(app)
    function = _function_of(app)
    if _is_async(function):
        return "asgi"
    for base in type(app).__mro__:
        known = _KNOWN.get(f"{base.__module__}.{base.__qualname__}")
        if known:
            return known
    return _by_arguments(app)


def looks_like_factory(app: Any) -> bool:
    """Whether it is a function that can be called without arguments, and so is no application."""
    return (
        (inspect.isroutine(app) or isinstance(app, functools.partial))
        and _takes(app, 0)
        and not (_takes(app, 2) or _takes(app, 3))
    )


def _detect_class(app: type) -> str | None:
    """Calling a class makes an instance: ASGI 2's double callable, or a WSGI iterable."""
    if hasattr(app, "__await__") and _takes(app, 3):
        return "asgi"
    call = inspect.getattr_static(app, "__call__", None)
    if call is not None and _is_async(call):
        return "asgi2" if _takes(app, 1) and _takes(call, 3) else None
    if hasattr(app, "__iter__") and _takes(app, 2):
        return "wsgi"
    return None


def _function_of(app: Any) -> Any:
    """What runs in the end when this is called."""
    while isinstance(app, functools.partial):
        app = app.func
    if inspect.isroutine(app):
        return app
    return type(app).__call__


def _is_async(function: Any) -> bool:
    if isinstance(function, (staticmethod, classmethod)):
        function = function.__func__
    # asgiref marks plain functions so before Python 3.12, and Cython its compiled ones.
    return inspect.iscoroutinefunction(function) or hasattr(function, "_is_coroutine")


def _by_arguments(app: Any) -> str | None:
    try:
        parameters = list(inspect.signature(app).parameters.values())
    except (ValueError, TypeError):
        return "wsgi"  # compiled, and no coroutine function: the older interface
    if parameters and parameters[0].name == "scope":
        return "asgi2" if _takes(app, 1) else "asgi"
    if _takes(app, 2):
        return "wsgi"
    return "asgi" if _takes(app, 3) else None


def _takes(app: Any, count: int) -> bool:
    try:
        signature = inspect.signature(app)
    except (ValueError, TypeError):
        return True
    try:
        signature.bind(*range(count))
    except TypeError:
        return False
    return True
