"""What an installation holds: plain Python, or, with SERVO_COMPILE=1, the hot modules compiled.

mypyc makes C extensions of the very same source, which stays the reference: an installation without
them behaves alike and is slower. `make wheel` builds one with them.
"""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

from setuptools import setup

if TYPE_CHECKING:
    from setuptools import Extension

# What a request passes through. One group: classes that know each other's attributes are compiled
# together. What raises, awaits for the application, or runs once in a while stays as it is.
COMPILED = [
    "servo/apps/asgi.py",
    "servo/apps/asgi_scope.py",
    "servo/apps/wsgi.py",
    "servo/apps/wsgi_environ.py",
    "servo/apps/wsgi_file.py",
    "servo/http/events.py",
    "servo/http/h1/chunked.py",
    "servo/http/h1/connection.py",
    "servo/http/h1/field_lines.py",
    "servo/http/h1/known_fields.py",
    "servo/http/h1/parser_httptools.py",
    "servo/http/headers.py",
    "servo/http/limits.py",
    "servo/http/serialise.py",
    "servo/workers/aio/h1.py",
    "servo/workers/aio/heartbeat.py",
    "servo/workers/aio/linger.py",
    "servo/workers/aio/server.py",
    "servo/workers/aio/worker.py",
    "servo/workers/blocking/connection.py",
    "servo/workers/blocking/poller.py",
    "servo/workers/blocking/sync.py",
    "servo/workers/blocking/thread.py",
    "servo/workers/request/accounting.py",
    "servo/workers/request/admission.py",
    "servo/workers/request/body_rate.py",
    "servo/workers/timing.py",
    "servo/workers/worker.py",
]


def extensions() -> list[Extension]:
    """None, unless they are asked for."""
    if not os.environ.get("SERVO_COMPILE"):
        return []
    from mypyc.build import mypycify

    # Not pyproject.toml's version: what is compiled serves this interpreter alone. And not as
    # strict as `make check`: the libraries of the extras need not be here.
    options = [
        f"--python-version={sys.version_info[0]}.{sys.version_info[1]}",
        "--ignore-missing-imports",
        "--allow-subclassing-any",
        "--no-warn-return-any",
        "--no-warn-unused-ignores",
    ]
    return mypycify([*options, *COMPILED], opt_level="3", debug_level="0")


setup(ext_modules=extensions())
