"""Makes the event loop of an `async` worker.

This module is not compiled. A compiled function imports a module only once: after an upgrade that
installs or removes uvloop, it would still use the old result. This code runs once per worker, so it
need not be fast.
"""

from __future__ import annotations

import asyncio

from servo.errors import ConfigError


def new_event_loop(name: str) -> asyncio.AbstractEventLoop:
    """Make an event loop.

    name  "asyncio", "uvloop", or "auto": uvloop if it is installed

    Raises ConfigError if uvloop is asked for and not installed.
    """
    if name != "asyncio":
        try:
            import uvloop
        except ImportError as error:
            if name == "uvloop":
                raise ConfigError("loop = 'uvloop', but uvloop is not installed") from error
        else:
            loop: asyncio.AbstractEventLoop = uvloop.new_event_loop()
            return loop
    return asyncio.new_event_loop()
