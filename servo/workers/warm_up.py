"""Warm-up: a mold uses the application before it forks workers.

With its first requests an application loads more data, such as templates, routes and lazily
imported modules. If the mold has loaded this data, all workers share it.
"""

from __future__ import annotations

import inspect
import logging
import time
import traceback
from typing import TYPE_CHECKING

from servo.apps.in_process import get_wsgi
from servo.apps.loader import load_function
from servo.apps.wsgi_environ import WSGIAdapter
from servo.errors import AppImportError, BootError

if TYPE_CHECKING:
    from servo.apps.loader import LoadedApp
    from servo.settings.sources import Settings

log = logging.getLogger("servo.error")


def warm_up(settings: Settings, app: LoadedApp, secure: bool) -> None:
    """Request the paths and call the functions of the setting `warm_up`, in their order.

    settings  the settings of the generation
    app       the loaded application
    secure    whether clients use TLS. If they do, request with https: for http, the application
              might only send a redirect

    Raises BootError if a request or function fails.
    """
    for target in settings.warm_up:
        started = time.monotonic()
        if target.startswith("/"):
            _request(settings, app, target, secure)
        else:
            _call(target)
        log.info("Warm-up %s took %.2f s", target, time.monotonic() - started)


def _request(settings: Settings, app: LoadedApp, target: str, secure: bool) -> None:
    if app.interface != "wsgi":
        raise BootError(
            f"warm_up: {target} can't be requested: an ASGI app needs an event loop, which starts "
            "in the workers; name a function (module:function)"
        )
    adapter = WSGIAdapter(
        app.app, log=log, multithread=False, multiprocess=True, root_path=settings.root_path
    )
    try:
        status = get_wsgi(adapter, target, "https" if secure else "http")
    except (Exception, SystemExit) as error:
        raise BootError(f"warm_up: GET {target} raised\n{traceback.format_exc()}") from error
    if status >= 400:
        raise BootError(f"warm_up: GET {target} answered {status}; name a path that works")


def _call(target: str) -> None:
    try:
        function = load_function(target)
    except AppImportError as error:
        raise BootError(f"warm_up: {error}\n{error.details}".rstrip()) from error
    if inspect.iscoroutinefunction(function):
        raise BootError(f"warm_up: {target} is an async function; name a plain one")
    try:
        function()
    except (Exception, SystemExit) as error:
        raise BootError(f"warm_up: {target} raised\n{traceback.format_exc()}") from error
