"""Finds a worker class by its name, and imports the built-in ones before the first fork."""

from __future__ import annotations

import importlib
import logging
from contextlib import suppress
from typing import TYPE_CHECKING

from servo.errors import BootError
from servo.settings.gunicorn_compat import WORKER_CLASSES, WorkerClass, WorkerClassError

if TYPE_CHECKING:
    from servo.apps.loader import LoadedApp
    from servo.settings.sources import Settings
    from servo.workers.worker import Worker

log = logging.getLogger("servo.error")

BUILT_IN = {
    "sync": "servo.workers.blocking.sync.SyncWorker",
    "thread": "servo.workers.blocking.thread.ThreadWorker",
    "async": "servo.workers.aio.worker.AsyncWorker",
}


# What each worker imports later, before it imports the application.
_COMMON = ("servo.workers.boot", "queue", "tempfile")
_OPTIONAL = ("setproctitle",)


def import_ahead(settings: Settings) -> None:
    """Import the worker classes that may serve. The arbiter calls this once, before its first fork.

    So the workers share the memory of these modules, and boot sooner. And if the installed package
    changes while the server runs, later workers still run the Servo of their arbiter, not half of
    each. A class that is given by its dotted path belongs to the application: only workers import
    it.

    settings  the settings of the server's start
    """
    interfaces = ("wsgi", "asgi") if settings.interface == "auto" else (settings.interface,)
    names = {settings.worker_class_for(interface) for interface in interfaces} & BUILT_IN.keys()
    for module in _COMMON:
        importlib.import_module(module)
    for name in names:
        worker_class(name)
    optional: tuple[str, ...] = _OPTIONAL
    if "async" in names and settings.loop != "asyncio":
        optional += ("uvloop",)
    for module in optional:
        with suppress(ImportError):  # whoever needs it says that it is missing
            importlib.import_module(module)


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
    if isinstance(found, type) and not issubclass(found, Worker):
        ours = _like(found, name)
        if ours is not None:
            return worker_class(ours)
    if not (isinstance(found, type) and issubclass(found, Worker)):
        raise BootError(f"worker_class {name!r} is no subclass of servo.workers.worker.Worker")
    return found


def _like(found: type, name: str) -> str | None:
    """Our counterpart of a class that was derived from one of gunicorn's or uvicorn's, or None.

    Configurations derive from `uvicorn.workers.UvicornWorker` to change its `CONFIG_KWARGS`. Such a
    class can't run here, but the application can. Raises BootError if there is no counterpart.
    """
    for base in found.__mro__:
        try:
            ours = WorkerClass().from_text(f"{base.__module__}.{base.__qualname__}")
        except WorkerClassError as error:
            raise BootError(f"worker_class {name!r}: {error.advice}") from error
        except ValueError:
            continue  # a class in a function
        if ours in WORKER_CLASSES:
            options = ", ".join(sorted(getattr(found, "CONFIG_KWARGS", {})))
            log.warning(
                "The worker class %s is served by Servo's class %s: its own code has no effect%s",
                name,
                ours,
                f"; set its CONFIG_KWARGS ({options}) as settings" if options else "",
            )
            return str(ours)
    return None
