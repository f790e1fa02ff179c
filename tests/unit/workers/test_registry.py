"""Worker classes by name."""

from __future__ import annotations

import subprocess
import sys

import pytest

from servo.apps.loader import LoadedApp
from servo.errors import BootError
from servo.settings.sources import Settings
from servo.workers.registry import BUILT_IN, worker_class, worker_for


@pytest.mark.parametrize("name", list(BUILT_IN))
def test_the_built_in_classes_know_their_names(name: str) -> None:
    assert worker_class(name).kind == name


@pytest.mark.parametrize("separator", [".", ":"])
def test_a_class_at_a_dotted_path(separator: str) -> None:
    path = f"servo.workers.blocking.sync{separator}SyncWorker"
    assert worker_class(path) is worker_class("sync")


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("nothing", "can't be loaded"),
        ("no_such_module.Worker", "can't be loaded"),
        ("servo.workers.registry.Nothing", "can't be loaded"),
        ("servo.workers.registry.BUILT_IN", "is no subclass"),
        ("collections.OrderedDict", "is no subclass"),
    ],
)
def test_a_name_that_is_no_worker_class(name: str, reason: str) -> None:
    with pytest.raises(BootError, match=reason):
        worker_class(name)


class UvicornWorker:
    """Stands for uvicorn's class."""


UvicornWorker.__module__ = "uvicorn.workers"


class OurUvicornWorker(UvicornWorker):
    """A class of a configuration."""

    CONFIG_KWARGS = {"http": "h11", "lifespan": "on"}


class GeventWorker:
    """Stands for gunicorn's class."""


GeventWorker.__module__ = "gunicorn.workers.ggevent"


class OurGeventWorker(GeventWorker):
    """A class of a configuration."""


@pytest.fixture
def this_module(monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setitem(sys.modules, "our_workers", sys.modules[__name__])
    return "our_workers"


def test_a_class_derived_from_uvicorns(this_module: str, caplog: pytest.LogCaptureFixture) -> None:
    assert worker_class(f"{this_module}.OurUvicornWorker") is worker_class("async")
    assert caplog.messages == [
        "The worker class our_workers.OurUvicornWorker is served by Servo's class async: its own "
        "code has no effect; set its CONFIG_KWARGS (http, lifespan) as settings"
    ]


def test_a_class_derived_from_one_without_counterpart(this_module: str) -> None:
    with pytest.raises(BootError, match=r"OurGeventWorker': green threads are not supported: use"):
        worker_class(f"{this_module}.OurGeventWorker")


def find(interface: str, **values: object) -> str:
    app = LoadedApp(lambda *_: None, interface)
    return worker_for(Settings({"app": "a:b", **values}, dict.fromkeys(values, "x")), app).kind


def test_the_interface_chooses_where_nobody_has_said() -> None:
    assert find("wsgi") == "sync"
    assert find("wsgi", threads=4) == "thread"
    assert find("asgi") == "async"
    assert find("wsgi", worker_class="async") == "async"


@pytest.mark.parametrize("name", ["sync", "thread"])
def test_a_class_that_does_not_run_such_applications(name: str) -> None:
    with pytest.raises(BootError, match=r"a:b is an ASGI application, .* runs WSGI"):
        find("asgi", worker_class=name)


IMPORTED = """
import sys
from servo.settings.sources import Settings
from servo.workers.registry import import_ahead
import_ahead(Settings({values}, {{}}))
print([name for name in {names} if name in sys.modules])
"""
MODULES = [
    "servo.workers.boot",
    "servo.workers.blocking.sync",
    "servo.workers.blocking.thread",
    "servo.workers.aio.worker",
    "asyncio",
]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"worker_class": "sync"}, [0, 1]),
        ({"worker_class": "sync", "threads": 4}, [0, 2]),
        ({"worker_class": "async"}, [0, 3, 4]),
        ({"interface": "wsgi"}, [0, 1]),
        ({"interface": "asgi"}, [0, 3, 4]),
        ({}, [0, 1, 3, 4]),
        ({"worker_class": "myapp.workers:Special"}, [0]),
    ],
    ids=str,
)
def test_what_the_arbiter_imports_for_its_workers(
    values: dict[str, object], expected: list[int]
) -> None:
    """In a process of its own: here, other tests have imported everything."""
    values = {"threads": 1, "worker_class": "auto", "interface": "auto", "loop": "auto", **values}
    code = IMPORTED.format(values=values, names=MODULES)
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.strip() == str([MODULES[number] for number in expected])
