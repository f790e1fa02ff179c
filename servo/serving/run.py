"""`servo.run`: the `servo` command as a function, for `if __name__ == "__main__"`."""

from __future__ import annotations

import asyncio
import os
import sys
import threading
from typing import TYPE_CHECKING, Any

from servo.arbiter.start import run_server
from servo.errors import AppImportError, ConfigError, ServoError
from servo.serving import given_app
from servo.serving.options import flags_of
from servo.settings.sources import drop_config_modules, load_settings, take_secrets
from servo.settings.workdir import started_in

if TYPE_CHECKING:
    from servo.settings.sources import Settings


def run(app: Any, options: dict[str, Any]) -> None:
    """See `servo.run`."""
    if threading.current_thread() is not threading.main_thread():
        raise RuntimeError("servo.run handles signals, so it must be called in the main thread")
    if _loop_runs():
        raise RuntimeError("an event loop runs already: use `await servo.serve(app, …)`")
    try:
        code = _run(app, options)
    except AppImportError as error:
        _print(f"{error.details}\n\nservo: error: {error}")
        code = error.exit_code
    except ServoError as error:
        _print(f"servo: error: {error}")
        code = error.exit_code
    if code:
        sys.exit(code)


def _run(app: Any, options: dict[str, Any]) -> int:
    flags = flags_of(options)
    if isinstance(app, str):
        flags["app"] = app
    else:
        if flags.get("reload"):
            raise ConfigError(
                "reload needs the app as text, such as 'main:app', to import it again"
            )
        factory = flags.pop("peer_factory", False)
        given_app.app = app() if factory else app
        flags["app"] = given_app.NAME
        flags.setdefault("proc_name", f"{type(app).__module__}:{type(app).__qualname__}")
    start = started_in(os.environ)
    environ = take_secrets(os.environ)
    current = load_settings(flags, environ, start)

    def reload_settings() -> Settings:
        nonlocal current
        drop_config_modules(current)
        current = load_settings(flags, environ, start)
        return current

    os.chdir(current.directory)
    # Without a command line to repeat, there is no upgrade in place.
    return run_server(current, reload_settings)


def _loop_runs() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


def _print(text: str) -> None:
    sys.stderr.write(text + "\n")
