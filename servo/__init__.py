"""Servo: an application server for Python web apps (WSGI and ASGI)."""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"


def run(app: Any, **options: Any) -> None:
    """Serve an application until the server is stopped, like `servo APP` on a command line.

    app      the application's name, such as "main:app"; or the application itself, which workers
             get by fork, so that a reload can't import it again
    options  settings of Servo by their names (`bind=…`, `workers=2`), or the options of
             `uvicorn.run` (`host="0.0.0.0"`, `port=8000`, `log_level="info"`, `ssl_keyfile=…`).
             Configuration files and the environment are read as by the command

    Call it in the main thread, when no event loop runs. Returns after a stop on request. For any
    other end it prints the reason and raises SystemExit with the command's exit code.
    """
    _load("servo.serving.run").run(app, options)


async def serve(app: Any, **options: Any) -> None:
    """Serve an application in the running event loop, until SIGINT, SIGTERM, or cancellation.

    app      the application, or its name
    options  see `servo.serving.server.Server`, which is also `servo.Server`: it has `should_exit`
             and `started`, for tests and for programs that stop the server themselves
    """
    await _load("servo.serving.server").Server(app, **options).serve()


def __getattr__(name: str) -> Any:
    if name == "Server":
        return _load("servo.serving.server").Server
    raise AttributeError(f"module 'servo' has no attribute {name!r}")


def _load(module: str) -> Any:
    # Loaded by name, when it is needed: every module of Servo imports this package, and most need
    # none of these modules. The import contracts would count them as imports of each.
    return importlib.import_module(module)
