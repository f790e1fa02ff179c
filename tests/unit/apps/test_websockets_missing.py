"""Applications that need the missing library are recognised, and warned about once."""

from __future__ import annotations

import sys
from types import ModuleType

import pytest

from servo.apps.websockets_missing import MissingWebSockets, uses_websockets

starlette = pytest.importorskip("starlette.routing")


async def endpoint(*_args):
    raise AssertionError("only looked at")


class Wrapper:
    def __init__(self, app):
        self.app = app


SOCKET = starlette.WebSocketRoute("/ws", endpoint)
PLAIN = starlette.Route("/", endpoint)


def router(*routes):
    return starlette.Router(routes=list(routes))


@pytest.mark.parametrize(
    ("app", "uses"),
    [
        (router(PLAIN, SOCKET), True),
        (router(PLAIN), False),
        (router(starlette.Mount("/deep", routes=[SOCKET])), True),
        (router(starlette.Mount("/deep", app=router(PLAIN, SOCKET))), True),
        (router(starlette.Mount("/deep", app=Wrapper(router(SOCKET)))), True),
        (Wrapper(Wrapper(router(SOCKET))), True),
        (Wrapper(router(PLAIN)), False),
        (endpoint, False),
    ],
)
def test_starlette(app, uses):
    assert uses_websockets(app) is uses


def test_fastapi():
    fastapi = pytest.importorskip("fastapi")
    app = fastapi.FastAPI()
    assert not uses_websockets(app)
    app.websocket("/ws")(endpoint)
    assert uses_websockets(app)


@pytest.mark.parametrize("mapping", [{"http": endpoint}, {"http": endpoint, "websocket": endpoint}])
def test_channels(monkeypatch, mapping):
    module = ModuleType("channels.routing")
    module.ProtocolTypeRouter = type("ProtocolTypeRouter", (), {"application_mapping": mapping})
    monkeypatch.setitem(sys.modules, "channels.routing", module)
    assert uses_websockets(module.ProtocolTypeRouter()) is ("websocket" in mapping)


def test_an_application_that_holds_itself():
    app = Wrapper(None)
    app.app = app
    assert not uses_websockets(app)


def test_an_application_whose_routes_can_not_be_read():
    class Odd:
        @property
        def routes(self):
            raise RuntimeError("not yet")

    assert not uses_websockets(Odd())


def test_no_framework_is_imported(monkeypatch):
    monkeypatch.delitem(sys.modules, "starlette.routing")
    assert not uses_websockets(router(SOCKET))
    assert "starlette.routing" not in sys.modules


@pytest.mark.parametrize("app", [endpoint, router(SOCKET)])
def test_the_warning_comes_once(caplog, app):
    missing = MissingWebSockets(app, logs=True)
    missing.on_request()
    missing.on_request()
    assert caplog.text.count("pip install 'servo-server[websocket]'") == 1


def test_one_worker_warns_for_all(caplog):
    MissingWebSockets(router(SOCKET), logs=False).on_request()
    assert not caplog.records
