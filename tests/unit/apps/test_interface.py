"""Recognising whether an object is a WSGI or an ASGI application."""

from __future__ import annotations

import functools
from typing import Any

import pytest
from django.core.handlers.asgi import ASGIHandler
from django.core.handlers.wsgi import WSGIHandler
from fastapi import FastAPI
from flask import Flask
from starlette.applications import Starlette
from starlette.endpoints import HTTPEndpoint

from servo.apps.interface import detect_interface, looks_like_factory


def wsgi(environ: Any, start_response: Any) -> Any: ...


def wsgi_with_more(environ: Any, start_response: Any, more: Any = None) -> Any: ...


async def asgi(scope: Any, receive: Any, send: Any) -> None: ...


def asgi_behind_a_function(scope: Any, receive: Any, send: Any) -> Any:
    return asgi(scope, receive, send)


def asgi2(scope: Any) -> Any: ...


def create_app(name: str = "x") -> Any: ...


class WSGIObject:
    def __call__(self, environ: Any, start_response: Any) -> Any: ...

    def method(self, environ: Any, start_response: Any) -> Any: ...


class ASGIObject:
    async def __call__(self, scope: Any, receive: Any, send: Any) -> None: ...

    async def method(self, scope: Any, receive: Any, send: Any) -> None: ...

    @staticmethod
    async def static(scope: Any, receive: Any, send: Any) -> None: ...

    @classmethod
    async def of_class(cls, scope: Any, receive: Any, send: Any) -> None: ...


class WSGIIterable:
    def __init__(self, environ: Any, start_response: Any) -> None: ...

    def __iter__(self) -> Any: ...


class ASGI2Class:
    def __init__(self, scope: Any) -> None: ...

    async def __call__(self, receive: Any, send: Any) -> None: ...


class ASGI2Object:
    def __call__(self, scope: Any) -> Any: ...


def wrapped(function: Any) -> Any:
    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any: ...

    return wrapper


def opaque(*args: Any, **kwargs: Any) -> Any: ...


class Marked:
    """Marked as asgiref's markcoroutinefunction marks a plain callable before Python 3.12."""

    def __call__(self, *args: Any) -> Any: ...

    __call__._is_coroutine = object()  # type: ignore[attr-defined]


class Unreadable(Starlette):
    """A compiled `__call__` shows neither its arguments nor that it is a coroutine function."""

    __call__ = max  # type: ignore[assignment]


@pytest.mark.parametrize(
    ("app", "interface"),
    [
        (wsgi, "wsgi"),
        (wsgi_with_more, "wsgi"),
        (WSGIObject(), "wsgi"),
        (WSGIObject().method, "wsgi"),
        (functools.partial(wsgi_with_more, more=1), "wsgi"),
        (functools.partial(lambda first, environ, start: None, 1), "wsgi"),
        (WSGIIterable, "wsgi"),
        (wrapped(wsgi), "wsgi"),
        (opaque, "wsgi"),
        (max, "wsgi"),
        (Flask("x"), "wsgi"),
        (Flask("x").wsgi_app, "wsgi"),
        (WSGIHandler, None),
        (asgi, "asgi"),
        (asgi_behind_a_function, "asgi"),
        (ASGIObject(), "asgi"),
        (ASGIObject().method, "asgi"),
        (ASGIObject.static, "asgi"),
        (ASGIObject.of_class, "asgi"),
        (functools.partial(asgi), "asgi"),
        (functools.partial(functools.partial(ASGIObject(), send=1), receive=2), "asgi"),
        (wrapped(asgi_behind_a_function), "asgi"),
        (Marked(), "asgi"),
        (Starlette(), "asgi"),
        (FastAPI(), "asgi"),
        (HTTPEndpoint, "asgi"),
        (Unreadable(), "asgi"),
        (asgi2, "asgi2"),
        (ASGI2Class, "asgi2"),
        (ASGI2Object(), "asgi2"),
        (ASGIObject, None),
        (Starlette, None),
        (create_app, None),
        (lambda: None, None),
        (lambda a, b, c, d: None, None),
        (WSGIObject, None),
        (int, None),
        (3, None),
        (None, None),
    ],
)
def test_interface(app: object, interface: str | None) -> None:
    assert detect_interface(app) == interface


def test_djangos_handlers() -> None:
    """Constructors of Django's handlers need settings, so the objects are made without them."""
    assert detect_interface(WSGIHandler.__new__(WSGIHandler)) == "wsgi"
    assert detect_interface(ASGIHandler.__new__(ASGIHandler)) == "asgi"


@pytest.mark.parametrize(
    ("app", "is_factory"),
    [
        (lambda: None, True),
        (create_app, True),
        (functools.partial(create_app, "x"), True),
        (opaque, False),
        (wsgi, False),
        (asgi, False),
        (WSGIObject(), False),
        (lambda needed: None, False),
    ],
)
def test_factories(app: object, is_factory: bool) -> None:
    assert looks_like_factory(app) is is_factory
