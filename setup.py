"""Adds compiled versions of the hot modules to a wheel if SERVO_COMPILE=1.

The hot modules are those that each request uses. mypyc translates their Python source to C
extensions. A wheel also contains the source, and without the extensions Servo behaves in the same
way but is slower. `pip install` runs build_backend.py, which sets SERVO_COMPILE and runs this
script.
"""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

from setuptools import setup

if TYPE_CHECKING:
    from setuptools import Extension

# The modules that each request uses. mypyc compiles them as one group, because then a class can
# access the attributes of another directly. Modules that mostly raise errors, await the
# application, or run only now and then are not compiled.
COMPILED = [
    "servo/apps/asgi.py",
    "servo/apps/asgi_scope.py",
    "servo/apps/wsgi.py",
    "servo/apps/wsgi_environ.py",
    "servo/apps/wsgi_file.py",
    "servo/http/events.py",
    "servo/http/forwarded.py",
    "servo/http/h1/chunked.py",
    "servo/http/h1/connection.py",
    "servo/http/h1/field_lines.py",
    "servo/http/h1/known_fields.py",
    "servo/http/h1/parser_httptools.py",
    "servo/http/h2/connection.py",
    "servo/http/h2/frames.py",
    "servo/http/h2/head.py",
    "servo/http/h2/hpack.py",
    "servo/http/h2/hpack_tables.py",
    "servo/http/h2/stream.py",
    "servo/http/headers.py",
    "servo/http/limits.py",
    "servo/http/queue_time.py",
    "servo/http/serialise.py",
    "servo/workers/accept/accept_queue.py",
    "servo/workers/accept/acceptor.py",
    "servo/workers/accept/gate.py",
    "servo/workers/aio/h1.py",
    "servo/workers/aio/h2.py",
    "servo/workers/aio/h2_stream.py",
    "servo/workers/aio/heartbeat.py",
    "servo/workers/aio/server.py",
    "servo/workers/aio/worker.py",
    "servo/workers/blocking/connection.py",
    "servo/workers/blocking/poller.py",
    "servo/workers/blocking/sync.py",
    "servo/workers/blocking/thread.py",
    "servo/workers/linger.py",
    "servo/workers/request/accounting.py",
    "servo/workers/request/admission.py",
    "servo/workers/request/body_rate.py",
    "servo/workers/timing.py",
    "servo/workers/worker.py",
]


# The commands that build extension modules. The others ask only for the metadata.
BUILDING = {"bdist_wheel", "build_ext"}


def mypy_options(version: tuple[int, int]) -> list[str]:
    """The mypy options for compiling the modules for a version of Python.

    They are less strict than those of `make check`, because optional libraries may be missing here.
    """
    return [
        f"--python-version={version[0]}.{version[1]}",
        "--ignore-missing-imports",
        "--follow-imports=silent",  # report errors only in the compiled modules
        "--allow-subclassing-any",
        "--no-warn-return-any",
        "--no-warn-unused-ignores",
    ]


def extensions() -> list[Extension]:
    """The C extensions of the hot modules; none unless SERVO_COMPILE=1 asks for them."""
    if os.environ.get("SERVO_COMPILE") != "1" or not BUILDING.intersection(sys.argv):
        return []
    from mypyc.build import mypycify

    # pyproject.toml names the oldest supported version, but the compiled modules only run on this
    # interpreter.
    options = mypy_options(sys.version_info[:2])
    print(f"servo: compiling {len(COMPILED)} modules, for one to three minutes", flush=True)
    found = mypycify(
        [*options, *COMPILED], verbose=True, opt_level="3", debug_level="0", group_name="servo"
    )
    for extension in found:
        # mypyc tells the C compiler to treat warnings as errors. But a warning that only some
        # compilers give must not prevent a build.
        extension.extra_compile_args.append("-Wno-error")
    print("servo: running the C compiler", flush=True)
    return found


setup(ext_modules=extensions())
