"""Idle and busy threads, by their stacks."""

from __future__ import annotations

import pytest

from servo.control.stacks import is_idle

POOL = ("/srv/servo/workers/threads.py", "/usr/lib/python3.12/threading.py")
LOOP = ("/srv/servo/workers/aio/worker.py", "/usr/lib/python3.11/asyncio/base_events.py")
SELECT = "/usr/lib/python3.11/selectors.py"
QUEUE = "/usr/lib/python3.13t/queue.py"
APP = "/srv/shop/shop.py"


def trace(*files: str) -> str:
    return "".join(f'  File "{file}", line 3, in f\n    f()\n' for file in files)


def dump(*files: str) -> str:
    frames = "".join(f'  File "{file}", line 3 in f\n' for file in reversed(files))
    return f"Thread 0x00007f (most recent call first):\n{frames}"


@pytest.mark.parametrize(
    ("files", "idle"),
    [
        (POOL, True),
        ((*LOOP, SELECT), True),
        ((), True),
        ((*POOL, APP), False),
        ((*POOL, APP, "/usr/lib/python3.12/threading.py"), False),  # it waits for a lock
        ((*LOOP, APP), False),
        (("/usr/lib/python3.12/threading.py", APP, QUEUE), True),  # a thread of the app
        (("/usr/lib/python3.12/threading.py", APP), False),
        (("/usr/lib/python3.12/threading.py", APP, "/usr/lib/python3.12/json/encoder.py"), False),
        (("/srv/lib/uvloop/__init__.py",), True),
        (("/srv/servo/models.py", QUEUE), True),  # a package of the app that is named servo
    ],
)
def test_idle_threads(files: tuple[str, ...], idle: bool) -> None:
    assert is_idle(trace(*files)) is idle
    assert is_idle(dump(*files), innermost_first=True) is idle


def test_the_main_thread_of_a_compiled_server_is_the_servers() -> None:
    stack = trace(APP, "/usr/lib/python3.12/threading.py")
    assert is_idle(stack)
    assert not is_idle(stack, of_server=True)
