"""Recognises the interface of an application, WSGI or ASGI, without calling it."""

from __future__ import annotations

import functools
import inspect
from typing import Any

# Qualified name of a framework's application class -> its interface. The signatures of these
# classes may be unreadable, because of a compiled `__call__` or a metaclass.
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
    """Recognise the interface of an application.

    app  any object

    Returns "asgi", "asgi2" (a double callable of ASGI 2), "wsgi", or None if it is not an
    application.

    A coroutine function is an ASGI 3 app, even inside a bound method, a functools.partial or an
    instance's `__call__`. For any other callable the arguments decide: two mean WSGI (PEP 3333),
    three ASGI 3, and a single one named `scope` ASGI 2. A callable with any other single argument
    may be a factory.
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
    """Whether an object is a function that takes no arguments, and so is not an application."""
    return (
        (inspect.isroutine(app) or isinstance(app, functools.partial))
        and _takes(app, 0)
        and not (_takes(app, 2) or _takes(app, 3))
    )


def _detect_class(app: type) -> str | None:
    """Recognise a class that is an application: ASGI 2's double callable, or WSGI."""
    if hasattr(app, "__await__") and _takes(app, 3):
        return "asgi"
    call = inspect.getattr_static(app, "__call__", None)
    if call is not None and _is_async(call):
        return "asgi2" if _takes(app, 1) and _takes(call, 3) else None
    if hasattr(app, "__iter__") and _takes(app, 2):
        return "wsgi"
    return None


def _function_of(app: Any) -> Any:
    """The function that runs when an object is called."""
    while isinstance(app, functools.partial):
        app = app.func
    if inspect.isroutine(app):
        return app
    return type(app).__call__


def _is_async(function: Any) -> bool:
    if isinstance(function, (staticmethod, classmethod)):
        function = function.__func__
    # asgiref (before Python 3.12) and Cython mark coroutine functions by this attribute.
    return inspect.iscoroutinefunction(function) or hasattr(function, "_is_coroutine")


def _by_arguments(app: Any) -> str | None:
    try:
        parameters = list(inspect.signature(app).parameters.values())
    except (ValueError, TypeError):
        return "wsgi"  # a compiled function that is not a coroutine function
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
