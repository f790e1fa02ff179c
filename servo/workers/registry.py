"""Finds a worker class by its name. Only the worker that uses a class imports it."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from servo.errors import BootError

if TYPE_CHECKING:
    from servo.apps.loader import LoadedApp
    from servo.settings.sources import Settings
    from servo.workers.worker import Worker

BUILT_IN = {
    "sync": "servo.workers.blocking.sync.SyncWorker",
    "thread": "servo.workers.blocking.thread.ThreadWorker",
    "async": "servo.workers.aio.worker.AsyncWorker",
}


def worker_for(settings: Settings, app: LoadedApp) -> type[Worker]:
    """Return the class for an application.

    settings  the settings of the generation
    app       the loaded application

    Raises BootError if there is no such class, or it can't run the application's interface.
    """
    name = settings.worker_class_for(app.interface)
    found = worker_class(name)
    if app.interface not in found.interfaces:
        runs, is_one = found.interfaces[0].upper(), app.interface.upper()
        raise BootError(
            f"{settings.app} is an {is_one} application, and worker class {name!r} runs {runs} "
            f"ones; say --worker-class async, or --interface {found.interfaces[0]} if it is one"
        )
    return found


def worker_class(name: str) -> type[Worker]:
    """Return a worker class by its name in BUILT_IN or its dotted path. Raises BootError."""
    from servo.workers.worker import Worker

    path = BUILT_IN.get(name, name)
    module_name, _, attribute = path.replace(":", ".").rpartition(".")
    try:
        found = getattr(importlib.import_module(module_name), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise BootError(
            f"worker_class {name!r} can't be loaded: {error} "
            f"(built in: {', '.join(BUILT_IN)}; or the dotted path of a "
            "servo.workers.worker.Worker)"
        ) from error
    if not (isinstance(found, type) and issubclass(found, Worker)):
        raise BootError(f"worker_class {name!r} is no subclass of servo.workers.worker.Worker")
    return found
